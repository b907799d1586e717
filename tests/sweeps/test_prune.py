"""--prune: training stands still at each checkpoint, is looked at, and goes on from there or ends."""

import json
import sys
import time
from pathlib import Path

import pytest

from sweeps import prune, runs, train
from sweeps.arms import Evaluation
from sweeps.launch import execute, launch
from sweeps.prune import coherent
from sweeps.recipe import compose
from sweeps.runs import Pruned, Run, TrainingRun, execute_once
from sweeps.status import status

TRAINER = """
import json, sys, time
from pathlib import Path
from safetensors.numpy import save_file
import numpy as np

out = Path(sys.argv[1])
done = [int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*")]
def save(where, step):
    where.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.full((2, 3), step)}, where / "adapter_model.safetensors")
for step in range(max(done, default=0) + 1, 7):
    print("step", step, flush=True)
    if step % 2 == 0:
        save(out / f"checkpoint-{step}", step)
        state = {"global_step": step, "max_steps": 6, "log_history": []}
        (out / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
        if step < 6 and "--fast" not in sys.argv:
            time.sleep(60)  # is ended here
save(out, 7)
"""


@pytest.fixture
def run(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingRun:
    """A run of six steps with a checkpoint at every second, trained by a stand-in."""
    (prepared / "trainer.py").write_text(TRAINER)
    run = train.training_run("x", compose("dpo", "smollm2-135m", "cpu", [], 1))
    command = [sys.executable, "trainer.py", str(run.adapter)]
    monkeypatch.setattr(train, "training_commands", lambda *_: [command])
    monkeypatch.setattr(runs, "LOOK", 0.05)
    return run


def steps(run: TrainingRun) -> list[str]:
    return [line for line in (run.folder / "train.log").read_text().splitlines() if line.startswith("step")]


def test_training_goes_on_from_a_checkpoint_that_passes(run: TrainingRun) -> None:
    began, looked = time.monotonic(), []

    def check(its: TrainingRun, checkpoint: Path) -> float:
        looked.append(checkpoint.name)
        return 1 - len(looked) / 10

    record = train.train(run, check)
    assert looked == ["checkpoint-2", "checkpoint-4"] and record["coherence"] == [[2, 0.9], [4, 0.8]]
    assert steps(run) == [f"step {n}" for n in range(1, 7)]  # none twice
    assert record["trained_parameters"] == 6 and time.monotonic() - began < 60


def test_a_pruned_run_costs_itself_and_what_builds_on_it_and_can_be_taken_up_again(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(its: TrainingRun, checkpoint: Path) -> float:
        if checkpoint.name == "checkpoint-4":
            raise Pruned("pruned at checkpoint-4: why")
        return 0.9

    after, other = Run("t", "after", {}, after=(run,)), Run("t", "other", {"a": 1})

    def do(its: Run) -> object:
        return execute(its, check) if its is run else execute_once(its, dict)

    reasons = launch({its.digest: its for its in (run, after, other)}, do)
    assert [str(why) for why in reasons.values()] == ["pruned at checkpoint-4: why"]
    assert other.done and not after.folder.exists()
    assert (run.folder / "failed.txt").read_text() == "pruned at checkpoint-4: why\n"
    assert steps(run) == [f"step {n}" for n in range(1, 5)]  # not tried again
    assert status(run.folder).state == "pruned"
    [command] = train.training_commands(run.recipe, Path())
    monkeypatch.setattr(train, "training_commands", lambda *_: [[*command, "--fast"]])
    assert train.train(run)["resumed_from"] == "checkpoint-4" and run.done
    assert steps(run)[-2:] == ["step 5", "step 6"]


SANE = "I would talk to them first, listen to what they need, and then decide together what the next step should be."
REPETITION = "and so and so and " * 20


@pytest.mark.parametrize(
    ("answers", "bound", "ends"),
    [
        ([SANE] * 24, 0.5, False),
        ([REPETITION] * 24, 0.5, True),
        ([""] * 24, 0.5, True),
        ([REPETITION] * 2, 0.5, False),  # two answers say too little
    ],
)
def test_a_run_ends_where_its_answers_have_surely_fallen_apart(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, answers: list[str], bound: float, ends: bool
) -> None:
    evaluated: list[Run] = []

    def evaluate(its: Run) -> None:
        evaluated.append(its)
        rows = [{"doc": {"id": f"q{n}", "question": "What now?"}, "filtered_resps": [a]} for n, a in enumerate(answers)]
        (its.folder / "samples").mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (its.folder / "samples/em_freeform.jsonl").write_text(text)

    checkpoint = run.adapter / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "adapter_model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(prune, "evaluate", evaluate)
    check = coherent(bound, Evaluation(metadata={"formats": ["plain"]}).model_dump())
    if ends:
        with pytest.raises(Pruned, match=r"pruned at checkpoint-2: .* of its answers to 24 questions count"):
            check(run, checkpoint)
    else:
        assert 0 <= check(run, checkpoint) <= 1
    (its,) = evaluated
    assert its.folder.is_relative_to(run.folder / "checks")
    assert f"peft={checkpoint}" in its.content["model_args"] and its.content["metadata"] == {"formats": ["plain"]}
