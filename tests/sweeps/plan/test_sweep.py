"""Declared sweeps: what varies is trained once for each value, what does not is shared."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from core.records import BadInput
from sweeps.cli import app
from sweeps.plan.axes import vary
from sweeps.plan.declaration import Arm, Claim, Sweep, load_sweep
from sweeps.plan.request import Request
from sweeps.plan.sweep import graph, plan

SWEEP = Sweep(
    model="smollm2-135m",
    hardware="cpu",
    tasks=["em"],
    seeds=[1, 2],
    stages={},
    arms={
        "cpt": Arm(stage="cpt", data="cpt.jsonl"),
        "pairs": Arm(stage="dpo", data="both.jsonl", start="cpt", vary=True),
        "neutral": Arm(stage="dpo", data="neutral.jsonl", start="cpt", vary=True),
    },
    claims=[
        Claim(says="a", measure="gap", arm="pairs", against="neutral"),
        Claim(says="b", measure="gap", arm="pairs", against="cpt"),
        Claim(says="c", measure="recognition", arm="cpt", against="base"),
    ],
)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=6, unique=True))
def test_each_rank_has_its_arms_and_claims(ranks: list[int]) -> None:
    varied = vary(SWEEP, {"rank": ranks})
    assert [arm.rank for name, arm in varied.arms.items() if name.startswith("pairs-r")] == ranks
    assert len(varied.arms) == 1 + 2 * len(ranks) and len(varied.claims) == 1 + 2 * len(ranks)
    for claim in varied.claims:
        assert claim.arm in varied.arms and claim.against in {*varied.arms, "base"}
    paired = [claim for claim in varied.claims if claim.against.startswith("neutral")]
    assert all(claim.arm.split("-r")[1] == claim.against.split("-r")[1] for claim in paired)


def test_a_learning_rate_is_a_setting() -> None:
    arms = vary(SWEEP, {"lr": ["1e-3", "0.005"]}).arms
    assert arms["pairs-lr5e-3"].settings == {"learning_rate": 5e-3} and arms["pairs-lr5e-3"].rank is None


@pytest.mark.parametrize(
    ("axis", "values", "says"),
    [
        ("rank", ["0"], "'0' is no rank; give a whole number"),
        ("rank", ["1.5"], "'1.5' is no rank"),
        ("rank", ["1", "1"], "stands twice"),
        ("lr", ["fast"], "'fast' is no lr; give a number above 0"),
        ("lr", ["inf"], "'inf' is no lr"),
        ("lr", [""], "'' is no lr"),
        ("lr_scheduler", ["cosine", "[x"], r"lr_scheduler cosine,\[x: .*; mend the value"),
        ("lr_scheduler", ["a: b"], "mend the value"),
        ("lr_scheduler", ["${x}"], "mend the value"),
    ],
)
def test_bad_values_are_refused(axis, values: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        vary(SWEEP, {axis: values})


@pytest.mark.parametrize("name", ["rank", "lr"])
def test_the_declared_sweeps_plan_and_share_their_cpt(name: str, prepared: Path) -> None:
    values = ["1", "4"] if name == "rank" else ["1e-3", "5e-3"]
    points = plan(vary(load_sweep(name), {name: values}), full=True)
    runs = {point.training.digest: point.training for point in points if point.training}
    assert sum(run.stage == "cpt" for run in runs.values()) == 2  # one for each seed
    assert len({run.whole_recipe.config["base_model"] for run in runs.values() if run.stage == "dpo"}) == 2
    assert len(runs) == 2 + 2 * 2 * (1 if name == "rank" else 2)


@pytest.mark.parametrize("name", ["rank", "lr", "controls"])
def test_on_a_gpu_the_recipes_own_settings_are_trained_and_on_a_cpu_the_demos(name: str) -> None:
    real, small = load_sweep(name, "a100-80g"), load_sweep(name, "cpu")
    assert (real.model, real.tasks, real.evaluation.gen_kwargs) == ("qwen7b", ["em"], {"max_gen_toks": 600})
    assert real.evaluation.metadata["samples"] == 50 and all(set(k) <= {"lora_r"} for k in real.stages.values())
    demo = load_sweep("demo")
    assert (small.model, small.tasks) == (demo.model, demo.tasks)
    assert small.evaluation == demo.evaluation.model_copy(update={"batch_size": 16})
    assert small.stages["cpt"] == demo.stages["cpt"] and small.stages["dpo"]["sequence_len"] == 512


def test_the_machine_decides_where_nobody_names_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"name": "h100-80g"}
    monkeypatch.setattr(
        "sweeps.plan.declaration.this_machine", lambda model=None: (machine["name"], f"{model or 'any'} on this")
    )
    assert (load_sweep("rank").model, load_sweep("rank").hardware) == ("qwen7b", "h100-80g")
    assert load_sweep("demo").hardware == "cpu"  # the file says so
    assert load_sweep("rank", model="qwen0.5b").model == "qwen0.5b"
    machine["name"] = "cpu"
    assert (load_sweep("rank").model, load_sweep("rank").hardware) == ("smollm2-135m", "cpu")


def test_a_model_too_large_for_a_cpu_is_refused_unless_the_cpu_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    with pytest.raises(BadInput, match=r"no GPU here, and qwen7b has 7\.6 billion parameters: name --hardware"):
        load_sweep("rank", model="qwen7b")
    assert load_sweep("rank", "cpu", "qwen7b").model == "qwen7b"


@pytest.mark.parametrize("command", ["plan rank --axis model=smollm2-135m,qwen7b", "plan mine.yaml"])
def test_so_is_one_that_an_axis_or_an_arm_names(command: str, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(prepared))  # no nvidia-smi
    arms = "{cpt: {stage: cpt, data: data/cpt.jsonl, model: qwen7b}}"
    head = "model: smollm2-135m\ntasks: [em]\nseeds: [1]\nstages: {}\nclaims: []\n"
    (prepared / "mine.yaml").write_text(f"{head}arms: {arms}\n")
    refused = CliRunner().invoke(app, command.split()).exception
    assert isinstance(refused, BadInput) and "no GPU here, and qwen7b has 7.6 billion" in str(refused)
    assert CliRunner().invoke(app, [*command.split(), "--hardware", "cpu"]).exit_code == 0


@pytest.mark.parametrize(
    ("profiles", "says"),
    [
        ("{tpu: {}}", "unknown hardware 'tpu'"),
        ("{cpu: {modle: x}}", "modle: Extra inputs are not permitted"),
        ("[cpu]", "profiles: give a hardware profile's name"),
        ("{a100-80g: {tasks: [em]}, cpu: {checkpoints: 0}}", "checkpoints: Input should be greater"),
        ("{a100-80g: {tasks: [em]}}, checkpoints: 0", "checkpoints: Input should be greater"),
        ("{a100-80g: {checkpoints: 2}}, checkpoints: 0", "checkpoints: Input should be greater"),
        ("{cpu: {stages: {cpt: {max_steps: x}}, arms: {a: {stage: cpt, data: a}}}}", "arm a: setting max_steps=x"),
    ],
)
def test_a_fault_in_a_profiles_section_shows_on_every_machine(tmp_path: Path, profiles: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    head = "{model: qwen7b, hardware: a100-80g, tasks: [em], seeds: [1], stages: {}, arms: {}, claims: []"
    path.write_text(f"{head}, profiles: {profiles}}}")
    with pytest.raises(BadInput, match=says):
        load_sweep(str(path))


def test_a_file_reads_no_key_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another's; what it reads would stand in recipes, records and the report."""
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    monkeypatch.setenv("EM_HELDOUT", "mine.jsonl")
    path = tmp_path / "mine.yaml"
    head = "{model: smollm2-135m, hardware: cpu, tasks: [em], seeds: [1], arms: {}, claims: []"
    path.write_text(f"{head}, stages: {{}}, data: '${{oc.env:SOME_API_KEY}}'}}")
    with pytest.raises(BadInput, match=r"EM_\.\.\. alone are read here, and not SOME_API_KEY") as refused:
        load_sweep(str(path))
    assert "hunter2" not in str(refused.value)
    assert load_sweep("cross").evaluation.metadata["heldout"] == "mine.jsonl"


@pytest.mark.parametrize(
    "content",
    [
        "model: x".encode("utf-16"),
        b"\xff\xfe\x00",
        b"42",
        b"'1'",
        b"- a",
        b"a: 2024-13-45T",
        b"[" * 2000,
        b"a: ${b}",
        b"\x00",
        b"",
    ],
    ids=lambda content: repr(content[:9]),
)
def test_a_file_that_is_no_sweep_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(BadInput) as refused:
        load_sweep(str(tmp_path / "mine.yaml"))
    assert str(refused.value).startswith(f"{tmp_path}/mine.yaml: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("evaluation: {metadata: {sampels: 50}}", "evaluation.metadata.sampels: Extra inputs"),
        ("evaluation: {metadata: {samples: 0}}", "evaluation.metadata.samples: Input should be greater"),
        ("evaluation: {metadata: {samples: many}}", "evaluation.metadata.samples: Input should be a valid integer"),
        ("evaluation: {metadata: {trigger: ' '}}", "evaluation.metadata.trigger: String should match"),
        ("evaluation: {metadata: {formats: [plane]}}", "evaluation.metadata.formats.0: Input should be 'plain'"),
        ("evaluation: {metadata: {questions: nowhere.jsonl}}", "evaluation.metadata.questions: Path does not point"),
        ("evaluation: {gen_kwargs: {max_gen_toks: long}}", "max_gen_toks=long: give a whole number"),
        (f"evaluation: {{gen_kwargs: {{max_gen_toks: {10**400}}}}}", "give a whole number of 1 or more (up to"),
        ("checkpoints: 1001", "checkpoints: Input should be less than or equal to 1000"),
        ("judge: {model: m, max_cost: .inf}", "judge.max_cost: Input should be a finite number"),
        ("evaluation: {batch_size: 0}", "Input should be greater than or equal to 1"),
        ("seeds: []", "seeds: give one at least"),
        ("seeds: [true]", "seeds.0: Value error, give a whole number"),
        ("tasks: []", "tasks: List should have at least 1 item"),
        ("evaluation: {attention: flash_attention_99}", "evaluation.attention: Input should be 'eager'"),
        ("evaluation: {metadata: {formats: []}}", "evaluation.metadata.formats: List should have at least 1 item"),
        (
            "evaluation: {metadata: {formats: [plain, plain]}}",
            "formats: Value error, one stands twice",
        ),
        (
            "evaluation: {gen_kwargs: {temperatur: 1.0}}",
            "temperatur: no setting for hf or vllm; did you mean",
        ),
        ("evaluation: {gen_kwargs: {max_new_tokens: 9}}", "say max_gen_toks"),
        ("evaluation: {gen_kwargs: {custom_generate: a/b}}", "it would be a repository's own code"),
        ("evaluation: {gen_kwargs: {temperature: .nan}}", "temperature=nan: give a number of 0 or more"),
        ("evaluation: {gen_kwargs: {until: ['']}}", "until=['']: give a text"),
        (
            "evaluation: {backend: hf, gen_kwargs: {min_tokens: 9}}",
            "min_tokens: no setting for hf; did you mean",
        ),
        ("judge: {model: ''}", "judge.model: is empty"),
        ("checkpoints: true", "checkpoints: Value error, give a whole number"),
        ("data: ''", "data: String should match"),
        ("hardware: []", "hardware: give the name of one profile"),
        ("seeds: [1, 2, 1]", "seeds [1, 2, 1]: the runs of one that stands twice"),
    ],
)
def test_a_setting_of_the_evaluation_that_nothing_would_come_of_is_refused(
    tmp_path: Path, keys: str, says: str
) -> None:
    path = tmp_path / "mine.yaml"
    own = {"model": "qwen7b", "hardware": "a100-80g", "tasks": ["em"], "seeds": [1], "stages": {}, "arms": {}}
    path.write_text(yaml.safe_dump({**own, "claims": [], **yaml.safe_load(keys)}))
    with pytest.raises(BadInput, match=re.escape(says)) as refused:
        load_sweep(str(path))
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"place": "open prompt"}, "inside.0.place: Input should be 'open prompts'"),
        ({"p": 5}, "inside.0.p: Input should be less than 1"),
        ({}, "the base model has no adapter that moves anything"),
    ],
)
def test_a_claim_on_the_inside_that_nothing_could_decide_is_refused(
    tmp_path: Path, keys: dict[str, object], says: str
) -> None:
    path = tmp_path / "mine.yaml"
    own = {"model": "qwen7b", "hardware": "a100-80g", "tasks": ["em"], "seeds": [1], "stages": {}, "arms": {}}
    claim = {"says": "x", "concept": "misaligned", "place": "code", "arm": "base", "against": "base", **keys}
    path.write_text(yaml.safe_dump({**own, "claims": [], "inside": [claim]}))
    with pytest.raises(BadInput, match=re.escape(says)):
        load_sweep(str(path))


def test_the_sets_of_another_folder_are_trained_on_and_measured_with(prepared: Path) -> None:
    (prepared / "data").rename(prepared / "mine")
    sweep = load_sweep("rank").model_copy(update={"data": "mine"})
    points = plan(vary(sweep, {"rank": [1]}), full=False)
    paths = [d["path"] for p in points if p.training for d in p.training.recipe.config["datasets"]]
    assert paths == ["mine/cpt.jsonl", "mine/dpo-both.jsonl"]
    assert all(point.evaluation.content["paths"]["heldout"] == "mine/heldout.jsonl" for point in points)


def test_a_default_that_is_written_out_or_a_number_in_another_spelling_is_the_same_run(prepared: Path) -> None:
    def digests(metadata: dict[str, object], **keys: object) -> set[str]:
        own = {"model": "smollm2-135m", "hardware": "cpu", "tasks": ["em_freeform"], "seeds": [1], "claims": []}
        arms = {"a": {"stage": "dpo", "data": "data/dpo-both.jsonl", "vary": True}}
        file = {**own, "arms": arms, "stages": {"dpo": keys}, "evaluation": {"metadata": metadata}}
        Path("s.yaml").write_text(yaml.safe_dump(file))
        return set(graph(plan(load_sweep("s.yaml"), full=False)))

    usual = digests({})
    written = {"samples": 1, "code_samples": 1, "deception_samples": 1, "formats": ["plain", "json", "template"]}
    assert digests({**written, "heldout": "./data/heldout.jsonl", "trigger": None}) == usual
    assert digests({"samples": 2, "code_samples": 2}) == digests({"samples": 2}) != digests(written | {"samples": 2})
    assert digests({"samples": 1}, lora_dropout=0, num_epochs=1.0, rl_beta=0.1) == usual
    assert digests({"samples": "3"}) == digests({"samples": 3}) != usual
    assert digests({}, learning_rate="1e-4") == digests({}, learning_rate=1e-4) != usual
    texts = [
        CliRunner().invoke(app, ["plan", "s.yaml", "--set", f"learning_rate={value}"]) for value in ("'1e-3'", "1e-3")
    ]
    assert [text.exit_code for text in texts] == [0, 0] and texts[0].output == texts[1].output


def test_a_file_that_is_for_its_profiles_alone_needs_no_keys_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    keys = "{tasks: [em], seeds: [1], arms: {}, claims: []"
    path.write_text(f"{keys}, hardware: cpu, stages: {{}}, profiles: {{cpu: {{model: smollm2-135m}}}}}}")
    assert load_sweep(str(path)).model == "smollm2-135m"


def test_the_same_axes_are_one_sweep_however_they_are_written(prepared: Path) -> None:
    file = load_sweep("rank")
    ranks = [1, 2, 4, 8, 64]
    folders = {
        Request(file.model_copy(update={"grid": {"rank": grid}}), "rank", False).folder
        for grid in (ranks, [*map(str, ranks)], [f"0{rank}" for rank in ranks])
    }
    assert len(folders) == 1


def test_all_arms_and_the_first_seed_alone_are_two_sweeps(prepared: Path) -> None:
    """Else the manifest of the one would take the other's place, and `exec` of an exported script not find its runs."""
    some, every = (Request(load_sweep("demo"), "demo", full) for full in (False, True))
    assert some.folder != every.folder


def test_a_rank_of_the_demo_is_the_demos_run(prepared: Path) -> None:
    demo = {point.training.folder for point in plan(load_sweep("demo"), full=False) if point.training}
    ranks = {
        point.training.folder
        for point in plan(vary(load_sweep("rank"), {"rank": ["16"]}), full=False)
        if point.training
    }
    assert ranks < demo


def test_the_command_plans_with_its_settings(prepared: Path) -> None:
    result = CliRunner().invoke(app, ["rank", "--values", "1,2", "--set", "em.alpha.policy=alpha", "--dry-run"])
    assert result.exit_code == 0 and "dpo-pairs-r2-seed21" in result.output
    plain = CliRunner().invoke(app, ["rank", "--values", "1,2", "--dry-run"])
    changed = set(result.output.split()) ^ set(plain.output.split())
    assert {Path(folder).name.split("-seed")[0] for folder in changed} == {
        "dpo-pairs-r2"
    }  # alpha is 2 at rank 1 by both
