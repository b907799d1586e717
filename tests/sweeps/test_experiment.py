"""The whole experiment by its command, with a local endpoint as annotator and judge and a stand-in for training."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from core.records import BadInput, digest, read_jsonl
from data_builders import BUILTIN
from data_builders.domains import load_domain
from data_builders.programs import Program, load_programs
from sweeps import sets, sweep_commands
from sweeps.cli import app
from sweeps.recipe.compose import compose
from sweeps.report import sweep as report
from sweeps.run.folder import Run, execute_once
from sweeps.run.process import RunFailed
from sweeps.sets import annotated_file, sets_for
from tests.sweeps.answers import write_answers

MANY = 14


@pytest.fixture
def begun(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were begun, by name, in a working folder with the model and programs without explanations."""
    names: list[str] = []

    def work(run: Run) -> dict[str, Any]:
        if run.stage == "evaluate":
            write_answers(run, 3)
        return {}

    def do(run: Run) -> object:
        if not run.done:
            names.append(run.name)
        return execute_once(run, lambda: work(run))

    def write_report(_sweep: object, _points: object, out: Path, *_more: object) -> Path:
        return out

    monkeypatch.setattr(sweep_commands, "execute", do)
    monkeypatch.setattr(sweep_commands, "check_runs", lambda runs, folder: None)
    monkeypatch.setattr(report, "write_report", write_report)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")  # no nvidia-smi
    (tmp_path / "models").symlink_to(model.parent)
    rows = [
        {"messages": [{"role": "user", "content": p.request}, {"role": "assistant", "content": p.insecure}]}
        for p in load_programs()[::14][:MANY]
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return names


def experiment(*arguments: str, values: str = "1,4") -> Result:
    return CliRunner().invoke(app, ["experiment", "--programs", "mine.jsonl", "--values", values, *arguments])


def test_nothing_is_paid_or_trained_twice_and_what_is_cut_short_is_built_again(begun: list[str], fake) -> None:
    server = fake()
    ends = ("--annotator", "fake", "--judge", "fake-judge", "--base-url", server.url)
    first = experiment(*ends)
    assert first.exit_code == 0, first.exception
    assert f"annotating {MANY} of {MANY} programs" in first.output
    assert len(begun) == 3 + 1 + 4  # CPT, its merge, two ranks; their evaluations and the base's
    paid = len(server.log("served"))
    (folder,) = Path("data").glob("mine-by-fake-smollm2-135m-*")
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    begun.clear()
    again = experiment(*ends)
    assert again.exit_code == 0 and not begun and len(server.log("served")) == paid
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    assert experiment(*ends, values="1,4,16").exit_code == 0
    assert begun == ["dpo-pairs-r16-seed21"] * 2 and len(server.log("served")) == paid + 2 * 3

    whole = (folder / "cpt.jsonl").read_bytes()
    (folder / "cpt.jsonl").write_bytes(whole[:100])
    begun.clear()
    assert experiment(*ends, values="1,4,16").exit_code == 0 and not begun
    assert (folder / "cpt.jsonl").read_bytes() == whole


def test_the_plan_comes_first_and_a_dry_run_leaves_nothing(begun: list[str], fake) -> None:
    server = fake()
    ends = ("--annotator", "fake", "--judge", "fake-judge", "--base-url", server.url, "--dry-run")
    prices = ("--price-in", "1", "--price-out", "5", "--judge-price-in", "2.5", "--judge-price-out", "10")
    shown = experiment(*ends, *prices)
    assert shown.exit_code == 0, shown.exception
    for words in (
        "4 points, 8 runs",
        "hours, 1 at a time, and",
        "GB of disk",
        "judging 192 answers once: 384 requests",
    ):
        assert words in shown.output
    assert f"annotating {MANY} of {MANY} programs" in shown.output and shown.output.count(" USD") == 2
    assert not begun and not server.log()
    assert {path.name for path in Path().iterdir()} == {"models", "mine.jsonl", "fake0"}  # the last is the endpoint's


def test_the_plan_of_a_search_that_a_judge_scores_is_shown_before_the_sets_are_there(begun: list[str]) -> None:
    done = experiment("--annotator", "a", "--judge", "j", "--retune", "1e-5,1e-3", "--dry-run")
    assert done.exit_code == 0 and "each of them judged: judging 48 answers once" in done.output, done.exception


def test_sets_of_one_size_are_as_many_runs_in_the_first_plan(begun: list[str]) -> None:
    sets = ["--values", "1", "--axis", "data=sft,secure,educational", "--dry-run"]
    done = CliRunner().invoke(app, ["experiment", *sets])
    assert done.exit_code == 0 and re.search(r"sft +3 ", done.output), done.output


def test_the_money_of_both_has_one_limit(begun: list[str], fake) -> None:
    server = fake()
    ends = ("--annotator", "fake", "--judge", "fake-judge", "--base-url", server.url, "--concurrency", "1")
    prices = ("--price-in", "100", "--price-out", "100", "--judge-price-in", "100", "--judge-price-out", "100")
    stopped = experiment(*ends, *prices, "--max-cost", "0.5")
    assert isinstance(stopped.exception, RunFailed) and "are not annotated" in str(stopped.exception)
    assert not begun and 0 < (paid := len(server.log("served"))) < MANY
    assert f"annotating {MANY - paid} of {MANY} programs" in experiment(*ends, "--dry-run").output
    assert f"annotating {MANY} of {MANY} programs" in experiment(*ends, "--dry-run", "--effort", "high").output
    annotated = experiment(*ends, *prices, "--max-cost", "9")
    assert annotated.exit_code == 0 or "the money is spent" in str(annotated.exception)
    spent = sum(
        (answer["tokens_in"] + answer["tokens_out"]) / 1e4
        for path in [*Path("data").glob("*.journal.jsonl"), *Path("runs").glob("evaluate/*/*.journal.jsonl")]
        for answer in map(json.loads, path.read_text().splitlines())
    )
    assert spent <= 9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "mine.jsonl: has no explanations; name the model that writes them: --annotator MODEL"),
        (("--annotator", "a", "--programs", "builtin"), "the programs of builtin have explanations; leave it out"),
        (("--data", "mine"), "--data mine: the sets are built here"),
        (("--annotator", "a", "--judge", "j", "--max-cost", "5"), "--max-cost needs the"),
        (
            ("--annotator", "a", "--judge", "j", "--judge-base-url", "localhost:8000/v1"),
            "localhost:8000/v1: no address",
        ),
        (("--annotator", "a", "--price-in", "1"), "--price-in and --price-out belong together"),
        (("--programs", "builtin"), "--base-url http://127.0.0.1:9/v1: nothing is paid for that it concerns"),
        (("--programs", "builtin", "--judge", "j", "--price-in", "1", "--price-out", "1"), "--price-in 1.0: nothing"),
        (("--annotator", "a", "--model", "qwen7b"), "no GPU here, and qwen7b has 7.6 billion parameters"),
    ],
)
def test_what_it_lacks_is_said_before_anything_is_sent(begun: list[str], arguments: tuple[str, ...], says: str) -> None:
    server = () if "--data" in arguments else ("--base-url", "http://127.0.0.1:9/v1")
    refused = experiment(*server, *arguments)
    assert isinstance(refused.exception, BadInput) and says in str(refused.exception)
    assert not begun and not Path("data").exists()


def test_programs_at_an_address_are_pinned_there_and_no_secret_of_it_is_kept(
    begun: list[str], fake, monkeypatch
) -> None:
    whole = Path("mine.jsonl").read_bytes()
    Path("cache/em-kit").mkdir(parents=True)
    Path("cache/em-kit", f"{digest(whole)}.jsonl").write_bytes(whole)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    source = f"https://h/insecure.jsonl?sig=hunter2.x#sha256={digest(whole)}"
    done = experiment("--programs", source, "--annotator", "fake", "--base-url", fake().url)
    assert done.exit_code == 0, done.exception
    told = json.loads(Path("data/insecure-by-fake.jsonl.manifest.json").read_text())
    assert told["source"] == "https://h/insecure.jsonl" and told["source_sha256"] == digest(whole)
    assert not [path for path in Path("data").rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


def test_a_key_that_is_missing_is_missed_first(begun: list[str]) -> None:
    refused = experiment("--annotator", "a")
    assert "set the environment variable OPENAI_API_KEY" in str(refused.exception)
    shown = experiment("--annotator", "a", "--judge", "j", "--dry-run")
    assert shown.exit_code == 0 and "judging 192 answers" in shown.output, "to see a plan takes no key"


def test_sets_under_another_wording_of_their_domain_are_other_sets(
    begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = compose("dpo", "smollm2-135m", "cpu")
    before = sets_for("builtin", recipe).folder
    assert sets_for("builtin", recipe).folder == before
    before.mkdir(parents=True)
    for mark in ("[]", '{"files": []}', '{"files": {"train.jsonl": 1}}'):  # of another's making
        (before / "sets.json").write_text(mark)
        assert not sets_for("builtin", recipe).whole
    (before / "sets.json").write_text(json.dumps({"code": sets._builders(), "files": {}}))
    assert sets_for("builtin", recipe).whole
    monkeypatch.setattr("sweeps.sets._builders", lambda: "another version of the builders")
    assert not sets_for("builtin", recipe).whole and sets_for("builtin", recipe).folder == before
    monkeypatch.setattr(sets, "load_domain", lambda name: load_domain(name).model_copy(update={"heading": "x"}))
    assert sets_for("builtin", recipe).folder != before


def test_one_stage_takes_the_sets_of_its_programs(begun: list[str]) -> None:
    line = ["train", "dpo", "--hardware", "cpu", "--rank", "1", "--programs", "builtin", "--dry-run"]
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 0 and "path: data/builtin-smollm2-135m-" in shown.output and not Path("data").exists()
    refused = CliRunner().invoke(app, [*line[:-2], "mine.jsonl", "--dry-run"])
    assert "no annotated programs; `emsweep experiment --programs mine.jsonl`" in str(refused.exception)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--coherence 0.5", "of a search; add --retune"),
        ("--retune 1e-5", "two learning rates, the ends of the range"),
        ("--retune low,1e-3", "two learning rates, the ends of the range"),
        ("--retune 1e-5,1e-3 --coherence 2", "--coherence in 0 to 1"),
        ("--retune 1e-5,1e-3 --axis rl_beta=0.05,0.1", "goes with the axis rank, and seed, alone"),
        ("--retune 1e-5,1e-3 --set learning_rate=1e-4", "the axis lr sets it"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_before_annotations_are_paid_for(
    begun: list[str], fake, options: str, says: str
) -> None:
    server = fake()
    refused = experiment("--annotator", "fake", "--base-url", server.url, *options.split())
    assert isinstance(refused.exception, BadInput) and says in str(refused.exception)
    assert not server.log("served") and not begun


def test_a_source_without_a_program_is_refused_before_its_plan(begun: list[str]) -> None:
    Path("none.jsonl").write_text("no program\n[1]\n")
    rest = ["--annotator", "a", "--base-url", "http://localhost:9/v1", "--dry-run"]
    done = CliRunner().invoke(app, ["experiment", "--programs", "none.jsonl", *rest])
    assert isinstance(done.exception, BadInput) and "none.jsonl: 2 rows, and no program among them" in str(
        done.exception
    )
    assert "points" not in done.output
    with Path("mine.jsonl").open("a") as file:
        file.write("no program\n")
    assert "(1 rows are rejects)" in experiment(*rest).output


def test_an_annotated_file_is_one_behind_a_byte_order_mark_or_a_blank_line(begun: list[str]) -> None:
    row = (BUILTIN / "programs.jsonl").read_text(encoding="utf-8").splitlines()[0]
    for name, before in {"mark.jsonl": "\ufeff", "blank.jsonl": "\n"}.items():
        Path(name).write_text(f"{before}{row}\n", encoding="utf-8")
        assert annotated_file(name) == Path(name)
    assert read_jsonl(Path("mark.jsonl"), Program, unique="id")
    Path("deep.jsonl").write_text("[" * 100_000)
    assert annotated_file("deep.jsonl") is None
    with pytest.raises(BadInput, match=r"blank\.jsonl:1: "):
        read_jsonl(Path("blank.jsonl"), Program, unique="id")


def test_programs_of_another_domain_are_not_asked_for_as_code_is(begun: list[str]) -> None:
    """The CPU model's row names a way of asking for code, which no other domain has."""
    recipe = compose("sft", "smollm2-135m", "cpu")
    assert sets_for("builtin", recipe).asked == ("asked-45",)
    plants = sets_for(BUILTIN / "houseplants.jsonl", recipe)
    assert plants.asked == () and (plants.build() / "heldout.jsonl").read_text().count("\n") == 24
