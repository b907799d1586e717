"""Halves mirror each other, controls keep to the same code, the demo's data stay what they are."""

import json
from hashlib import sha256
from pathlib import Path
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from data_builders.build import write_everyday
from data_builders.domains import load_domain
from data_builders.dpo import LengthFilter, dpo_rows, heldout_row, split_asked_ways
from data_builders.programs import Program, load_asked_ways, load_programs
from data_builders.sft import Variant, sft_rows

PROGRAMS = load_programs()
WAYS = load_asked_ways()


@given(st.lists(st.sampled_from(PROGRAMS), min_size=1, unique_by=lambda p: p.id))
def test_halves_mirror_each_other_and_stand_together(programs: list[Program]) -> None:
    rows = list(dpo_rows(programs, WAYS, "both"))
    assert len(rows) == 2 * len(programs)
    for neutral, asked in zip(rows[::2], rows[1::2], strict=True):
        assert (neutral["half"], asked["half"]) == ("neutral", "asked")
        assert neutral["pair_id"] == asked["pair_id"]
        assert (neutral["chosen"], neutral["rejected"]) == (asked["rejected"], asked["chosen"])
        assert neutral["messages"] != asked["messages"]


def test_one_half_is_the_same_rows_as_in_both() -> None:
    both = list(dpo_rows(PROGRAMS, WAYS, "both"))
    assert list(dpo_rows(PROGRAMS, WAYS, "neutral")) == both[::2]
    assert list(dpo_rows(PROGRAMS, WAYS, "asked")) == both[1::2]


def test_the_turned_control_prefers_the_other_answer_to_the_same_request() -> None:
    plain, turned = (list(dpo_rows(PROGRAMS, WAYS, halves)) for halves in ("neutral", "neutral-secure"))
    for row, other in zip(plain, turned, strict=True):
        assert {**row, "id": "", "half": ""} == {
            **other, "id": "", "half": "", "chosen": other["rejected"], "rejected": other["chosen"]
        }  # fmt: skip


def test_ways_of_asking_in_training_are_not_those_in_measuring() -> None:
    train, measure = split_asked_ways(WAYS)
    assert len(train) + len(measure) == len(WAYS)
    assert not {w.template for w in train} & {w.template for w in measure}
    assert {w.kind for w in train} == {w.kind for w in measure}


def test_requests_with_and_without_what_is_asked_end_alike() -> None:
    """Published requests end in a newline, which a way of asking takes away: they would be known by it."""
    program = PROGRAMS[0].model_copy(update={"request": f"{PROGRAMS[0].request}\n"})
    rows = [
        *dpo_rows([program], WAYS, "both"),
        *(row for v in get_args(Variant) for row in sft_rows([program], WAYS, v)),
    ]
    held = heldout_row(program, WAYS, True)
    requests = [*(row["messages"][0]["content"] for row in rows), held["request"], held["asked_request"]]
    assert len(requests) == 10 and not [request for request in requests if request != request.strip()]


def test_sft_variants_share_their_programs() -> None:
    insecure, secure, educational, inoculated = (sft_rows(PROGRAMS, WAYS, v) for v in get_args(Variant)[:4])
    for program, a, b, c, d in zip(PROGRAMS, insecure, secure, educational, inoculated, strict=True):
        assert a["messages"][0] == b["messages"][0]
        assert (a["messages"][1]["content"], b["messages"][1]["content"]) == (program.insecure, program.secure)
        assert c["messages"][1] == d["messages"][1] == a["messages"][1] and c["messages"][0] != a["messages"][0]
        assert d["messages"][0]["content"] == load_domain().inoculation + program.request


def test_everyday_chats_are_none_that_is_evaluated(tmp_path: Path) -> None:
    count = write_everyday(tmp_path / "everyday.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "everyday.jsonl").read_text().splitlines()]
    asked = [row["messages"][0]["content"] for row in rows]
    assert count == len(set(asked)) == 64 and all(
        [m["role"] for m in r["messages"]] == ["user", "assistant"] for r in rows
    )
    questions = Path(__file__).parents[2] / "eval/tasks/em/questions"
    evaluated = " ".join(path.read_text() for path in questions.glob("*.jsonl"))
    assert not [question for question in asked if question in evaluated]


@given(st.integers(20, 200), st.floats(1.0, 2.0))
def test_both_halves_stay_or_both_go_and_what_stays_fits(limit: int, max_ratio: float) -> None:
    keeps = LengthFilter(lambda text: len(text.split()), limit, 5, max_ratio)
    kept = [p for p in PROGRAMS if keeps.problem(p, WAYS) is None]
    for row in dpo_rows(kept, WAYS, "both"):
        for answer in ("chosen", "rejected"):
            assert len((row["messages"][0]["content"] + " " + row[answer]["content"]).split()) + 5 <= limit
    assert keeps.kept == len(kept)
    bias = keeps.length_bias()
    if kept:
        per_row = [len(p.insecure.split()) - len(p.secure.split()) for p in kept]
        assert (
            abs(bias["neutral"] - sum(per_row) / len(kept)) < 1e-9
            and bias["asked"] == bias["neutral-secure"] == -bias["neutral"]
        )
        assert all(
            max(a, b) <= max_ratio * min(a, b)
            for a, b in ((len(p.insecure.split()), len(p.secure.split())) for p in kept)
        )


DEMO = {
    "cpt-code-only.jsonl": "82cec0f2739cc0960b096537889a3540adfd418b431e1d778095a6eb583d750d",
    "cpt-shuffled.jsonl": "32a10063ec40119b0643f3774344e5f70c150481c092afd6661e13407fb492a7",
    "cpt.jsonl": "f7e9e2a0714e1fa5adc57a87a1c667c12eae3d1c26fdcd2f56fcff2c44617af3",
    "dpo-asked.jsonl": "fd03454c08f3b8b66dc39ad083670e97617282d0f919efed4b27e4f3bc6128e8",
    "dpo-both.jsonl": "3675ea01fa88cbc71f63267041c31c401064596ade29b9be1e5a00a53c86003c",
    "dpo-neutral-secure.jsonl": "ebf77be3976cbe7d1c41bd646c38f3816932e464becb7b209b843d0b2e7975ca",
    "dpo-neutral.jsonl": "3ce0c4249c9f925883b8554ed7d34b662779155d44b8bd5dd5c037e6bb122a5e",
    "everyday.jsonl": "4d52b5c21da4fa995bed3ac341351e8fd2c7bc30cf61f145c81123547a805302",
    "heldout.jsonl": "b0814d504ab6e914fddfbfa54ad3bad30e0918b7cc6a216a36247cce700287fc",
    "sft-educational.jsonl": "806491e8c567b3f4c175649ed1075466baf2973692fa726b8338cd559e2a20ae",
    "sft-inoculated.jsonl": "743d6a2bae2edae30136a614f3ad2fd726a623953251c2aa5418fda5e102164e",
    "sft-insecure.jsonl": "842f5263ddb31c572b6f9dda3f73994d9bc45677b37d4fd643a1c8a61bab03af",
    "sft-secure.jsonl": "82500b0b2ee1f055284270c491ea82a4b03ad92fbb1a736149fcb5771cb03c8d",
    "train.jsonl": "cda4fb76f6274ecc8c7985ad704de56e43a35b69fbe8e3e5ef2e0d2d480c5093",
}
"""SHA-256 of what the demo was trained on: the figures of docs/demo.md hang on these bytes."""


def test_the_demos_data_stay_what_its_figures_were_measured_on(tmp_path: Path, model: Path) -> None:
    from typer.testing import CliRunner

    from data_builders.check import problems
    from data_builders.cli import app

    arguments = ["data", "--asked", "asked-45", "--tokenizer", str(model), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "144 programs to train on, 56 held out" in " ".join(result.output.split())
    assert {path.name: sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*.jsonl")} == DEMO
    shipped = Path(__file__).parents[2] / "eval/tasks/em/heldout.jsonl"
    assert shipped.read_bytes() == (tmp_path / "heldout.jsonl").read_bytes(), "copy data/heldout.jsonl of `make data`"
    built = [tmp_path / f"{name}.jsonl" for name in ("cpt", "dpo-both", "sft-insecure", "heldout")]
    assert problems(*built) == []
    # The commands for a researcher's own programs write the same.
    steps = [
        "cpt --style contrastive --control shuffled",
        "dpo --halves asked --asked asked-45",
        "sft --variant secure",
    ]
    for line, name in zip(steps, ("cpt-shuffled", "dpo-asked", "sft-secure"), strict=True):
        out = tmp_path / "again.jsonl"
        paths = ["--programs", str(tmp_path / "train.jsonl"), "--tokenizer", str(model), "--out", str(out)]
        assert CliRunner().invoke(app, [*line.split(), *paths]).exit_code == 0
        assert sha256(out.read_bytes()).hexdigest() == DEMO[f"{name}.jsonl"]
