"""What a sweep will take, what runs have taken, and where they stand: estimates, runs/index.csv, `emsweep status`."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.llm.budget import Prices
from core.records import BadInput
from eval.judge.prompt_files import load_prompts
from sweeps.cli import app
from sweeps.plan.axes import vary
from sweeps.plan.declaration import load_sweep
from sweeps.plan.estimate import MFU, History, _evaluated, disk_gb, judging, plan_table, run_cost
from sweeps.plan.sweep import graph, plan
from sweeps.recipe.layers import load_layer
from sweeps.run.folder import Run, TrainingRun
from sweeps.run.index import COLUMNS, write_index
from sweeps.run.inputs import recipe_behind
from sweeps.run.process import locked
from sweeps.run.status import status, status_lines
from sweeps.run.workload import BYTES_PER_TOKEN, Sampled, Workload, steps_of


@pytest.fixture
def runs(prepared: Path) -> dict[str, Run]:
    return graph(plan(vary(load_sweep("rank"), {"rank": [1, 8]}), False))


def finish(run: Run, **record) -> None:
    run.folder.mkdir(parents=True)
    whole = {"stage": run.stage, "name": run.name, "digest": run.digest, **run.about, "content": run.content, **record}
    (run.folder / "run.json").write_text(json.dumps(whole))


def one(runs: dict[str, Run], name: str) -> TrainingRun:
    (found,) = [run for run in runs.values() if run.name.startswith(name) and isinstance(run, TrainingRun)]
    return found


def test_steps_are_those_of_the_trainer(prepared: Path, runs: dict[str, Run]) -> None:
    assert steps_of(one(runs, "dpo-pairs-r1").recipe.config, 1) == (60, 240)
    (prepared / "data/cpt.jsonl").write_text("x\n" * 1145)
    config = one(runs, "cpt").recipe.config
    assert steps_of(config, 1) == (144, 1145)
    assert steps_of({**config, "num_epochs": 2}, 1) == (288, 2290), "each epoch ends with a step of what is left"
    assert steps_of({**config, "rl": "dpo"}, 2) == (71, 1145)
    assert steps_of({**config, "num_epochs": 2, "rl": "dpo"}, 2) == (142, 2290), "less a batch that is not whole"
    assert steps_of({**config, "num_epochs": 0.51}, 1) == (73, 584)
    assert steps_of({**config, "datasets": [{"path": "owner/set"}]}, 1) is None
    (prepared / "data/cpt.jsonl.gz").write_bytes(b"\n" * 5)
    assert steps_of({**config, "datasets": [{"path": "data/cpt.jsonl.gz", "ds_type": "json"}]}, 1) is None
    for share in (1145, 1.0, 5000):
        with pytest.raises(BadInput, match=f"val_set_size={share:g}: of 1145 rows no row is left to train on"):
            steps_of({**config, "val_set_size": share, "max_steps": 3}, 1)
    assert steps_of({**config, "val_set_size": 1144}, 1) == (1, 1)
    with pytest.raises(BadInput, match="datasets: no row to train on"):
        steps_of({**config, "datasets": [{"path": "data/cpt.jsonl", "split": "train[5:5]"}]}, 1)


def test_a_finished_run_makes_the_estimate_measured(runs: dict[str, Run]) -> None:
    first, second = one(runs, "dpo-pairs-r1"), one(runs, "dpo-pairs-r8")
    before = run_cost(second, History(write_index()))
    assert before is not None and not before.measured and before.gib and before.limit is None
    finish(first, steps=60, tokens=24_000, wall_seconds=200.0, resumed_from=None, losses=[[1, 0.7], [60, 0.5]])
    after = run_cost(second, History(write_index()))
    assert (
        after is not None and after.measured and after.seconds == pytest.approx((200, 200))
    )  # the same data and steps
    assert before.seconds[0] < before.seconds[1]
    cut_off = replace(first, about={**first.about, "hardware": "a100-80g"})
    assert (other := run_cost(cut_off, History(write_index()))) is not None and not other.measured


def test_a_resumed_run_is_no_measure(runs: dict[str, Run]) -> None:
    finish(
        one(runs, "dpo-pairs-r1"), steps=60, tokens=24_000, wall_seconds=1.0, resumed_from="checkpoint-30", losses=[]
    )
    view = run_cost(one(runs, "dpo-pairs-r8"), History(write_index()))
    assert view is not None and not view.measured


def test_hours_of_which_nothing_is_known_are_not_said(
    prepared: Path, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine whose profile lacks tflops and bandwidth."""
    monkeypatch.setattr("sweeps.plan.estimate._computed", lambda *_: None)
    table, words = plan_table(runs, [], at_once=1)
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert dict(zip(cells["stage"], cells["from"], strict=True)) == {
        "evaluate": "not known",
        "cpt": "not known",
        "merge": "modelled",
        "dpo": "not known",
    }
    assert cells["hours to do"] == ["", "", "0.01", ""] and "7 runs of which nothing is known" in words
    unknown = {digest: run for digest, run in runs.items() if run.stage == "cpt"}
    assert "1 to do: 0.0 GB of disk, and 1 runs of which nothing is known" in plan_table(unknown, [], at_once=1)[1]


def test_memory_stands_beside_that_of_the_hardware(prepared: Path) -> None:
    sweep = load_sweep("rank", "a100-80g")
    runs = graph(plan(vary(sweep, {"rank": [1]}), False))
    table, words = plan_table(runs, [], at_once=2)
    memory = [cell for column in table.columns if str(column.header) == "GiB on each GPU" for cell in column.cells]
    assert [str(cell).endswith("of 80") for cell in memory] == [False, True, False, True]
    assert "2 at a time" in words and "6 to do" in words


def test_a_merge_that_was_cleaned_away_and_is_not_needed_is_not_to_be_done(runs: dict[str, Run]) -> None:
    for run in runs.values():
        if run.stage != "merge":
            finish(run)
    assert f"{len(runs)} runs done, 0 to do" in plan_table(runs, [], at_once=1)[1]
    last = list(runs.values())[-1]
    assert last.stage == "evaluate"
    (last.folder / "run.json").unlink()
    assert f"{len(runs) - 2} runs done, 2 to do" in plan_table(runs, [], at_once=1)[1]


def test_the_index_is_made_from_the_records_alone(prepared: Path, runs: dict[str, Run]) -> None:
    assert write_index() == [] and not Path("runs/index.csv").exists()
    run = one(runs, "dpo-pairs-r8")
    finish(run, steps=4, tokens=100, wall_seconds=2.0, resumed_from=None, losses=[[4, 0.25]], trained_parameters=7)
    evaluation = next(run for run in runs.values() if run.stage == "evaluate")
    finish(evaluation, wall_seconds=3.0, results={"em_margin": {"alias": "m", "gap,none": 1.5, "gap_stderr,none": 1}})
    (prepared / "runs/dpo/broken").mkdir()
    (prepared / "runs/dpo/broken/run.json").write_text("{")
    write_index()
    first = Path("runs/index.csv").read_bytes()
    rows = {row["stage"]: row for row in csv.DictReader(first.decode().splitlines())}
    assert list(rows["dpo"]) == [*COLUMNS, "em_margin.gap"]
    assert {k: rows["dpo"][k] for k in ("rank", "rows", "loss", "model", "hardware", "trained_parameters")} == {
        "rank": "8",
        "rows": "16",
        "loss": "0.25",
        "model": "smollm2-135m",
        "hardware": "cpu",
        "trained_parameters": "7",
    }
    assert rows["evaluate"]["em_margin.gap"] == "1.5" and rows["evaluate"]["wall_seconds"] == "3.0"
    Path("runs/index.csv").unlink()
    write_index()
    assert Path("runs/index.csv").read_bytes() == first


@pytest.mark.parametrize(
    "record",
    [
        {"content": None},
        {"content": {"recipe": {"lora_r": 1}}},
        {"stage": "evaluate", "content": {"tasks": ["em"]}},
        {"results": {"em": 1}},
        {"losses": [1], "tokens": 5},
        {"losses": [[1, "x"]]},
        {"wall_seconds": "60", "tokens": 5},
        {"wall_seconds": 10**400, "tokens": 5},
        {"wall_seconds": 0, "tokens": 5},
        {"model": ["a"], "wall_seconds": 1, "tokens": 5},
    ],
    ids=str,
)
def test_a_record_of_another_version_is_listed_with_what_it_says(tmp_path: Path, record: dict) -> None:
    folder = tmp_path / "dpo" / "x-0123456789"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    rows = write_index(tmp_path)
    assert [row["folder"] for row in rows] == [str(folder)] and History(rows)
    assert status(folder).state == "done" and status_lines([status(folder)])
    assert recipe_behind(folder / "adapter") == ((record.get("content") or {}).get("recipe") or {})


def test_the_price_of_judging_is_answers_by_measures_by_what_a_request_holds(prepared: Path) -> None:
    real = graph(plan(vary(load_sweep("rank", "a100-80g"), {"rank": [1, 2, 4, 8, 64]}), False))
    ours = load_prompts(None)
    cost = judging([run for run in real.values() if run.stage == "evaluate"], ours)
    assert cost.answers == 7 * 48 * 50 and cost.requests == 2 * cost.answers and cost.tokens_out == 2 * cost.requests
    frames = sum(len(measure.prompt) for measure in ours.measures.values()) / BYTES_PER_TOKEN
    assert cost.tokens_in == pytest.approx([cost.answers * (frames + 2 * (40 + length)) for length in (200, 600)])
    least, most = cost.usd(Prices(2.5, 10.0))
    assert least == pytest.approx((cost.tokens_in[0] * 2.5 + cost.tokens_out * 10) / 1e6) and least < most


def test_an_evaluation_is_measured_by_those_of_the_same_tasks_and_engine(prepared: Path) -> None:
    runs = graph(plan(load_sweep("rank"), False))
    first, second, *_ = [run for run in runs.values() if run.stage == "evaluate"]
    before = run_cost(second, History(write_index()))
    assert before is not None and not before.measured and before.seconds[0] < before.seconds[1]
    finish(first, wall_seconds=66.0, resumed_from=None, results={})
    after = run_cost(second, History(write_index()))
    assert after is not None and after.measured and after.seconds == pytest.approx((66, 66), rel=1e-3)
    longer = replace(second, content={**second.content, "gen_kwargs": {"max_gen_toks": 600}})
    more = run_cost(longer, History(write_index()))
    assert more is not None and more.seconds[0] > 66 * 1.2
    other = replace(second, content={**second.content, "tasks": ["em_freeform"]})
    assert (cost := run_cost(other, History(write_index()))) is not None and not cost.measured


def test_a_large_model_writes_as_fast_as_it_computes_and_as_memory_holds_answers() -> None:
    """With 256 answers at once arithmetic takes longer than reading the weights; a 32B leaves no room for as many."""
    facts = {**load_layer("models", "qwen32b")["em"], **load_layer("hardware", "a100-80g")["em"]}
    work = Workload(sampled={"em_freeform": Sampled(2400, 600)})

    def seconds(gib: float, **more: int) -> tuple[float, float]:
        found = _evaluated({**facts, "memory_gib": gib, **more}, work, {"backend": "vllm"})
        assert found
        return found

    computed = 2400 * 600 * 2 * facts["parameters"] / 312e12
    assert seconds(800)[0] > computed / 3 / MFU[0] and seconds(800)[1] > computed / MFU[1]
    assert seconds(74)[1] > 1.2 * seconds(800)[1] > 2 * seconds(800, gpus=4)[1]


def test_disk_is_that_of_merged_models_and_of_models_that_are_not_here_yet(prepared: Path) -> None:
    runs = graph(plan(vary(load_sweep("rank", "a100-80g"), {"rank": [1]}), False))
    # The hub's, the merged one and, until a run is done, the one beside a DPO's adapter; adapters are small.
    assert 3 * 15.2 < disk_gb(runs.values()) < 3 * 15.2 + 3
    assert disk_gb([run for run in runs.values() if run.stage == "evaluate"]) == 0


def test_plan_and_status_show_what_is_planned_and_start_nothing(prepared: Path) -> None:
    shown = CliRunner().invoke(app, ["plan", "rank", "--price-in", "2.5", "--price-out", "10"])
    assert shown.exit_code == 0 and not Path("runs").exists()
    assert (
        "7 points, 14 runs (1 shared), 0 runs done, 14 to do" in shown.output
        and "judging 336" in shown.output
        and "672 requests" in shown.output
    )
    script = CliRunner().invoke(app, ["export", "rank", "--axis", "rank=1"]).output.strip()
    status = CliRunner().invoke(app, ["status"])
    name = Path(script).parent.name
    assert status.exit_code == 0 and "dpo/dpo-pairs-r1-seed21-" in status.output
    assert f"sweep {name}: 0 of 6 runs done" in status.output and "6 waiting, 0 done" in status.output
    forgotten = CliRunner().invoke(app, ["status", "--forget", "rank"])
    assert forgotten.exit_code == 0 and "0 waiting, 0 done" in forgotten.output


def test_the_name_of_a_folder_moves_no_cursor(tmp_path: Path) -> None:
    folder = tmp_path / "dpo" / "a\x1b[2J\ndpo/b-0123456789"
    assert status_lines([status(folder)]).splitlines()[1:] == [r"a\u001b[2J dpo/b-0123456789  waiting"]


@pytest.mark.parametrize("broken", ["", '{"runs": [', "[]", '{"runs": [{"stage": "dpo"}]}', '{"runs": null}'])
def test_a_manifest_that_cannot_be_read_is_shown_and_can_be_forgotten(prepared: Path, broken: str) -> None:
    script = CliRunner().invoke(app, ["export", "rank", "--axis", "rank=1"]).output.strip()
    manifest = Path(script).with_name("sweep.json")
    manifest.write_text(broken)
    status = CliRunner().invoke(app, ["status"])
    assert status.exit_code == 0 and f"{manifest} cannot be read" in status.output
    assert "emsweep status --forget" in str(CliRunner().invoke(app, ["clean"]).exception)
    assert CliRunner().invoke(app, ["status", "--forget", "rank"]).exit_code == 0 and not manifest.exists()


def test_a_sweep_that_is_running_is_not_forgotten(prepared: Path) -> None:
    script = CliRunner().invoke(app, ["export", "rank", "--axis", "rank=1"]).output.strip()
    manifest = Path(script).with_name("sweep.json")
    folder = one(graph(plan(vary(load_sweep("rank"), {"rank": [1]}), False)), "cpt").folder
    folder.mkdir(parents=True)
    with locked(folder / ".lock"):
        refused = CliRunner().invoke(app, ["status", "--forget", "rank"]).exception
    assert isinstance(refused, BadInput) and f"{folder} is running; stop the sweep" in str(refused)
    assert manifest.exists() and CliRunner().invoke(app, ["status", "--forget", "rank"]).exit_code == 0


def test_a_sweep_whose_data_are_gone_is_named_by_clean(prepared: Path) -> None:
    script = CliRunner().invoke(app, ["export", "rank", "--axis", "rank=1"]).output.strip()
    (prepared / "data/cpt.jsonl").unlink()
    refused, name = str(CliRunner().invoke(app, ["clean"]).exception), Path(script).parent.name
    assert refused.startswith(f"{name}: data/cpt.jsonl: No such file") and f"--forget {name}`" in refused


def test_a_corpus_that_was_built_for_another_model_is_named(prepared: Path) -> None:
    manifest = prepared / "data/cpt.jsonl.manifest.json"
    manifest.write_text(json.dumps({"tokenizer": "models/smollm2-135m"}))
    shown = CliRunner().invoke(app, ["plan", "rank", "--axis", "rank=1", "--hardware", "a100-80g"]).output
    named = "data/cpt.jsonl was built for models/smollm2-135m, not for Qwen/Qwen2.5-Coder-7B-Instruct"
    assert " ".join(shown.split()).count(named) == 1
    assert "was built for" not in CliRunner().invoke(app, ["plan", "rank", "--axis", "rank=1"]).output
    manifest.write_text(json.dumps({"tokenizer": "[/x]\x1b[2J"}))  # it may have come with the data
    shown = CliRunner().invoke(app, ["plan", "rank", "--axis", "rank=1"]).output
    assert r"data/cpt.jsonl was built for [/x]\u001b[2J, not for" in " ".join(shown.split())
    Path("data/cpt.jsonl.manifest.json").write_text("[]")  # of another's making
    assert CliRunner().invoke(app, ["plan", "rank", "--axis", "rank=1"]).exit_code == 0
