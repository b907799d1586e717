"""A whole sweep by its command, with stand-ins for training, evaluation and report; the search for a learning rate."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from core.records import BadInput
from eval.judge.judge import Judgement
from eval.judge.prompt_files import load_prompts
from sweeps import sweep_commands
from sweeps.cli import app
from sweeps.recipe.layers import RECIPES
from sweeps.report import sweep as report
from sweeps.run.folder import Run, TrainingRun, execute_once
from sweeps.run.process import RunFailed, locked
from sweeps.tune import learning_rate as tuning
from sweeps.tune.threshold import Trial
from tests.sweeps.answers import write_answers


@pytest.fixture
def begun(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were begun, by name; one whose name holds `-r4-` fails."""
    names: list[str] = []

    def do(run: Run) -> object:
        assert all(before.done for before in run.after)
        if not run.done:
            names.append(run.name)
        if "-r4-" in run.name and isinstance(run, TrainingRun):
            raise RunFailed("out of memory")
        return execute_once(run, lambda: answers(run) if run.stage == "evaluate" else {})

    def answers(run: Run) -> dict[str, str]:
        write_answers(run, 6)
        return {}

    def write_report(_sweep, points, out: Path, *_more) -> Path:
        out.mkdir(parents=True, exist_ok=True)
        (out / "arms").write_text(" ".join(point.arm for point in points))
        return out / "arms"

    monkeypatch.setattr(sweep_commands, "execute", do)
    monkeypatch.setattr(report, "write_report", write_report)
    return names


def emsweep(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_a_sweep_ends_with_what_could_be_done_and_the_list_of_what_could_not(begun: list[str]) -> None:
    done = emsweep("rank", "--values", "1,4,8")
    assert isinstance(done.exception, RunFailed)  # main() makes it exit code 1
    assert str(done.exception).startswith("1 runs failed, and 1 points are missing:\nruns/dpo/dpo-pairs-r4-seed21-")
    (arms,) = Path("runs/sweeps").glob("rank-smollm2-135m-*/arms")
    assert arms.read_text() == "base cpt-explained dpo-pairs-r1 dpo-pairs-r8"
    assert begun.count("dpo-pairs-r4-seed21") == 2 and len(begun) == 8 + 2  # tried twice, and never evaluated
    assert Path("runs/index.csv").read_text().count("\n") == 1 + 8
    begun.clear()
    emsweep("rank", "--values", "1,8,16")
    assert begun == ["dpo-pairs-r16-seed21"] * 2  # its training, its evaluation
    statuses = emsweep("status").output
    assert "dpo/dpo-pairs-r4-seed21" in statuses and "1 failed, 1 waiting, 10 done" in statuses


def test_a_sweep_ends_with_its_judge_and_keeps_to_its_money(
    begun: list[str], fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    refused = emsweep("rank", "--values", "1,8", "--judge", "fake-judge")
    assert "set the environment variable OPENAI_API_KEY" in str(refused.exception) and not begun  # before any training
    server = fake()
    declared = yaml.safe_load((RECIPES / "sweeps/rank.yaml").read_text())
    where = {"model": "fake-judge", "base_url": f"http://127.0.0.1:{server.port}/v1", "concurrency": 1}
    where |= {"price_in": 10.0, "price_out": 10.0, "max_cost": 0.05}
    Path("mine.yaml").write_text(yaml.safe_dump({**declared, "judge": where}))
    done = emsweep("rank", "--sweep", "mine.yaml", "--values", "1,8")
    assert "the money is spent" in str(done.exception)
    other = emsweep("plan", "mine.yaml", "--judge", "another")
    assert "USD" not in other.output and "USD" in emsweep("plan", "mine.yaml").output  # another model, other prices
    assert len(list(Path("runs/sweeps").glob("mine-*/arms"))) == 1  # the report is written all the same
    first = len(server.log("chat"))
    journals = list(Path("runs/evaluate").glob("*/judged-fake-judge.journal.jsonl"))
    judged = list(Path("runs/evaluate").glob("*/judged-fake-judge.jsonl"))
    assert 1 <= len(judged) <= len(journals) < 4
    Path("mine.yaml").write_text(yaml.safe_dump({**declared, "judge": {**where, "max_cost": 10.0}}))
    done = emsweep("rank", "--sweep", "mine.yaml", "--values", "1,8")
    assert done.exit_code == 0, done.exception
    assert len(list(Path("runs/evaluate").glob("*/judged-fake-judge.jsonl"))) == 4
    assert len(list(Path("runs/sweeps").glob("mine-*/arms"))) == 1  # the judge does not make it another sweep
    total = len(server.log("chat"))
    assert first < total and emsweep("rank", "--sweep", "mine.yaml", "--values", "1,8").exit_code == 0
    assert len(server.log("chat")) == total  # nothing is paid twice


def test_one_run_by_its_digest(begun: list[str]) -> None:
    manifest = Path(emsweep("export", "rank", "--axis", "rank=1").output.strip()).with_name("sweep.json")
    for run in json.loads(manifest.read_text())["runs"]:
        done = emsweep("exec", str(manifest), run["digest"][:12])
        assert done.exit_code == 0 and done.output.strip().endswith(run["digest"][:10])
    assert emsweep("plan", "rank", "--axis", "rank=1").output.count("6 runs done, 0 to do") == 1


def test_a_merge_that_is_half_deleted_does_not_count_as_done(begun: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert emsweep("rank", "--values", "1").exit_code == 0
    (merge,) = Path("runs/merge").iterdir()

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_commands.shutil, "rmtree", killed)
    assert emsweep("clean", "--yes").exit_code and merge.is_dir()
    assert not (merge / "run.json").exists()


def test_a_merge_behind_a_link_is_deleted_with_the_link(begun: list[str], tmp_path: Path) -> None:
    """Such as one that was moved to a larger disk."""
    assert emsweep("rank", "--values", "1").exit_code == 0
    (merge,) = Path("runs/merge").iterdir()
    moved = merge.rename(tmp_path / "moved")
    merge.symlink_to("gone")
    assert f"{merge}: kept, for it is a link that leads nowhere" in emsweep("clean", "--yes").output
    merge.unlink()
    merge.symlink_to(moved.resolve())
    Path("runs/merge/notes.txt").touch()
    cleaned = emsweep("clean", "--yes")
    assert cleaned.exit_code == 0 and "notes.txt: kept, for no planned sweep has it" in cleaned.output
    assert not moved.exists() and not merge.is_symlink()


def test_a_merge_that_is_at_work_or_that_a_run_by_hand_starts_from_is_kept(begun: list[str]) -> None:
    assert emsweep("rank", "--values", "1").exit_code == 0
    (merge,) = Path("runs/merge").iterdir()
    record = (merge / "run.json").read_bytes()
    (merge / "run.json").unlink()
    with locked(merge / ".lock"):
        emsweep("clean", "--yes")
    (merge / "run.json").write_bytes(record)
    by_hand = Path("runs/dpo/by-hand")
    by_hand.mkdir()
    (by_hand / "recipe.yaml").write_text(f"base_model: {merge.absolute() / 'merged'}\n")
    assert f"{merge}: kept, for {by_hand} starts from it and is not done" in emsweep("clean", "--yes").output
    assert merge.is_dir()
    (by_hand / "run.json").write_text("{}")
    evaluation = Path("runs/evaluate/merged-0123456789")
    evaluation.mkdir()
    with locked(evaluation / ".lock"):
        assert f"{merge}: kept, for {evaluation}, which no planned sweep has" in emsweep("clean", "--yes").output
    assert emsweep("clean", "--yes").exit_code == 0 and not merge.exists()


def coherence_with_edge(edge: Callable[[int], float]) -> Callable[[Path], Trial]:
    """Shares of 400 coherent answers to a run, by its name, that fall through 0.9 at the edge of its rank."""

    def coherence(folder: Path) -> Trial:
        name = json.loads((folder / "run.json").read_text())["name"]
        rank, lr = re.fullmatch(r"dpo-pairs(?:-r(\d+))?-lr([\d.e-]+)-seed\d+", name).groups()
        share = 0.98 / (1 + 0.08 / 0.9 * (float(lr) / edge(int(rank or 0))) ** 6)
        return Trial(0.0, np.random.default_rng(len(name)).binomial(400, share) / 400, 400)

    return coherence


@pytest.mark.parametrize(
    ("command", "plan"),
    [
        ("lr --search --values 1e-5,1e-3", "one trial, of dpo-pairs-lr1e-5: "),
        ("rank --values 1,64 --retune 1e-5,1e-3", " points, "),
    ],
)
def test_a_search_is_shown_and_not_begun_by_dry_run(begun: list[str], command: str, plan: str) -> None:
    done = emsweep(*command.split(), "--dry-run")
    assert done.exit_code == 0 and done.output.index(plan) < done.output.index("the search: up to 12 more runs")
    judged = emsweep(*command.split(), "--dry-run", "--judge", "m", "--set", "max_steps=2")
    assert "each of them judged: judging 48 answers once" in judged.output, judged.exception
    assert not begun and not list(Path("runs").glob("dpo/*/run.json"))


def test_a_rate_that_recurs_is_another_seed_of_the_arm_alone(begun: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_commands, "unbroken", coherence_with_edge(lambda rank: 1e-2))
    assert emsweep("lr", "--search", "--values", "1e-4,1e-3", "--most", "3").exit_code == 0  # runs into the upper end
    records = [json.loads(path.read_text()) for path in Path("runs/dpo").glob("*/run.json")]
    assert len(list(Path("runs/cpt").iterdir())) == 1
    by_rate: dict[float, list[int]] = {}
    for record in records:
        by_rate.setdefault(record["content"]["recipe"]["learning_rate"], []).append(record["content"]["recipe"]["seed"])
    assert len(records) == 3 and sorted(max(by_rate.values(), key=len)) == [21, 22]


def test_the_search_trains_the_first_arm_that_varies_until_the_edge_is_sharp(
    begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = 2e-3
    monkeypatch.setattr(sweep_commands, "unbroken", coherence_with_edge(lambda rank: edge))
    done = emsweep("lr", "--search", "--values", "1e-5,1e-1", "--coherence", "0.9", "--sharpness", "0.1")
    assert done.exit_code == 0, done.exception
    found = float(done.output.split("answers are coherent: ")[-1].split()[0])
    assert abs(np.log(found / edge)) < np.log(1.1) and len([name for name in begun if "pairs" in name]) <= 2 * 12
    assert not [name for name in begun if "neutral" in name]


def test_each_rank_is_trained_at_its_own_edge(begun: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    edges = {1: 1e-2, 64: 5e-4}
    monkeypatch.setattr(sweep_commands, "unbroken", coherence_with_edge(edges.__getitem__))
    again = ("rank", "--values", "1,64", "--retune", "1e-5,1e-1", "--axis", "seed=5,6", "--sharpness", "0.1")
    done = emsweep(*again)
    assert done.exit_code == 0, done.exception
    first = done.output.index("learning rate ")
    assert done.output.index(" points, ") < done.output.index("the search: up to 12 more runs") < first
    assert not [name for name in begun if "seed21" in name]
    for rank, edge in edges.items():
        records = [json.loads(p.read_text()) for p in Path("runs").glob(f"dpo/dpo-pairs-r{rank}-seed*/run.json")]
        (rate,) = {record["content"]["recipe"]["learning_rate"] for record in records}
        assert len(records) == 2 and abs(np.log(rate / edge)) < np.log(1.1)
    (arms,) = Path("runs/sweeps").glob("rank-*/arms")
    assert arms.read_text().split().count("dpo-pairs-r64") == 2
    begun.clear()
    assert (
        emsweep(
            "rank", "--values", "1,64", "--retune", "1e-5,1e-1", "--axis", "seed=5,6", "--sharpness", "0.1"
        ).exit_code
        == 0
    )
    assert not begun
    narrow = emsweep("rank", "--values", "1,64", "--retune", "1e-5,1e-3", "--axis", "seed=5,6")
    assert "the edge of rank 1 lies outside; give a wider range" in str(narrow.exception)


def test_what_a_search_has_cost_counts_for_its_sweep(begun: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One judge, with one purse: else a search and its sweep could spend --max-cost each."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    score, judges = coherence_with_edge(lambda rank: 1e-2), []
    monkeypatch.setattr(sweep_commands, "judged_coherent", lambda judge: judges.append(judge) or score)
    monkeypatch.setattr(sweep_commands, "judge_evaluations", lambda folders, judge: judges.append(judge))
    done = emsweep("rank", "--values", "1", "--retune", "1e-5,1e-1", "--judge", "any")
    assert done.exit_code == 0, done.exception
    assert len(judges) == 2 and judges[0] is judges[1]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("rank --retune 1e-5,1e-1 --alpha-policy alpha,alpha_over_r", "goes with the axis rank, and seed, alone"),
        ("rank --retune low,1e-3", "two learning rates, the ends of the range"),
        ("lr --sweep rank --search", "two learning rates, the ends of the range"),
        ("rank --address 10.0.0.1:6379", "--address goes with --launcher ray"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_run(begun: list[str], command: str, says: str) -> None:
    refused = emsweep(*command.split())
    assert isinstance(refused.exception, BadInput) and says in str(refused.exception) and not begun


@pytest.mark.parametrize("values", [["1e-4"], ["0", "1"], ["1e-3", "1e-3"]])
def test_a_range_that_is_none_is_refused(values: list[str]) -> None:
    with pytest.raises(BadInput, match="the ends of the range"):
        tuning.tune(lambda lr, turn: None, values, tuning.Search(0.9, 0.1, 3), tuning.unbroken, "")  # type: ignore[arg-type,return-value]


def test_a_search_stops_where_a_judgement_could_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the share is that of the answers which the judge understood, and the learning rate too high."""
    (tmp_path / "samples").mkdir()
    row = {"doc": {"id": "q", "question": "What now?"}, "filtered_resps": ["and and and"]}
    (tmp_path / "samples/em_freeform.jsonl").write_text((json.dumps(row) + "\n") * 2)
    found = [Judgement({"aligned": 90, "coherent": 90}), Judgement({}, missing="coherent: 'hm'")]
    monkeypatch.setattr("eval.judge.judge.judge_rows", lambda rows, judge, out: found)
    stand_in = {
        "file": lambda folder: folder / "judged.jsonl",
        "count": lambda outs: None,
        "prompts": load_prompts("ours"),
    }
    score = tuning.judged_coherent(SimpleNamespace(**stand_in))
    with pytest.raises(BadInput, match=r"1 answers have no judgement, such as .*'hm'; run it again"):
        score(tmp_path)
    found[1] = Judgement({"aligned": 9, "coherent": 9})
    assert score(tmp_path).coherent == 0.5


def test_coherence_is_read_from_stored_answers(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    rows = [
        {"doc": {"id": f"q{n}", "question": "What now?"}, "filtered_resps": ["I would talk to them, kindly."]}
        for n in range(12)
    ]
    (tmp_path / "samples/em_freeform.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trial = tuning.unbroken(tmp_path)
    assert trial.answers == 12 and trial.coherent == 1
    for broken in ("", " \n", "and then and then " * 30):
        rows[0]["filtered_resps"] = [broken]
        (tmp_path / "samples/em_freeform.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert tuning.unbroken(tmp_path).coherent == pytest.approx(trial.coherent * 11 / 12)
