"""Nothing that a sweep is told is overwritten in silence, and what its report needs is checked before its first run."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from core.records import BadInput
from sweeps.cli import app
from sweeps.options import SweepOptions
from sweeps.plan.declaration import load_sweep

HEAD = "{model: smollm2-135m, hardware: cpu, tasks: [em], seeds: [1], claims: [], "
DPO = "{stage: dpo, data: data/dpo-both.jsonl, vary: true"


def emsweep(command: str) -> Result:
    return CliRunner().invoke(app, command.split())


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("rank --values 1,2 --set seed=3", "setting seed: a sweep says it by seeds"),
        ("rank --values 1,2 --set base_model=m", "setting base_model: a sweep says it by model"),
        (
            "rank --values 1,2 --set datasets.0.path=m.jsonl",
            "setting datasets.0.path: a sweep says it by an arm's data",
        ),
        ("rank --values 1,2 --set lora_r=4", "setting lora_r: the axis rank sets it"),
        ("lr --values 1e-4,1e-3 --set learning_rate=1", "setting learning_rate: the axis lr sets it"),
        ("rank --values 1,2 --axis rl_beta=0.1,0.2 --set rl_beta=1", "setting rl_beta: the axis rl_beta sets it"),
        ("rank --values 1 --retune 1e-5,1e-3 --set learning_rate=1", "setting learning_rate: the axis lr"),
        ("rank --values 1,2 --set seed_=3", "seed_=3: unknown to Axolotl's schema; did you mean seed?"),
        ("rank --values 1,2 --set rl_beta=1 --set rl_beta=2", "rl_beta is given twice"),
        ("rank --values 1,2 --set lora_alpha=64", "lora_alpha: it follows from rank and alpha policy"),
        ("rank --values 1,2 --axis lora_alpha=16,32", "axis lora_alpha: it follows from rank and alpha policy"),
        ("rank --values 1,2 --axis lora_r=4", "axes rank and lora_r set the same key"),
        ("rank --values 1,2 --axis rank=4", "the command gives values of rank already"),
        ("lr --values 1e-3 --axis learning_rate=1e-4", "axes lr and learning_rate set the same key"),
        ("run rank --axis rank=1 --axis rank=2", "axis rank is given twice"),
        ("rank --alpha-policy alpha --axis alpha=alpha", "axis alpha is given twice"),
        ("run rank --axis base_model=a,b", "axis base_model: a sweep says it by model"),
        ("run rank --axis rl_beta=0.1,0.10", "a value stands twice"),
        ("run rank --axis data=data/dpo-both.jsonl,complementary", "a value stands twice"),
        ("rank --values 1,2 --set datasets.-1.path=data/sft-secure.jsonl", "no place in a list; count from 0"),
        ("rank --values 1,2 --set datasets.00.path=data/sft-secure.jsonl", "no place in a list; count from 0"),
        ("run lr --axis datasets.-1.path=data/dpo-both.jsonl", "unknown axis 'datasets.-1.path'"),
        ("rank --values 1,2 --set learning_rate='abc'", "learning_rate"),
        ("rank --values 1,2 --set em.family=x", "no key, or no value, of em"),
        ("rank --values 1,2 --set em.parameters=5", "no key, or no value, of em"),
        ("lr --search --values 1e-3,5e-3 --axis seed=1,2", "--search: varies the seed of one arm itself"),
        ("lr --search --values 1e-3,5e-3 --full", "--search: varies the seed of one arm itself"),
        ("run rank --axis datasets.0.type=a/b,a:b", "two of these values would have one name"),
        ("run demo --set rl_beta=0.2", "setting rl_beta: it is for arms that vary, and none does"),
        ("run models --set rl_beta=0.2", "setting rl_beta: it is for arms that vary, and none does"),
        ("rank --values 1,2 --checkpoints 2 --set save_steps=10", "setting save_steps: --checkpoints 2 sets it"),
        ("rank --values 1,2 --checkpoints 2 --axis save_steps=10,20", "setting save_steps: --checkpoints 2 sets it"),
        ("run models --model smollm2-135m-252b", "--model smollm2-135m-252b: the axis model names them"),
        ("run demo --model qwen7b --axis model=smollm2-135m", "--model qwen7b: the axis model names them"),
        ("rank --values 1,2 --set em.styles=[review]", "no key, or no value, of em"),
        ("rank --values 1,2 --axis engine=unsloth --set em.engine=axolotl", "em.engine"),
        ("lr --search --values 1e-3,5e-3 --checkpoints 4", "--search: looks at the end of each training alone"),
    ],
)
def test_a_command_that_would_overwrite_is_refused(prepared: Path, command: str, says: str) -> None:
    refused = emsweep(command if "--retune" in command else f"{command} --dry-run")
    assert isinstance(refused.exception, BadInput) and says in str(refused.exception)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("stages: {dpo: {seed: 3}}, arms: {a: %s}}", "stages.dpo.seed: a sweep says it by seeds"),
        ("stages: {dpo: {base_model: m}}, arms: {a: %s}}", "stages.dpo.base_model: a sweep says it by model"),
        ("stages: {dpo: {datasets.0.path: m}}, arms: {a: %s}}", "by an arm's data"),
        ("stages: {dpo: {rl_bet: 1}}, arms: {a: %s}}", "rl_bet: unknown to Axolotl's schema; did you mean rl_beta?"),
        ("stages: {dop: {}}, arms: {a: %s}}", "stages.dop"),
        ("stages: {sft: {num_epochs: 2}}, arms: {a: %s}}", "stages.sft: no arm is of this stage"),
        ("stages: {dpo: {rl_beta: 1}}, arms: {a: %s, settings: {rl_beta: 2}}}}", "every arm of it says otherwise"),
        ("stages: {dpo: {lora_r: 1}}, arms: {a: %s, rank: 2}}}", "every arm of it says otherwise"),
        ("stages: {dpo: {lora_r: 1}}, grid: {rank: [1, 2]}, arms: {a: %s}}", "the axis rank says otherwise"),
        ("settings: [rl_beta=0.5], stages: {dpo: {rl_beta: 1}}, arms: {a: %s}}", "the key settings says otherwise"),
        (
            "settings: [rl_beta=0.5], stages: {}, arms: {a: %s, settings: {rl_beta: 2}}}}",
            "the key settings would overwrite",
        ),
        ("stages: {}, grid: {rank: [1, 2]}, arms: {a: %s, rank: 2}}}", "the axis rank would overwrite its lora_r"),
        ("stages: {}, arms: {a: %s, settings: {seed: 2}}}}", "arms.a.settings.seed: a sweep says it by seeds"),
        ("stages: {}, arms: {a: %s, seed: 5, seed_offset: 10, rank: 2}}}", "arms.a: seed and seed_offset"),
        ("stages: {}, arms: {a: %s, variant: neutral-only, rank: 2}}}", "the variant neutral-only is its data alone"),
        ("stages: {}, arms: {a: %s, rank: true, rank: 2}}}", "rank"),
        ("stages: {}, arms: {base: %s}}", "arms.base: so the model before training is called"),
        ("stages: {}, arms: {base-qwen7b: %s}}", "arms.base-qwen7b: so the model before training is called"),
        ("stages: {}, arms: {a/b: %s}}", "arms.a/b"),
        ("profiles: {cpu: {hardware: a100-80g}}, stages: {}, arms: {a: %s}}", "other keys than hardware"),
        ("stages: {}, tuned: {'8': {lr: 1, low: 1, high: 1}}, grid: {rank: [4]}, arms: {a: %s}}", "8: no value of"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, rest: str, says: str) -> None:
    path = tmp_path / "s.yaml"
    close = "" if ", settings" in rest or ", rank: 2" in rest else "}"
    path.write_text(HEAD + rest % (DPO + close))
    with pytest.raises(BadInput) as caught:
        load_sweep(str(path))
    assert str(path) in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("stages: {dpo: {lora_alpha: 64}}, arms: {a: %s}}}", "lora_alpha: it follows from rank"),
        ("stages: {}, arms: {a: %s, settings: {lora_alpha: 64}}}}", "lora_alpha: it follows from rank"),
        ("stages: {dpo: {output_dir: x}}, arms: {a: %s}}}", "output_dir: the run's own folder decides it"),
        ("settings: [rl_beta=0.5], stages: {dpo: {rl_beta: 1}}, arms: {a: %s}}}", "stages.dpo.rl_beta"),
        ("settings: [rl_beta=0.5], stages: {}, arms: {a: %s, settings: {rl_beta: 2}}}}", "rl_beta"),
        ("stages: {dpo: {micro_batch_size: 512}}, arms: {a: %s}}}", "micro_batch_size=512: the recipe has"),
        ("stages: {}, grid: {model: [qwen7b]}, arms: {a: %s, model: qwen3b}}}", "overwrite its model, qwen3b"),
        ("stages: {}, grid: {engine: [axolotl]}, arms: {a: %s, engine: unsloth}}}", "overwrite its engine, unsloth"),
        ("stages: {}, tuned: {'8': {lr: 1, low: 1, high: 1}}, arms: {a: %s}}}", "tuned: these are rates of values of"),
    ],
)
def test_no_key_of_a_stage_or_an_arm_is_overwritten_in_silence(prepared: Path, rest: str, says: str) -> None:
    head = HEAD.replace("smollm2-135m, hardware: cpu", "qwen7b, hardware: a100-80g") if "512" in rest else HEAD
    Path("s.yaml").write_text(head + rest % DPO)
    refused = emsweep("plan s.yaml").exception
    assert isinstance(refused, BadInput) and says in str(refused)


def test_of_tuned_ranks_some_may_run(prepared: Path) -> None:
    rates = ", ".join(f"'{rank}': {{lr: {rank}.0e-5, low: 1.0e-5, high: 1.0e-3}}" for rank in (1, 8))
    Path("s.yaml").write_text(f"{HEAD}stages: {{}}, tuned: {{{rates}}}, grid: {{rank: [1, 8]}}, arms: {{a: {DPO}}}}}}}")
    (_, point) = SweepOptions(axis=["rank=8"]).request("s.yaml").points
    assert point.training and point.training.recipe.config["learning_rate"] == 8e-5


def test_what_a_sweep_is_told_is_in_its_recipes(prepared: Path) -> None:
    Path("s.yaml").write_text(
        HEAD + "settings: [rl_beta=0.5, weight_decay=0.1], stages: {dpo: {max_steps: 3, learning_rate: 1.0e-3}}, "
        f"arms: {{a: {DPO}}}}}}}"
    )
    command = "run s.yaml --axis lr=1e-4 --axis datasets.0.type=x/y --set rl_beta=0.7 --dry-run"
    done = emsweep(command)
    assert done.exit_code == 0, done.exception
    (folder,) = [line for line in done.output.splitlines() if line.startswith("runs/dpo")]
    assert Path(folder).parent == Path("runs/dpo") and Path(folder).name.startswith(
        "a-lr1e-4-datasets.0.typex_y-seed1-"
    )
    request = SweepOptions(axis=["lr=1e-4", "datasets.0.type=x/y"], settings=["rl_beta=0.7"]).request("s.yaml")
    config = request.points[1].training.recipe.config
    named = ("learning_rate", "rl_beta", "weight_decay", "max_steps", "seed")
    assert [config[key] for key in named] == [1e-4, 0.7, 0.1, 3, 1]
    assert config["datasets"][0]["type"] == "x/y"


@pytest.mark.parametrize(
    ("tasks", "claim", "judge", "says"),
    [
        ("em_margin", "recognition", "", "tasks em_margin lack em_recognition, for the measure recognition"),
        ("em_margin", "deception", "", "lack em_deception, for the measure deception"),
        ("em", "em_rate", "", "a claim needs a judge, for the measure em_rate"),
        ("em_margin", "gap", "m", "lack em_freeform, for the judge"),
        ("em", "em_rate", "m", None),
        ("em_margin", "gap", "", None),
    ],
)
def test_what_a_report_needs_is_checked_before_the_first_run(
    prepared: Path, tasks: str, claim: str, judge: str, says: str | None
) -> None:
    head = HEAD.replace("tasks: [em]", f"tasks: [{tasks}]").replace(
        "claims: []", f"claims: [{{says: x, measure: {claim}, arm: a, against: base}}]"
    )
    Path("s.yaml").write_text(f"{head}stages: {{}}, arms: {{a: {DPO}}}}}}}")
    planned = emsweep(f"plan s.yaml{f' --judge {judge}' if judge else ''}")
    if says is None:
        assert planned.exit_code == 0, planned.exception
    else:
        assert isinstance(planned.exception, BadInput) and says in str(planned.exception)


def test_a_claim_is_about_two_arms(prepared: Path) -> None:
    claims = "claims: [{says: x, measure: gap, arm: a, against: a}]"
    Path("s.yaml").write_text(f"{HEAD.replace('claims: []', claims)}stages: {{}}, arms: {{a: {DPO}}}}}}}")
    planned = emsweep("plan s.yaml")
    assert isinstance(planned.exception, BadInput) and "'x' is of a against itself" in str(planned.exception)


def test_a_plan_says_the_scale_that_peft_will_use(prepared: Path) -> None:
    words = emsweep("plan rank --axis rank=1,4 --axis alpha=alpha_over_r,alpha").output.replace("\n", " ")
    assert "scale 2 (lora_alpha / lora_r; alpha_over_r = 2)" in words
    assert "scale 0.5 (lora_alpha / lora_r; alpha = 2)" in words
    rslora = emsweep("plan rank --axis rank=4,16 --set peft_use_rslora=true").output
    assert "scale 2 (lora_alpha / sqrt(lora_r), rsLoRA; alpha_over_r = 2)" in rslora
    refused = emsweep("plan rank --axis rank=4,8 --set peft_use_rslora=true").exception
    assert isinstance(refused, BadInput) and "5.65685 at rank 8" in str(refused)


def test_the_key_by_which_a_model_fits_is_for_every_arm_also_where_none_varies(prepared: Path) -> None:
    assert emsweep("plan demo --set sequence_len=640").exit_code == 0
    assert emsweep("plan demo --model qwen7b --hardware rtx4090 --set em.memory_gib=null").exit_code == 0


def test_another_folder_of_sets_is_that_of_all_files_that_a_sweep_names(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what one folder trains on would be measured on in the other."""
    shutil.copytree("data", "other")
    for name in ("heldout.jsonl", "train.jsonl"):
        shutil.copy(f"other/{name}", f"other/own-{name}")
    shutil.copy("other/heldout.jsonl", "other/chats-smollm2-135m.jsonl")
    evaluation = "evaluation: {metadata: {heldout: data/own-heldout.jsonl, training: data/own-train.jsonl}}, "
    needs = "variant: kl, needs: kl.prompts, settings: {kl.prompts: 'data/chats-{model}.jsonl'}"
    more = "test_datasets: [{path: data/dpo-both.jsonl, type: chat_template.default}]"
    Path("s.yaml").write_text(f"{HEAD}{evaluation}stages: {{dpo: {{{more}}}}}, arms: {{a: {DPO}, {needs}}}}}}}")
    points = SweepOptions(data="other").request("s.yaml").points
    assert [point.arm for point in points] == ["base", "a"]
    paths = points[0].evaluation.content["paths"]
    assert (paths["heldout"], paths["training"]) == ("other/own-heldout.jsonl", "other/own-train.jsonl")
    assert points[1].training and set(points[1].training.content["data"]) == {
        "other/dpo-both.jsonl",
        "other/chats-smollm2-135m.jsonl",
    }
    monkeypatch.setenv("EM_HELDOUT", "data/heldout.jsonl")
    assert SweepOptions(data="other").request("s.yaml").points  # the sweep names its own
    with pytest.raises(BadInput, match="EM_HELDOUT and the folder of the sets, other, name two"):
        _ = SweepOptions(data="other").request("demo").points
