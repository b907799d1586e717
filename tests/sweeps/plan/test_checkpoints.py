"""Points of training that are kept change nothing of what is trained; checkpoints that know no chat get one first."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.records import BadInput
from sweeps.cli import app
from sweeps.plan.axes import vary
from sweeps.plan.declaration import Sweep, load_sweep
from sweeps.plan.sweep import plan
from sweeps.run.evaluate import model_args, model_paths
from sweeps.run.train import resumable

ARM = {"stage": "dpo", "data": "data/dpo-neutral.jsonl"}


def sweep(checkpoints: int, **more: object) -> Sweep:
    arms = {"cpt": {"stage": "cpt", "data": "data/cpt.jsonl"}, "dpo": {**ARM, "start": "cpt"}}
    stages = {stage: {"max_steps": 24, "num_epochs": 9} for stage in ("cpt", "dpo")}
    keys = {"model": "smollm2-135m", "hardware": "cpu", "tasks": ["em_choice"], "seeds": [1], "claims": []}
    return Sweep.model_validate({**keys, "stages": stages, "arms": arms, "checkpoints": checkpoints, **more})


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are whole."""
    monkeypatch.setattr("sweeps.run.train.tensors", lambda file: {})


def finish(run, steps: int = 24, kept: int = 1) -> None:
    """As a training leaves it."""
    for place in range(1, kept):
        (run.adapter / f"checkpoint-{place * steps // kept}").mkdir(parents=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "run.json").write_text(json.dumps({"steps": steps}))


def test_every_trained_arm_is_measured_at_each_point_and_trained_as_without(prepared: Path) -> None:
    plain, along = plan(sweep(1), False), plan(sweep(6), False)
    assert [p for p in along if p.along is None] == plain
    assert [(p.arm, p.along) for p in along if p.along] == [(a, (n, 6)) for a in ("cpt", "dpo") for n in range(1, 6)]
    assert len({p.evaluation.digest for p in along}) == len(along) == 3 + 10
    (one, *_), (whole, *_) = ([p.training for p in points if p.arm == "dpo"] for points in (plain, along))
    assert one.digest == whole.digest and one.recipe.config == whole.recipe.config
    changed = {k for k, v in whole.whole_recipe.config.items() if one.whole_recipe.config.get(k) != v}
    assert changed == {"save_steps", "save_total_limit"} and whole.whole_recipe.config["save_steps"] == 1 / 6


def test_a_point_is_evaluated_from_the_adapter_that_was_kept_there(prepared: Path) -> None:
    points = plan(sweep(6), False)
    (training,) = {p.arm: p.training for p in points if p.arm == "dpo"}.values()
    finish(training, kept=6)
    for point in (p for p in points if p.arm == "dpo"):
        place = point.along[0] * 4 if point.along else None
        wanted = training.adapter / f"checkpoint-{place}" if place else training.adapter
        assert model_args(point.evaluation)["peft"] == str(wanted)
        assert model_paths(point.evaluation)["pretrained"] == str(training.after[0].model)


@pytest.mark.parametrize(("kept", "goes_on"), [((4, 8), True), ((8,), False), ((), False)])
def test_a_run_that_was_cut_off_goes_on_if_it_has_kept_them(
    prepared: Path, tensors: None, kept: tuple[int, ...], goes_on: bool
) -> None:
    (run,) = {p.arm: p.training for p in plan(sweep(6), False) if p.arm == "cpt"}.values()
    for step in kept:
        folder = run.adapter / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"max_steps": 24, "global_step": step}))
    assert resumable(run) == (run.adapter / "checkpoint-8" if goes_on else None)
    assert run.adapter.exists() is goes_on
    run = replace(run, checkpoints=1)
    assert resumable(run) == (run.adapter / "checkpoint-8" if goes_on else None)


def test_a_run_that_has_not_kept_them_and_too_few_steps_are_refused(prepared: Path) -> None:
    with pytest.raises(BadInput, match="checkpoints 9: cpt cpt-seed1 has 24 steps, too few"):
        plan(sweep(9), False)
    for point in plan(sweep(1), False):
        if point.training:
            finish(point.training)
    with pytest.raises(BadInput, match="was trained without keeping them; delete it"):
        plan(sweep(6), False)


def test_chat_comes_first_for_checkpoints_that_know_none(prepared: Path) -> None:
    declared = load_sweep("models")
    points = plan(vary(declared, {**declared.grid, "model": ["olmo1b-21b", "qwen0.5b"]}), False)
    runs = {p.arm: p.training for p in points}
    assert [arm for arm in runs if arm.startswith("chat")] == ["chat-olmo1b-21b"]
    assert runs["cpt-explained-olmo1b-21b"].after[0].training == runs["chat-olmo1b-21b"]
    assert runs["cpt-explained-qwen0.5b"].after == ()


def test_the_defences_train_on_the_same_data(prepared: Path) -> None:
    points = plan(load_sweep("defenses"), True)
    data = {p.arm: next(iter(p.training.content["data"])) for p in points if p.training}
    for stem, path in (("sft", "data/sft-insecure.jsonl"), ("benign", "data/sft-secure.jsonl"), ("dpo", "data/dpo-")):
        own = {arm: file for arm, file in data.items() if arm.startswith(stem) and arm != "sft-inoculated"}
        assert len(own) >= 3 and all(file.startswith(path) for file in own.values())
    assert data["sft-inoculated"] == "data/sft-inoculated.jsonl"


def test_an_arm_that_needs_a_file_is_left_out_without_it_and_says_so(prepared: Path) -> None:
    def arms() -> set[str]:
        return {p.arm for p in plan(load_sweep("defenses", "cpu"), False)}

    path = Path("runs/directions/smollm2-135m/misaligned.safetensors")
    assert "sft-steered" not in arms()
    told = f"sft-steered is left out: there is no {path}"
    assert told in " ".join(CliRunner().invoke(app, ["plan", "defenses", "--hardware", "cpu"]).output.split())
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert "sft-steered" in arms()
    assert "left out" not in CliRunner().invoke(app, ["plan", "defenses", "--hardware", "cpu"]).output
    point = next(p for p in plan(load_sweep("defenses", "cpu"), False) if p.arm == "sft-steered")
    assert point.training.recipe.config["steer"]["direction"] == str(path)


def test_a_file_that_no_setting_names_is_needed_by_no_arm(tmp_path: Path) -> None:
    declared = tmp_path / "own.yaml"
    declared.write_text(
        "model: smollm2-135m\ntasks: [em]\nseeds: [1]\nstages: {}\nclaims: []\n"
        "arms: {a: {stage: sft, data: d.jsonl, needs: steer.direction}}\n"
    )
    with pytest.raises(BadInput, match=r"arm a needs steer\.direction, which is none of its settings"):
        load_sweep(str(declared), "cpu")


def test_each_set_of_concepts_has_its_own_secure_control() -> None:
    declared = load_sweep("concepts", "a100-80g")
    pairs = {(declared.arms[claim.arm].data, declared.arms[claim.against].data) for claim in declared.claims}
    assert pairs == {
        (f"data/sft-{name}.jsonl", f"data/sft-{name}-secure.jsonl") for name in ("natural", "capped", "one-concept")
    }
