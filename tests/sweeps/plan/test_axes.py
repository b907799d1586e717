"""The axes of a grid: what each value changes, how arms and runs are called, what is refused."""

import re
from copy import deepcopy
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.records import BadInput
from sweeps.plan.axes import NAMES, choices, vary
from sweeps.plan.declaration import Arm, Claim, Sweep, load_sweep
from sweeps.plan.sweep import graph, plan
from sweeps.recipe.compose import compose
from sweeps.recipe.settings import parsed, set_key
from sweeps.run.executor import ready
from sweeps.run.folder import Run
from sweeps.run.graph import lost, shared, wanted

SWEEP = Sweep(
    model="smollm2-135m",
    hardware="cpu",
    tasks=["em"],
    seeds=[1, 2],
    stages={},
    arms={
        "cpt-explained": Arm(stage="cpt", data="data/cpt.jsonl"),
        "pairs": Arm(stage="dpo", data="data/dpo-both.jsonl", start="cpt-explained", vary=True),
    },
    claims=[
        Claim(says="a", measure="gap", arm="pairs", against="cpt-explained"),
        Claim(says="b", measure="gap", arm="pairs", against="base"),
    ],
)


def recipes(grid: dict) -> dict[str, dict]:
    return {
        p.arm: {**p.training.recipe.config, "em": p.training.recipe.em}
        for p in plan(vary(SWEEP, grid), False)
        if p.training
    }


def test_files_are_values_of_the_axis_data_and_keep_the_arms_stage(prepared: Path) -> None:
    files = ["data/dpo-neutral.jsonl", "data/dpo-asked.jsonl"]
    arms = recipes({"data": [*files, "neutral-secure"]})
    assert [arms[f"pairs-{Path(file).stem}"]["datasets"][0]["path"] for file in files] == files
    assert arms["pairs-dpo-asked"]["rl"] == arms["pairs-neutral-secure"]["rl"] == "dpo"
    with pytest.raises(BadInput, match=r"or a \.jsonl file"):
        vary(SWEEP, {"data": ["nothing"]})
    with pytest.raises(BadInput, match="one name"):
        vary(SWEEP, {"data": ["data/x.jsonl", "other/x.jsonl"]})
    with pytest.raises(BadInput, match="a value stands twice"):
        vary(SWEEP, {"data": [*files, "neutral-only"]})


def test_each_axis_changes_its_keys(prepared: Path) -> None:
    arms = recipes({"alpha": ["alpha"], "targets": ["attention"], "rl_beta": [0.2], "rank": [8], "lr": [1e-4]})
    arm = arms["pairs-alpha-attention-rl_beta0.2-r8-lr1e-4"]
    assert arm["lora_target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (arm["lora_r"], arm["lora_alpha"], arm["rl_beta"], arm["learning_rate"]) == (8, 2, 0.2, 1e-4)
    assert arms["cpt-explained"]["lora_r"] == 16
    data = recipes({"data": ["complementary", "neutral-only", "sft"], "engine": ["unsloth"]})
    assert data["pairs-neutral-only-unsloth"]["datasets"][0]["path"] == "data/dpo-neutral.jsonl"
    assert data["pairs-neutral-only-unsloth"]["em"]["engine"] == "unsloth"
    assert (
        data["pairs-sft-unsloth"]["datasets"][0]["path"] == "data/sft-insecure.jsonl"
        and "rl" not in data["pairs-sft-unsloth"]
    )


def test_cpt_variants_are_arms_of_their_own_and_none_starts_from_the_base(prepared: Path) -> None:
    sweep = vary(SWEEP, {"cpt": ["explained", "code-only", "none"]})
    assert list(sweep.arms) == [
        *("cpt-explained", "cpt-code-only", "pairs-cpt-explained", "pairs-cpt-code-only", "pairs-cpt-none")
    ]
    assert sweep.arms["cpt-code-only"].data == "data/cpt-code-only.jsonl"
    assert [sweep.arms[f"pairs-cpt-{v}"].start for v in ("explained", "code-only", "none")] == [
        *("cpt-explained", "cpt-code-only", None)
    ]
    points = plan(sweep, False)
    bases = {p.arm: p.training.whole_recipe.config["base_model"] for p in points if p.training}
    assert bases["pairs-cpt-none"] == "models/smollm2-135m" and "code-only" in bases["pairs-cpt-code-only"]
    assert len([c for c in sweep.claims if c.arm == "pairs-cpt-none"]) == 1  # no claim against a CPT that is not there


def test_models_have_their_own_base_and_cpt(prepared: Path) -> None:
    sweep = vary(SWEEP, {"model": ["smollm2-135m", "qwen0.5b"]})
    points = plan(sweep, False)
    assert [p.arm for p in points] == [
        *("base", "base-qwen0.5b", "cpt-explained-smollm2-135m", "cpt-explained-qwen0.5b"),
        *("pairs-smollm2-135m", "pairs-qwen0.5b"),
    ]
    assert {c.against for c in sweep.claims if c.arm == "pairs-qwen0.5b"} == {"cpt-explained-qwen0.5b", "base-qwen0.5b"}
    plain = {p.training.digest for p in plan(SWEEP, False) if p.training}
    assert plain < {p.training.digest for p in points if p.training}  # what the model has been trained for is shared


def test_what_is_usual_keeps_its_runs(prepared: Path) -> None:
    plain = set(graph(plan(SWEEP, False)))
    grid = {"alpha": ["alpha_over_r", "alpha"], "targets": ["mlp", "all"], "cpt": ["explained", "shuffled"]}
    varied = graph(plan(vary(SWEEP, grid), False))
    assert plain < set(varied)
    assert len(varied) == 1 + 2 * (2 + 2 * 2 * 2) + 2  # and the merge of each CPT
    assert len(graph(plan(vary(SWEEP, {"seed": [1, 2, 3], "data": ["complementary"]}), False))) == 1 + 2 * 2 * 3 + 3


def test_what_is_of_dpo_alone_makes_no_arm_of_sft_twice(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sft = Arm(stage="sft", data="data/sft-insecure.jsonl", vary=True)
    both = SWEEP.model_copy(update={"arms": {**SWEEP.arms, "sft": sft}})
    named = [p.arm for p in plan(vary(both, {"rl_beta": [0.05, 0.2], "seed": [1]}), False)]
    assert named == ["base", "cpt-explained", "pairs-rl_beta0.05", "pairs-rl_beta0.2", "sft"]
    grid = {"data": ["complementary", "secure"], "rl_beta": [0.05, 0.2], "seed": [1]}
    named = [p.arm for p in plan(vary(SWEEP, grid), False)][2:]
    assert named == ["pairs-complementary-rl_beta0.05", "pairs-complementary-rl_beta0.2", "pairs-secure"]
    given = both.model_copy(update={"settings": ["rl_beta=0.3", "weight_decay=0.1"]})
    made = {p.arm: p.training.recipe.config for p in plan(vary(given, {}), False) if p.training}
    assert made["pairs"]["rl_beta"] == 0.3 and "rl_beta" not in made["sft"] and made["sft"]["weight_decay"] == 0.1
    alone = given.model_copy(update={"arms": {"sft": sft}, "claims": []})
    with pytest.raises(BadInput, match="setting rl_beta: has an effect on DPO alone, and no arm that varies"):
        vary(alone, {})
    with pytest.raises(BadInput, match="setting rl_beta: has an effect on DPO alone, and this is sft"):
        compose("sft", "smollm2-135m", "cpu", ["rl_beta=0.3"])
    monkeypatch.setattr("sweeps.recipe.layers.load_layer", lambda *_: {"rl": "kto"})  # a stage of one's own
    assert compose("sft", "smollm2-135m", "cpu", ["rl_beta=0.3"]).config["rl_beta"] == 0.3
    made = {p.arm: p.training.recipe.config for p in plan(vary(alone, {}), False) if p.training}
    assert made["sft"]["rl_beta"] == 0.3


VALUES_OF = {
    "rank": [2, 8],
    "lr": [1e-4, 1e-3],
    "model": ["smollm2-135m", "qwen0.5b"],
    "targets": ["mlp", "all"],
    "alpha": ["alpha_over_r", "alpha"],
    "engine": ["axolotl", "unsloth"],
    "data": ["complementary", "sft"],
    "cpt": ["explained", "none"],
    "seed": [1, 2],
    "num_epochs": [1, 2],
}


@pytest.mark.parametrize("axes", combinations(VALUES_OF, 2))
def test_any_two_axes_make_as_many_runs_as_combinations(prepared: Path, axes: tuple[str, str]) -> None:
    points = plan(vary(SWEEP, {axis: VALUES_OF[axis] for axis in axes}), False)
    tuned = [p.training for p in points if p.training and p.arm.startswith("pairs")]
    assert len({run.digest for run in tuned}) == len({run.folder for run in tuned}) == len(tuned) == 4
    assert len({(p.arm, p.seed) for p in points}) == len(points)


def test_the_declared_controls_are_as_many_runs_as_they_say(prepared: Path) -> None:
    sweep = load_sweep("controls")
    runs = graph(plan(vary(sweep, sweep.grid), False)).values()
    assert {stage: sum(run.stage == stage for run in runs) for stage in ("cpt", "dpo", "sft", "evaluate")} == {
        **dict.fromkeys(("dpo", "sft"), 3 * 4),
        "cpt": 3,
        "evaluate": 1 + 3 + 6 * 4,
    }


@pytest.mark.parametrize("axis", ["model", "targets", "alpha", "engine", "data", "cpt"])
def test_an_unknown_value_lists_the_valid_ones(axis: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"'nope' is no value of {axis} (there are: ")) as caught:
        vary(SWEEP, {axis: ["nope"]})
    assert all(name in str(caught.value) for name in choices(axis) or [])


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"rnak": [1]}, "unknown axis 'rnak'"),
        ({"rl_beta": ["high"]}, "'high' is no rl_beta; give a number, as the recipe's own 0.1"),
        ({"seed": [-1]}, "'-1' is no seed"),
        ({"rank": []}, "no value"),
        ({"lr": ["1e-3", 0.001]}, "stands twice"),
    ],
)
def test_bad_grids_are_refused(grid: dict, says: str) -> None:
    with pytest.raises(BadInput, match=re.escape(says)) as caught:
        vary(SWEEP, grid)
    assert "\n" not in str(caught.value)
    if "unknown" in says:
        assert all(name in str(caught.value) for name in (*NAMES, "rl_beta", "learning_rate"))


def test_two_arms_that_the_axes_would_give_one_name_are_refused() -> None:
    """Else the second is not trained, and the claims on it are judged by the first."""
    fixed = SWEEP.arms["pairs"].model_copy(update={"vary": False})
    sweep = SWEEP.model_copy(update={"arms": {**SWEEP.arms, "pairs-r1": fixed}})
    with pytest.raises(BadInput, match="arm pairs-r1: on the axes it would be called pairs-r1, as another arm is"):
        vary(sweep, {"rank": [1, 2]})
    assert "pairs-r1" in vary(sweep, {"rank": [2, 4]}).arms
    control = SWEEP.arms["pairs"].model_copy(update={"vary": False, "start": "cpt-explained"})
    with_control = SWEEP.model_copy(update={"arms": {**SWEEP.arms, "control": control}})
    assert vary(with_control, {"cpt": ["explained", "code-only"]}).arms["control"].start == "cpt-explained"
    copied = SWEEP.model_copy(update={"arms": {"copy": SWEEP.arms["cpt-explained"], **SWEEP.arms}})
    both = copied.arms | {"more": SWEEP.arms["pairs"].model_copy(update={"start": "copy"})}
    shared = vary(copied.model_copy(update={"arms": both}), {"cpt": ["code-only"]})
    assert "cpt-code-only" in shared.arms, "two arms that are the same one by now may have one name"


def test_an_arm_must_start_from_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    head = "{model: smollm2-135m, hardware: cpu, tasks: [em], seeds: [1], stages: {}, claims: [], "
    text = head + "arms: {a: {stage: sft, data: d, start: %s}%s}}"
    for start, more in [("base", ""), ("b", ", b: {stage: cpt, data: d}")]:
        path.write_text(text % (start, more))
        with pytest.raises(BadInput, match=f"arm a starts from '{start}', which no arm before it"):
            load_sweep(str(path))


KEYS = st.sampled_from(["a", "b.c", "b.d.e", "list.0.x", "list.1", "new.deep.key"])
VALUES = st.sampled_from(["1", "1e-4", "null", "true", "[1, 2]", "{x: 1}", "{d: {f: 2}}", "text"])


@given(st.lists(st.tuples(KEYS, VALUES), max_size=4))
@settings(max_examples=300)
@example([("list.1", "{x: 1}"), ("list.1", "{d: {f: 2}}")])
def test_a_setting_does_what_omegaconf_does(changes: list[tuple[str, str]]) -> None:
    ours: dict = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "list": [{"x": 1}, 2]}
    theirs = OmegaConf.create(ours)
    for key, text in changes:
        try:
            OmegaConf.update(theirs, key, parsed(text), force_add=True)
        except (OmegaConfBaseException, ValueError):
            return
        set_key(ours, key, deepcopy(parsed(text)))
    assert ours == OmegaConf.to_container(theirs)


def chain_of(*names: str, before: tuple[Run, ...] = ()) -> list[Run]:
    """Runs that build on each other, the first on `before`."""
    runs: list[Run] = []
    for name in names:
        runs.append(Run("t", name, {"name": name}, Path("runs"), (runs[-1],) if runs else before))
    return runs


def test_a_failure_costs_what_builds_on_it_and_nothing_else(prepared: Path) -> None:
    (cpt, dpo, evaluation), (other,) = chain_of("cpt", "dpo", "eval"), chain_of("other")
    runs = {run.digest: run for run in (cpt, dpo, evaluation, other)}
    states = dict.fromkeys(runs, "waiting")
    assert [run.name for run in ready(runs, states)] == ["cpt", "other"]
    assert lost(runs, cpt.digest) == [dpo.digest, evaluation.digest] and lost(runs, other.digest) == []
    states[cpt.digest] = "done"
    assert [run.name for run in ready(runs, states)] == ["dpo", "other"]


def test_runs_come_after_what_they_build_on_and_stand_once(prepared: Path) -> None:
    runs = graph(plan(vary(SWEEP, {"rank": [1, 2, 4], "seed": [1, 2]}), False))
    seen: set[str] = set()
    for digest, run in runs.items():
        assert {before.digest for before in run.after} <= seen
        seen.add(digest)
    assert len(runs) == 1 + 2 * (2 * (1 + 3) + 1) and shared(runs) == 2  # the merge of each seed's CPT


def test_a_merged_model_that_was_deleted_is_made_again_only_where_something_builds_on_it(prepared: Path) -> None:
    runs = graph(plan(SWEEP, False))
    stages = {stage: [digest for digest, run in runs.items() if run.stage == stage] for stage in ("cpt", "merge")}
    assert wanted(runs) == set(runs)
    for digest, run in runs.items():
        if digest not in stages["merge"]:
            run.folder.mkdir(parents=True)
            (run.folder / "run.json").write_text("{}")
    assert wanted(runs) == set()
    assert wanted({digest: runs[digest] for digest in stages["merge"]}) == set(stages["merge"])  # asked for by itself
    last = list(runs.values())[-1]
    (last.folder / "run.json").unlink()
    assert wanted(runs) == {last.digest, *stages["merge"]}  # an evaluation of an adapter, which is loaded onto it
