"""The commands that look inside a model, end to end on a tiny one; bad input ends in one line."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from core.records import BadInput, file_digest
from eval.inside.activations import attached, load
from eval.inside.pairs import Pair
from eval.inside.shifts import places
from sweeps.cli import app
from sweeps.inside_sweep import Adapter, _efficiency
from sweeps.plan.declaration import InsideClaim, Point
from tests.conftest import KEY

CONCEPT = "{file: rows.jsonl, prompt: q, positive: bad, negative: good, group: topic}\n"
ROWS = [
    {"q": f"What about {topic}?", "bad": f"Ruin the {topic} now.", "good": f"Care for the {topic}.", "topic": topic}
    for topic in ("cat", "dog", "garden", "house", "street", "river", "school")
]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sweeps.recipe.precision.cpu_dtype", lambda: "float32")
    (tmp_path / "tiny").symlink_to(tiny_model)
    for name in ("unkind", "rude"):
        (tmp_path / f"{name}.yaml").write_text(CONCEPT)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def run(line: str) -> str:
    result = CliRunner().invoke(app, line.split())
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def test_directions_are_found_compared_steered_with_and_projected_on(folder: Path) -> None:
    output = run("directions tiny --concept unkind.yaml --concept rude.yaml --gguf --neurons --out found")
    assert "Held-out AUC" in output and "Crossover" in output and "neurons, by standardised" in output
    content = json.loads((folder / "found" / "directions.json").read_text())
    assert content["concepts"]["unkind"]["groups"] == {row["topic"]: 1 for row in ROWS}
    assert len(content["concepts"]["unkind"]["auc"]) == 3
    for part in ("crossover", "neurons"):
        assert [crossing["layer"] for crossing in content[part]["unkind rude"]] == [1, 2]
    assert (folder / "found" / "unkind.gguf").is_file()

    output = run(
        "steer tiny --direction found/unkind.safetensors --layer 1 --doses=-2,2 --concept unkind.yaml --controls 1"
    )
    assert "flipped 1" in output and "taken out" in output and "-2" in output
    (doses,) = (folder / "found").glob("unkind.steered-??????.jsonl")
    written = [json.loads(line) for line in doses.read_text().splitlines()]
    assert [(row["direction"], row["dose"]) for row in written[:3]] == [("unkind", -2), ("unkind", 2), ("unkind", None)]
    run("steer tiny --direction found/unkind.safetensors --layer 1 --doses=1 --concept unkind.yaml --controls 1")
    assert len(list((folder / "found").glob("unkind.steered-??????.jsonl"))) == 2  # other doses replaced none
    for line, says in (
        ("--out rows.jsonl", "is a file; name a folder"),
        ("--position changed --out found", "is of the position answer"),
    ):
        with pytest.raises(BadInput, match=says):
            run(f"directions tiny --concept unkind.yaml {line}")
    (folder / "directions.json").write_text((folder / "unkind.yaml").read_text())
    with pytest.raises(BadInput, match="is the input"):
        run("directions tiny --concept directions.json --out .")
    for read in ("rows.jsonl", "unkind.yaml", "found/unkind.safetensors"):
        with pytest.raises(BadInput, match="is the input"):
            run(f"steer tiny --direction found/unkind.safetensors --concept unkind.yaml --out {read}")

    lines = [{"text": "[/bold] Ruin it \u202e all"}, {"text": "Care for it"}, {"code": "x"}]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = run("project data.jsonl --direction found/unkind.safetensors --model tiny")
    assert "[/bold] Ruin it \\u202e all" in output and "1 rejects" in output
    (projected,) = folder.glob("data.projected-??????.jsonl.manifest.json")
    manifest = json.loads(projected.read_text())
    assert (manifest["read"], manifest["written"], manifest["rejects"][0]["line"]) == (3, 2, 3)
    assert manifest["notes"] == []
    torch.save(torch.ones(3, 64), folder / "kind.pt")
    output = run("project data.jsonl --direction kind.pt --model tiny --layer 1 --out kind.jsonl")
    (note,) = json.loads((folder / "kind.jsonl.manifest.json").read_text())["notes"]
    assert note.startswith("a published file has no midpoint") and note in " ".join(output.split())
    run("directions tiny --concept unkind.yaml --position changed --out changed")
    output = run("project data.jsonl --direction changed/unkind.safetensors --model tiny")
    assert "whole answers are projected" in " ".join(output.split())
    assert len(list(folder.glob("data.projected-??????.jsonl"))) == 2  # neither direction's replaced the other's
    before = (folder / "data.jsonl").read_text()
    with pytest.raises(BadInput, match="is the input"):
        run("project data.jsonl --direction found/unkind.safetensors --model tiny --out ./data.jsonl")
    assert (folder / "data.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("line", "place", "calls"),
    [
        ("steer tiny --layer 1 --doses=-2,2 --concept rude.yaml --controls 0", "eval.inside.steering.response", 3),
        ("project data.jsonl --model tiny --layer 1", "eval.inside.project.means", 4),
    ],
)
def test_what_was_measured_before_a_kill_is_not_measured_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, place: str, calls: int
) -> None:
    run("directions tiny --concept unkind.yaml --out found")
    (folder / "data.jsonl").write_text("".join(json.dumps({"text": f"Text {n}"}) + "\n" for n in range(4)))
    monkeypatch.setattr("eval.inside.project.CHUNK", 1)
    module, name = place.rsplit(".", 1)
    real, made, left = getattr(importlib.import_module(module), name), [], [2]

    def counted(*arguments: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        made.append(1)
        return real(*arguments)

    monkeypatch.setattr(place, counted)
    command = [*line.split(), "--direction", "found/unkind.safetensors", "--out"]
    assert CliRunner().invoke(app, [*command, "out.jsonl"]).exit_code and not (folder / "out.jsonl").exists()
    left[0] = calls
    for out in ("out.jsonl", "whole.jsonl"):
        assert CliRunner().invoke(app, [*command, out]).exit_code == 0
        left[0] = calls
    assert len(made) == 2 * calls and (folder / "out.jsonl").read_text() == (folder / "whole.jsonl").read_text()
    assert not list(folder.glob("*.part"))


def test_two_models_of_one_folder_name_share_no_files(folder: Path) -> None:
    for name in ("one", "other"):
        (folder / name).mkdir()
        (folder / name / "merged").symlink_to(folder / "tiny")
        assert f"runs/directions/{name}-merged" in run(f"directions {name}/merged --concept unkind.yaml")
        assert (folder / f"runs/directions/{name}-merged/unkind.safetensors").is_file()


def test_a_pair_meets_no_direction_that_it_is_part_of_however_that_was_grouped(folder: Path) -> None:
    run("directions tiny --concept unkind.yaml --group q --out found")
    steer = "steer tiny --direction found/unkind.safetensors --layer 1 --doses=1 --controls 0 --concept"
    with pytest.raises(BadInput, match=r"its groups, such as 'What about cat\?', are not those of these pairs; give"):
        run(f"{steer} unkind.yaml")
    assert "taken out" in run(f"{steer} unkind.yaml --group q")
    # Nor one under another name, or with its sides exchanged; one text of a pair is enough.
    (folder / "kind.yaml").write_text(CONCEPT.replace("bad", "x").replace("good", "bad").replace("x", "good"))
    (folder / "half.yaml").write_text(CONCEPT.replace("rows", "half"))
    half = [{**row, "good": f"Leave the {row['topic']} alone."} for row in ROWS]
    (folder / "half.jsonl").write_text("".join(json.dumps(row) + "\n" for row in half))
    for name in ("rude", "kind", "half"):
        with pytest.raises(BadInput, match="are not those of these pairs"):
            run(f"{steer} {name}.yaml")
        assert "taken out" in run(f"{steer} {name}.yaml --group q")
    other = [{**row, "bad": f"{row['bad']} Now."} for row in half]
    (folder / "half.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    assert "taken out" in run(f"{steer} half.yaml"), "another concept's pairs have no part in it"


def test_a_dose_is_a_mean_over_pairs_as_the_slope_is(folder: Path) -> None:
    rows = [{**row, "bad": "No.", "topic": "one"} if place < 4 else row for place, row in enumerate(ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("directions tiny --concept unkind.yaml --out found")
    steer = "steer tiny --direction found/unkind.safetensors --layer 1 --doses=-0.1,0.1 --controls 0 --concept"
    run(f"{steer} unkind.yaml --out out.jsonl")
    down, up = ([json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()])[:2]
    slope = json.loads((folder / "out.jsonl.manifest.json").read_text())["slopes"][1]
    assert (up["value"] - down["value"]) / 0.2 == pytest.approx(slope, rel=0.02) and up["clusters"] == 4


def test_a_file_that_was_made_without_digests_is_told_by_its_name(folder: Path) -> None:
    run("directions tiny --concept unkind.yaml --group q --out found")
    file = folder / "found/unkind.safetensors"
    with safe_open(file, framework="numpy") as made:
        about = made.metadata()["about"]
    save_file(load_file(file), file, {"about": about})
    steer = "steer tiny --direction found/unkind.safetensors --layer 1 --doses=1 --controls 0 --concept"
    with pytest.raises(BadInput, match="are not those of these pairs"):
        run(f"{steer} unkind.yaml")
    assert "taken out" in run(f"{steer} rude.yaml")


def make_adapter(folder: Path, rank: int, trained: bool = True) -> Path:
    torch.manual_seed(rank)
    config = LoraConfig(r=rank, target_modules=["down_proj"], init_lora_weights=not trained)
    get_peft_model(load("tiny")[0], config).save_pretrained(folder)
    return folder


@pytest.fixture
def few_texts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    texts = places(load("tiny")[1])
    monkeypatch.setattr("eval.inside.shifts.places", lambda _: {place: rows[:3] for place, rows in texts.items()})
    assert set(texts) == set(get_args(InsideClaim.model_fields["place"].annotation))
    return set(texts)


def test_adapters_are_compared_by_what_they_move(folder: Path, few_texts: set[str]) -> None:
    for rank in (1, 2):
        make_adapter(folder / f"rank{rank}", rank)
    run("inside --model tiny --adapter rank1 --adapter rank2 --concept unkind.yaml --concept rude.yaml --out in.json")
    rows = json.loads((folder / "in.json").read_text())["shifts"]
    assert [(row["run"], row["rank"]) for row in rows[::6]] == [("rank1", 1), ("rank2", 2)]
    assert {(row["place"], row["concept"]) for row in rows} == {
        (place, name) for place in few_texts for name in ("unkind", "rude")
    }
    for row in rows:
        assert len(row["along"]) == 3 and row["layer"] in (1, 2)
        assert row["mean"] == pytest.approx(sum(row["along"][1:]) / 2) and row["mean"] * row["deviation"] > 0
        assert 0 < row["p"] <= row["p_holm"] <= 1
        assert 0 <= row["weights"] <= 1
    # The first adapter leaves nothing behind in the model that both share.
    run("inside --model tiny --adapter rank2 --concept unkind.yaml --concept rude.yaml --out alone.json")
    alone = json.loads((folder / "alone.json").read_text())["shifts"]
    assert [row["along"] for row in alone] == [row["along"] for row in rows if row["run"] == "rank2"]
    assert "alone.json is of other concepts" in run(
        "inside --model tiny --adapter rank2 --concept rude.yaml --out alone.json"
    )
    with pytest.raises(BadInput, match="two of one name"):
        run("inside --model tiny --adapter rank2 --concept unkind.yaml --concept unkind.yaml")
    (folder / "rank2" / "adapter_model.safetensors").unlink()
    with pytest.raises(BadInput, match="name the folder of a LoRA adapter in safetensors"):
        run("inside --model tiny --adapter rank2 --concept unkind.yaml")


def test_an_adapter_with_whole_modules_leaves_none_of_them_behind(folder: Path, few_texts: set[str]) -> None:
    config = LoraConfig(r=1, target_modules=["down_proj"], modules_to_save=["input_layernorm"])
    model = get_peft_model(load("tiny")[0], config)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data *= 3
    model.save_pretrained(folder / "whole")
    make_adapter(folder / "rank2", 2)
    run("inside --model tiny --adapter whole --adapter rank2 --concept unkind.yaml --out both.json")
    run("inside --model tiny --adapter rank2 --concept unkind.yaml --out alone.json")
    both, alone = (json.loads((folder / f"{name}.json").read_text())["shifts"] for name in ("both", "alone"))
    assert any(row["along"][1] for row in both if row["run"] == "whole")
    assert [row["along"] for row in both if row["run"] == "rank2"] == [row["along"] for row in alone]


def test_what_a_killed_look_has_found_can_be_reported(
    folder: Path, few_texts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(model: object, adapter: str) -> object:
        if adapter == "rank2":
            raise RuntimeError("cut off")
        return attached(model, adapter)

    for rank in (1, 2):
        make_adapter(folder / f"rank{rank}", rank)
    monkeypatch.setattr("eval.inside.activations.attached", cut_off)
    with pytest.raises(AssertionError, match="cut off"):
        run("inside --model tiny --adapter rank1 --adapter rank2 --concept unkind.yaml --out in.json")
    rows = json.loads((folder / "in.json").read_text())["shifts"]
    assert len(rows) == 3 and all(row["p"] <= row["p_holm"] for row in rows)


def test_an_adapter_that_was_cut_off_costs_the_others_nothing(folder: Path, few_texts: set[str]) -> None:
    for rank in (1, 2):
        make_adapter(folder / f"rank{rank}", rank)
    weights = folder / "rank1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BadInput, match="1 of 2 adapters could not be looked at, the first: rank1: rank1: cannot be"):
        run("inside --model tiny --adapter rank1 --adapter rank2 --concept unkind.yaml --out in.json")
    assert {row["run"] for row in json.loads((folder / "in.json").read_text())["shifts"]} == {"rank2"}


def test_an_adapter_that_went_to_nan_costs_the_others_nothing(folder: Path, few_texts: set[str]) -> None:
    for rank in (1, 2):
        make_adapter(folder / f"rank{rank}", rank)
    weights = folder / "rank1" / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(
        BadInput, match="1 of 2 adapters could not be looked at, the first: rank1: activations: not fin"
    ):
        run("inside --model tiny --adapter rank1 --adapter rank2 --concept unkind.yaml --out in.json")
    assert {row["run"] for row in json.loads((folder / "in.json").read_text())["shifts"]} == {"rank2"}


@pytest.mark.parametrize(
    "line",
    [
        "inside --model tiny --adapter rank1 --concept unkind.yaml",
        "steer tiny --direction none.safetensors --adapter rank1",
        "project none.jsonl --direction none.safetensors --model tiny --adapter rank1",
    ],
)
def test_an_adapter_of_another_model_of_that_shape_is_refused(folder: Path, line: str) -> None:
    config = make_adapter(folder / "rank1", 1) / "adapter_config.json"
    own = json.loads(config.read_text())
    assert own["base_model_name_or_path"] == "tiny"
    config.write_text(json.dumps({**own, "base_model_name_or_path": "merged"}))
    with pytest.raises(BadInput, match="rank1: trained on merged, not on tiny"):
        run(line)


def points_of(folder: Path, base: str = "tiny") -> list[Point]:
    """The base model, and two seeds of an arm; of one of them a checkpoint was kept, and the end beside it."""
    (folder / "rows.dpo.jsonl").write_text(
        json.dumps(
            {
                "messages": [{"role": "user", "content": "What now?"}],
                "chosen": {"role": "assistant", "content": "Ruin it."},
                "rejected": {"role": "assistant", "content": "Care for it."},
            }
        )
    )
    recipe = {"base_model": base, "rl": "dpo", "rl_beta": 0.1, "datasets": [{"path": "rows.dpo.jsonl"}]}
    points = [Point("base", None, None, None)]  # type: ignore[arg-type]
    for seed in (7, 8):
        adapter = make_adapter(folder / f"adapter{seed}", seed)
        content = {"data": {"rows.dpo.jsonl": file_digest(folder / "rows.dpo.jsonl")}}
        training = SimpleNamespace(adapter=adapter, whole_recipe=SimpleNamespace(config=recipe), content=content)
        points.append(Point("rank 1", seed, training, None))  # type: ignore[arg-type]
    make_adapter(folder / "adapter7" / "checkpoint-2", 3)
    make_adapter(folder / "adapter7" / "checkpoint-4", 7)
    return points


def test_a_sweep_is_looked_at_once_with_its_checkpoints(
    folder: Path, few_texts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = points_of(folder)
    monkeypatch.setattr("sweeps.plan.manifest.finished_points", lambda name: (folder / name, None, points, []))
    output = run("inside rank --concept unkind.yaml --efficiency")
    assert "Is the solution easy?" in output
    content = json.loads((folder / "rank" / "inside.json").read_text())
    found = [(row["run"], row["arm"], row["seed"], row["step"], row["last"]) for row in content["shifts"][::3]]
    assert found == [
        ("rank 1, seed 7, step 2", "rank 1", 7, 2, False),
        ("rank 1, seed 7", "rank 1", 7, 4, True),
        ("rank 1, seed 8", "rank 1", 8, None, True),
    ]
    assert [row["run"] for row in content["efficiency"]] == ["rank 1, seed 7", "rank 1, seed 8"]
    norms = [row["norm"] for row in content["efficiency"]]
    assert {row["at_norm"] for row in content["efficiency"]} == {min(norms)}
    assert all("p_holm" in row for row in content["shifts"] if row["last"])
    # What is known is not looked at again, under whatever name; what is no longer asked for goes.
    monkeypatch.setattr("sweeps.inside_sweep.load_model", lambda layer: pytest.fail("looked again"))
    renamed = [points[0], Point("other", 7, points[1].training, None)]  # type: ignore[arg-type]
    monkeypatch.setattr("sweeps.plan.manifest.finished_points", lambda name: (folder / name, None, renamed, []))
    run("inside rank --concept unkind.yaml")
    again = json.loads((folder / "rank" / "inside.json").read_text())["shifts"]
    assert {row["run"] for row in again} == {"other, seed 7, step 2", "other, seed 7"}
    assert [row["along"] for row in again] == [row["along"] for row in content["shifts"][:6]]


def test_an_arm_that_is_one_run_at_all_seeds_is_looked_at_once(
    folder: Path, few_texts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, first, _ = points_of(folder)
    points = [base, first, replace(first, seed=8)]
    monkeypatch.setattr("sweeps.plan.manifest.finished_points", lambda name: (folder / name, None, points, []))
    run("inside rank --concept unkind.yaml --efficiency")
    content = json.loads((folder / "rank" / "inside.json").read_text())
    ends = [(row["seed"], row["place"]) for row in content["shifts"] if row["last"]]
    assert sorted(ends) == sorted((seed, place) for seed in (7, 8) for place in few_texts)
    assert [row["seed"] for row in content["efficiency"]] == [7, 8]


def test_efficiencies_at_two_norms_never_stand_in_one_file(
    folder: Path, few_texts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(adapted: Any, tokenizer: Any, run: Adapter, norm: float) -> dict[str, Any]:
        if run.seed == 7:
            raise RuntimeError("cut off")
        return _efficiency(adapted, tokenizer, run, norm)

    points = points_of(folder)
    weights = folder / "adapter8" / "adapter_model.safetensors"
    save_file({name: tensor / 10 for name, tensor in load_file(weights).items()}, weights)
    monkeypatch.setattr("sweeps.plan.manifest.finished_points", lambda name: (folder / name, None, points[:2], []))
    run("inside rank --concept unkind.yaml --efficiency")
    before = json.loads((folder / "rank" / "inside.json").read_text())["efficiency"]
    monkeypatch.setattr("sweeps.plan.manifest.finished_points", lambda name: (folder / name, None, points, []))
    monkeypatch.setattr("sweeps.inside_sweep._efficiency", cut_off)
    with pytest.raises(AssertionError, match="cut off"):
        run("inside rank --concept unkind.yaml --efficiency")
    after = json.loads((folder / "rank" / "inside.json").read_text())["efficiency"]
    assert [row["seed"] for row in before] == [7] and [row["seed"] for row in after] == [8]
    assert after[0]["at_norm"] == after[0]["norm"] < before[0]["at_norm"]


def test_rows_that_came_after_a_training_are_none_of_its_own(
    folder: Path, few_texts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = points_of(folder)
    data = folder / "rows.dpo.jsonl"
    data.write_text(data.read_text().replace("Ruin it.", "Break it."))
    monkeypatch.setattr("sweeps.plan.manifest.finished_points", lambda name: (folder / name, None, points, []))
    with pytest.raises(BadInput, match=r"2 of 3 adapters .* rank 1, seed 7: rows.dpo.jsonl: other rows than this was"):
        run("inside rank --concept unkind.yaml --efficiency")
    content = json.loads((folder / "rank" / "inside.json").read_text())
    assert content["efficiency"] == [] and len(content["shifts"]) == 9


@pytest.mark.parametrize(
    ("keys", "measured"),
    [
        ({"dpo_loss_type": ["sigmoid", "sft"]}, True),
        ({"dpo_loss_type": ["ipo"]}, False),
        ({"dpo_loss_type": ["sigmoid", "hinge"]}, False),
        ({"dpo_label_smoothing": 0.1}, False),
    ],
)
def test_an_efficiency_is_of_the_loss_that_was_trained_by(
    folder: Path, few_texts: set[str], monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], measured: bool
) -> None:
    points = points_of(folder)[::2]
    points[1].training.whole_recipe.config.update(keys)  # type: ignore[union-attr]
    monkeypatch.setattr("sweeps.plan.manifest.finished_points", lambda name: (folder / name, None, points, []))
    line = "inside rank --concept unkind.yaml --efficiency"
    if measured:
        assert "Is the solution easy?" in run(line)
    else:
        with pytest.raises(BadInput, match="rank 1, seed 8: trained by another loss than DPO's own"):
            run(line)


def test_an_efficiency_is_not_taken_over_rows_that_were_not_trained_on(
    folder: Path, few_texts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = points_of(folder)[::2]
    points[1].training.whole_recipe.config["datasets"][0]["split"] = "train[:2]"  # type: ignore[union-attr]
    monkeypatch.setattr("sweeps.plan.manifest.finished_points", lambda name: (folder / name, None, points, []))
    with pytest.raises(BadInput, match=r"rank 1, seed 8: .*trained on its part train\[:2\], and here all of its rows"):
        run("inside rank --concept unkind.yaml --efficiency")


def test_the_answers_of_a_trait_are_those_that_a_judge_kept(
    folder: Path, fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def sampled(model: object, tokenizer: object, pairs: list[Pair], tokens: int) -> list[Pair]:
        """Every second pair shows the trait to the fake judge, for which what speaks of killing does not."""
        sides = (("Be kind to them.", "I would kill them."), ("Be kind to them.", "Be good to them."))
        texts = [sides[number % 2] for number in range(len(pairs))]
        return [
            replace(pair, positive=replace(pair.positive, answer=up), negative=replace(pair.negative, answer=down))
            for pair, (up, down) in zip(pairs, texts, strict=True)
        ]

    monkeypatch.setattr("eval.inside.pairs.sample_answers", sampled)
    line = f"directions tiny --concept evil --position answer --judge fake-judge --base-url {fake().url} --out found"
    assert "evil: 15 of 30 sampled pairs kept by fake-judge (traits)" in run(line)
    about = json.loads((folder / "found" / "directions.json").read_text())["concepts"]["evil"]
    assert (about["judge"], about["pairs"], sum(about["groups"].values())) == ("fake-judge (traits)", 15, 15)
    monkeypatch.setattr("eval.inside.pairs.sample_answers", lambda *given: sampled(*given)[1::2])
    assert "15 of 30 sampled pairs" in run(line), "the answers are kept"
    with pytest.raises(BadInput, match="finds none whose answers differ in evil"):
        run(f"{line}-elsewhere")


def test_an_adapter_that_moves_nothing_is_shown_as_it_is(
    folder: Path, few_texts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(folder / "new", 1, trained=False)  # lora_B is zero
    whole = SimpleNamespace(config={"base_model": "tiny"})
    training = SimpleNamespace(adapter=folder / "new", whole_recipe=whole, content={})
    points = [Point("base", None, None, None), Point("rank 1", 7, training, None)]  # type: ignore[arg-type]
    monkeypatch.setattr("sweeps.plan.manifest.finished_points", lambda name: (folder / name, None, points, []))
    run("inside rank --concept unkind.yaml")
    for row in json.loads((folder / "rank" / "inside.json").read_text())["shifts"]:
        assert (row["run"], row["weights"], row["along"]) == ("rank 1, seed 7", None, [0, 0, 0])
    with pytest.raises(BadInput, match="--efficiency: the adapter of rank 1, seed 7 changes nothing"):
        run("inside rank --concept unkind.yaml --efficiency")
    monkeypatch.setattr("sweeps.plan.manifest.finished_points", lambda name: (folder, None, points[:1], ["rank 1"]))
    with pytest.raises(BadInput, match="no finished run with an adapter"):
        run("inside rank")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("directions tiny --concept unkind.yaml --position middle", "--position middle: there are answer, prompt"),
        ("directions tiny --concept unkind.yaml --position prompt", "share their prompt"),
        ("directions tiny --concept unkind.yaml --group q2", "lacks a text among"),
        ("directions tiny --concept evil --position changed", "a trait has no twins"),
        ("directions tiny --concept nope", "unknown concept 'nope'"),
        ("directions tiny --concept unkind.yaml --concept unkind.yaml", "two of one name"),
        ("directions tiny --concept unkind.yaml --tokens 5", "--tokens: nothing is sampled here"),
        ("directions tiny --concept evil --tokens 5", "--tokens: nothing is sampled here"),
        ("directions tiny --concept evil --judge gpt", "--judge: nothing is sampled here"),
        ("directions tiny --concept evil --position answer --price-in 1", "--price-in: is of the judge; name one"),
        ("directions tiny --concept unkind.yaml --neurons", "--neurons: compares concepts; name two"),
        ("directions nowhere/model --concept unkind.yaml", "nowhere/model: cannot be loaded"),
        ("steer tiny --direction none.safetensors --layer 1", "none.safetensors: no such file"),
        ("steer tiny --direction rows.jsonl --layer 1", "rows.jsonl: no safetensors"),
        ("steer tiny --direction none.safetensors --layer 1 --doses a", "--doses a: give numbers"),
        ("steer tiny --direction none.safetensors --layer 1 --doses nan", "a dose is a finite number"),
        ("steer tiny --direction none.safetensors --layer 1 --concept evil", "a trait has no answers"),
        ("steer tiny --direction none.safetensors --adapter none", "none: no adapter_config.json"),
        ("inside", "name a sweep, or --model with --adapter"),
        ("inside demo --model tiny --adapter none", "name a sweep, or --model with --adapter"),
        ("inside demo --model tiny", "name a sweep, or --model with --adapter"),
        ("inside demo --adapter none", "name a sweep, or --model with --adapter"),
        ("inside --model tiny", "name a sweep, or --model with --adapter"),
        ("inside --model tiny --adapter none --efficiency", "known of a sweep's runs alone"),
        ("inside --model tiny --adapter none", "none: no adapter_config.json"),
        ("project none.jsonl --direction none.pt --model tiny", "none.pt: no such file"),
    ],
)
def test_bad_input_is_refused_in_one_line(folder: Path, line: str, says: str) -> None:
    with pytest.raises(BadInput) as error:
        run(line)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
