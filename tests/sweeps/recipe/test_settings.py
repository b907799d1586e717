"""A setting is in the recipe that comes out, or is refused by name; the alpha policy keeps the scale that PEFT uses."""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.records import BadInput
from sweeps.plan.axes import TARGETS
from sweeps.recipe.alpha import ALPHA_POLICIES, lora_alpha
from sweeps.recipe.compose import compose
from sweeps.recipe.layers import ENGINES, STAGES, lora_scale
from sweeps.recipe.refusals import DECIDED
from sweeps.recipe.schema import FILE, axolotl_schema, keys
from sweeps.recipe.settings import parsed
from sweeps.run.folder import LOGGING

VALUES = ("true", "3", "0.25", "text", "[1]", "[a]", "null", "1e-4", "{a: 1}", "jinja")


def test_the_schema_is_that_of_the_axolotl_that_is_pinned() -> None:
    assert json.loads(FILE.read_text()) == axolotl_schema(), "run python -m sweeps.recipe.schema"


def test_every_key_of_the_schema_shows_its_value_or_is_refused_by_name() -> None:
    shown = set()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in a tenth of the time
    for key in sorted(keys()):
        for text in VALUES:
            try:
                recipe = compose("dpo", "qwen7b", "a100-80g", [f"{key}={text}"])
            except BadInput as refused:
                assert key in str(refused), (key, text)
                continue
            now, value = yaml.load(recipe.to_yaml(), loader)[key], parsed(text)
            assert now == value or value.items() <= now.items(), (key, text)
            shown.add(key)
    assert len(shown) > 330 and not shown & DECIDED.keys()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("learnin_rate=1", "learnin_rate=1: unknown to Axolotl's schema; did you mean learning_rate?"),
        ("datasets.0.pth=x", "datasets.0.pth=x: no key"),
        ("special_tokens.pad=x", "('pad' was unexpected)"),
        ("num_epochs=many", "num_epochs=many: no key, or no value"),
        ("lora_alpha=64", "lora_alpha: it follows from rank and alpha policy; set em.alpha.policy (alpha_over_r, "),
        ("output_dir=x", "output_dir: the run's own folder decides it"),
        ("em.alhpa.policy=alpha", "no key, or no value, of em"),
        ("em.alpha.value=much", "no key, or no value, of em"),
        ("em.gpus=2", "no key, or no value, of em"),
        ("em.alpha.value=0", "give a number above 0"),
        ("em.alpha.value=.nan", "no key, or no value, of em"),
        ("em.alpha.value=1e308", "give a number above 0, and a finite one"),
        ("em.alpha={value: much}", "em.alpha.value=much: give a number above 0"),
        (f"max_steps=1{400 * '0'}", ": give a number above 0"),
        (f"lora_r=1{400 * '0'}", "is not a whole number of 1 or more (up to 1,000,000,000)"),
        ("datasets=null", "datasets: names no set"),
        ("datasets.0.path=null", "datasets.0: without a path"),
        ("datasets=[{type: x}]", "datasets.0: without a path"),
        ("chat_template=jinja", "and no chat_template_jinja"),
        ("chat_template_jinja=mine.jinja", "chat_template=tokenizer_default and a chat_template_jinja"),
        ("max_steps=0", "max_steps=0: give a number above 0"),
        ("save_steps=0", "save_steps=0.0: give a number above 0"),
        ("save_strategy=stepz", "save_strategy=stepz: give steps, epoch, best, no"),
        ("use_ray=true", "use_ray=True: its workers would share rows"),
        ("em.alpha={polcy: alpha}", "no key, or no value, of em"),
        ("rl_beta=0", "rl_beta=0.0: give a number above 0"),
        ("learning_rate=fast", "learning_rate=fast: give a number above 0"),
        ("warmup_ratio=5", "warmup_ratio=5: give a number from 0 to below 1"),
        ("num_epochs=1e400", "num_epochs=inf: give a finite number"),
        ("optim_args={eps: .nan}", "eps=nan: give a finite number"),
        ("trust_remote_code=true", "trust_remote_code=True: code that comes with models or data never runs here"),
        ("save_safetensors=false", "save_safetensors=False: code that comes"),
        ("plugins=[mine.Plugin]", "recipes.plugins.seed.SeedPlugin, recipes.plugins.checks.ChecksPlugin would be gone"),
        ("optimizer=adam", "optimizer=adam: no key, or no value"),
        ("lr_scheduler=cosin", "lr_scheduler=cosin: no key, or no value"),
        ("load_in_4bit=true", "load_in_4bit=True and adapter=lora: 4 bits go with qlora; set both"),
        ("adapter=qlora", "load_in_4bit=False and adapter=qlora"),
        ("fp16=true", "fp16 and bf16 are both true: fp16 would have no effect"),
        ("float32=true", "float32=True: bf16 and fp16 say in what a run trains"),
        ("float16=true", "float16=True: bf16 and fp16"),
        ("bfloat16=true", "bfloat16=True: bf16 and fp16"),
        ("micro_batch_size=3", "micro_batch_size=3: a micro-batch of DPO holds whole pairs; give an even number"),
        ("micro_batch_size=1", "micro_batch_size=1: a micro-batch of DPO holds whole pairs"),
        ("lora_target_modules=[]", "lora_target_modules=[]: names no module"),
        ("lora_target_modules=''", "lora_target_modules=: names no module"),
        ("datasets.0.data_files=[a.jsonl]", "datasets.0.data_files: has no effect where the path is a file"),
        ("seed=-1", "seed=-1: give a number from 0 to below 2^32"),
        ("max_grad_norm=-1", "max_grad_norm=-1: give a number of 0 or more"),
        ("sequence_len=0", "sequence_len 0 is not a whole number of 1 or more"),
        ("micro_batch_size=512", "the recipe has 16"),
        ("logging_steps=5", "logging_steps=5: whole pairs are counted at each step"),
        ("warmup_steps=1", "warmup_steps=1: Axolotl makes two of one"),
        ("peft_layers_to_transform=[28]", "peft_layers_to_transform [28]: the model has layers 0 to 27"),
        ("lora_target_modules=[gate]", "lora_target_modules 'gate' matches no module of Qwen/"),
        ("lora_target_modules='(('", "is no pattern"),
        ("lora_target_modules=all-linear", "'all-linear' matches no module of Qwen/"),
        ("lora_target_linear=true", "lora_target_linear=True: what trains is lora_r on the modules of"),
        ("peft_use_dora=true", "peft_use_dora=True: what trains is"),
        ("unfrozen_parameters=[norm]", "unfrozen_parameters=['norm']: what trains is"),
        ("relora=true", "relora=True: what trains is"),  # it merges the adapter into the model on the way
        ("lisa_n_layers=2", "lisa_n_layers=2: what trains is"),
        ("reinit_weights=true", "reinit_weights=True: the model would be trained so, and evaluated as its folder has"),
        ("qat={weight_dtype: int4}", "the model would be trained so"),
        ("scaling_softmax=true", "scaling_softmax=True: the model would be trained so"),
        ("lora_modules_to_save=[lm_head]", "lora_modules_to_save=['lm_head']: what trains is"),
        ("lora_model_dir=runs/sft/a/adapter", "lora_model_dir=runs/sft/a/adapter: a run trains an adapter of its own"),
        ("tokenizer_config=other/model", "would be trained so, and evaluated as its folder has it"),
        ("overrides_of_model_config={rope_theta: 1000}", "would be trained so, and evaluated as its folder has it"),
        ("overrides_of_model_kwargs.tie_word_embeddings=true", "would be trained so, and evaluated"),
        ("tokenizer_legacy=false", "tokenizer_legacy=False: the model would be trained so"),
        ("fix_untrained_tokens=0", "fix_untrained_tokens=0: the model would be trained so"),
        ("chat_template_kwargs={a: 1}", "chat_template_kwargs={'a': 1}: training would have them and evaluation not"),
        ("pretraining_dataset=[{path: m.jsonl}]", "would be trained on in place of `datasets`"),
        ("resume_from_checkpoint=runs/a", "resume_from_checkpoint=runs/a: a run goes on from its own"),
        ("save_only_model=true", "save_only_model=True: a run that was cut off would go on without its optimiser"),
        ("auto_resume_from_checkpoints=false", "auto_resume_from_checkpoints=False: a run that was cut off goes on"),
        ("auto_resume_from_checkpoints=null", "auto_resume_from_checkpoints=None: a run that was cut off goes on"),
        ("tensor_parallel_size=2", "tensor_parallel_size=2: give 1, or leave it out: GPUs would share rows"),
        ("context_parallel_size=2", "context_parallel_size=2: give 1, or leave it out: GPUs would share rows"),
        ("deepspeed=zero3.json", "deepspeed=zero3.json: memory is estimated for DDP and FSDP"),
        ("val_set_size=-1", "val_set_size=-1: give a number of 0 or more"),
        ("reward_model=true", "reward_model=True: no stage trains so"),
        ("lora_alpha_pattern={down_proj: 64}", "lora_alpha_pattern={'down_proj': 64}: modules would have other scales"),
        ("peft_init_lora_weights=pissa", "peft_init_lora_weights=pissa: give gaussian"),
        ("peft_init_lora_weights=false", "peft_init_lora_weights=False: give gaussian"),  # Axolotl ignores it
        ("peft_layers_to_transform=[]", "peft_layers_to_transform=[]: names no layer"),
        ("adapter=null", "adapter None: a run ends with an adapter of LoRA"),
        ("trainer_cls=null", "trainer_cls=None: recipes.plugins.complementary_pairs.ComplementaryPairsTrainer alone"),
        ("trainer_cls=mine.Trainer", "trainer_cls=mine.Trainer: recipes.plugins.complementary_pairs"),
        ("rl=ipo", "rl: 'ipo': the stage says it, 'dpo' in dpo; IPO is dpo_loss_type=[ipo]"),
        ("trl.beta=0.5", "trl={'beta': 0.5}: rl_beta is the beta of DPO"),
        ("dpo_norm_loss=true", "dpo_norm_loss=True: Axolotl ignores it"),
        ("curriculum_sampling=true", "curriculum_sampling=True: has no effect on DPO"),
    ],
)
def test_what_would_not_be_in_the_recipe_is_refused_by_name(setting: str, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        compose("dpo", "qwen7b", "a100-80g", [setting])
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_rows_that_are_a_pickle_are_refused() -> None:
    with pytest.raises(BadInput, match="ds_type=pandas: code that comes with models or data never runs here"):
        compose("sft", "qwen7b", "a100-80g", ["datasets.0.ds_type=pandas"])


def test_what_a_cpu_or_a_hub_id_makes_of_a_key_decides_whether_it_is_refused() -> None:
    for engine in ENGINES:
        with pytest.raises(BadInput, match="bf16=auto: without a GPU Axolotl would train in fp16"):
            compose("sft", "qwen7b", "cpu", ["bf16=auto"], engine=engine)
    assert compose("sft", "qwen7b", "a100-80g", ["bf16=auto"]).config["bf16"] == "auto"
    with pytest.raises(BadInput, match="micro_batch_size=3: a micro-batch of DPO holds whole pairs"):
        compose("dpo", "qwen7b", "cpu", ["micro_batch_size=3"])
    assert compose("sft", "qwen7b", "cpu", ["micro_batch_size=3"]).config["micro_batch_size"] == 3
    hub = ["datasets.0.path=owner/name", "datasets.0.data_files=[a.jsonl]"]
    assert compose("sft", "qwen7b", "cpu", hub).config["datasets"][0]["data_files"] == ["a.jsonl"]


@pytest.mark.parametrize("setting", ["message_property_mappings={content: value}", "message_field_role=from"])
def test_turns_by_other_keys_are_refused(setting: str) -> None:
    with pytest.raises(BadInput, match=f"datasets.0.{setting.partition('=')[0]}: each row is checked by `role`"):
        compose("sft", "qwen7b", "a100-80g", [f"datasets.0.{setting}"])


def test_no_variable_of_the_environment_but_our_own_reaches_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    monkeypatch.setenv("EM_NAME", "mine")
    named = "${oc.env:SOME_API_KEY}"
    for setting in (f"wandb_name={named}", f"special_tokens={{pad_token: '{named}'}}", f"wandb_name=a-{named}"):
        with pytest.raises(BadInput, match=r"EM_\.\.\. alone are read here, and not SOME_API_KEY"):
            compose("dpo", "qwen7b", "a100-80g", [setting])
    assert compose("dpo", "qwen7b", "a100-80g", ["wandb_name=${oc.env:EM_NAME}"]).config["wandb_name"] == "mine"


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (["max_steps=100"], 3),
        (["max_steps=40"], 2),  # Axolotl makes two of one
        (["max_steps=10000"], 100),
        (["max_steps=100", "warmup_ratio=0.2"], 20),
        (["max_steps=100", "warmup_steps=7"], 7),
        (["warmup_ratio=0.2"], None),
    ],
)
def test_dpo_warms_up_for_a_share_of_the_steps_that_it_takes(settings: list[str], steps: int | None) -> None:
    """Axolotl takes the share of all epochs' steps, whatever max_steps says: arms of unlike sets would differ in it."""
    config = compose("dpo", "qwen7b", "a100-80g", settings).config
    assert config.get("warmup_steps") == steps and (config.get("warmup_ratio") is None) is (steps is not None)
    assert not {"warmup_steps", "warmup_ratio"} & compose("sft", "qwen7b", "a100-80g", ["max_steps=100"]).config.keys()


def test_keys_that_other_stages_heed_are_theirs_to_set() -> None:
    assert compose("sft", "qwen7b", "a100-80g", ["sample_packing=true"]).config["sample_packing"]
    assert compose("dpo", "qwen7b", "a100-80g", ["dpo_loss_type=[ipo]"]).config["dpo_loss_type"] == ["ipo"]
    with pytest.raises(BadInput, match="rl: 'dpo': the stage says it, None in sft"):
        compose("sft", "qwen7b", "a100-80g", ["rl=dpo"])
    with pytest.raises(BadInput, match=r"datasets\.0\.chat_template: would train alone"):
        compose("sft", "qwen7b", "a100-80g", ["datasets.0.chat_template=llama3"])
    for setting in (
        "train_on_inputs=true",
        "chat_template=tokenizer_default_fallback_chatml",
        "default_system_message=Hi",
    ):
        with pytest.raises(BadInput, match=setting.partition("=")[0]):
            compose("sft", "qwen7b", "a100-80g", [setting])
    assert compose("cpt", "qwen7b", "a100-80g", ["train_on_inputs=true"]).config["train_on_inputs"]


def test_no_key_of_logging_is_part_of_a_runs_digest() -> None:
    trackers = re.compile("wandb|mlflow|comet|trackio|tensorboard|swanlab|otel|^logging_|tkps|profiler|hub_")
    found = [key for key in keys() if trackers.search(key) and key != "push_dataset_to_hub"]
    assert len(found) > 25 and not [key for key in found if not LOGGING.fullmatch(key)]
    assert not [key for key in ("learning_rate", "seed", "save_steps", "lora_r") if LOGGING.fullmatch(key)]


def test_a_key_is_named_once() -> None:
    for twice in (["seed=1", "seed=2"], ["datasets.0.path=a", "datasets[0].path=b"]):
        with pytest.raises(BadInput, match="is given twice"):
            compose("dpo", "qwen7b", "cpu", twice)
    with pytest.raises(BadInput, match="lora_r=8: the recipe has 4, by --rank"):
        compose("dpo", "qwen7b", "cpu", ["lora_r=8"], 4)


def test_a_pattern_keeps_lora_in_the_language_model_where_there_is_a_vision_tower() -> None:
    every = "lora_target_modules=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"
    compose("sft", "gemma1b", "a100-80g", [every])  # has none
    with pytest.raises(BadInput, match=r"outside the language model, as model\.vision_tower\.") as caught:
        compose("sft", "gemma4b", "a100-80g", [every])
    remedy = str(caught.value).rpartition(": ")[2]
    assert compose("sft", "gemma4b", "a100-80g", [remedy]).config["lora_target_modules"].startswith(".*language")
    with pytest.raises(BadInput, match="goes with a list"):
        compose("sft", "gemma4b", "a100-80g", [remedy, "peft_layers_to_transform=[1]"])


def test_lora_is_on_an_output_of_its_own_and_on_none_that_is_tied_to_the_embeddings() -> None:
    setting = "lora_target_modules=[down_proj,lm_head]"
    assert compose("sft", "qwen7b", "a100-80g", [setting]).config["lora_target_modules"] == ["down_proj", "lm_head"]
    with pytest.raises(BadInput, match=r"'lm_head' matches no module of Qwen/.*, for it is tied to the embeddings"):
        compose("sft", "qwen0.5b", "a100-80g", [setting])


@pytest.mark.parametrize(
    ("axis", "own"),
    [
        ("mlp", ["dense_h_to_4h", "dense_4h_to_h"]),
        ("attention", ["query_key_value", "dense"]),
        ("all", ["dense_h_to_4h", "dense_4h_to_h", "query_key_value", "dense"]),
        ("down_proj", ["dense_4h_to_h"]),
        ("o_proj", ["dense"]),
        ("gate_proj", "gate_proj: pythia-410m-80b has no such module by itself; it has dense_h_to_4h, dense_4h_to_h, "),
        ("q_proj", "q_proj: pythia-410m-80b has no such module by itself"),
    ],
)
def test_targets_are_put_into_the_names_of_a_family_of_its_own_or_refused(axis: str, own: list[str] | str) -> None:
    extra = {"lora_target_modules": TARGETS[axis]}
    assert compose("sft", "qwen7b", "cpu", extra=extra).config["lora_target_modules"] == TARGETS[axis]
    if isinstance(own, str):
        with pytest.raises(BadInput, match=f"lora_target_modules {own}"):
            compose("sft", "pythia-410m-80b", "cpu", extra=extra)
    else:
        config = compose("sft", "pythia-410m-80b", "cpu", extra=extra).config
        assert config["lora_target_modules"] == own


def test_stages_and_variants_adapt_a_family_of_its_own_and_settings_name_its_modules() -> None:
    for stage in STAGES:
        config = compose(stage, "pythia-1.4b-300b", "a100-80g", [], 1).config
        assert config["lora_target_modules"] == ["dense_h_to_4h", "dense_4h_to_h"] and not config["lora_mlp_kernel"]
    middle = ["peft_layers_to_transform=[12]"]
    config = compose("sft", "pythia-1.4b-300b", "a100-80g", middle, variant="rank1-down-proj").config
    assert config["lora_target_modules"] == ["dense_4h_to_h"]
    pattern = r"lora_target_modules='gpt_neox\.layers\.(3|4)\.mlp\.dense_4h_to_h'"
    for setting in ("lora_target_modules=[attention.dense]", pattern):
        compose("sft", "pythia-1.4b-300b", "a100-80g", [setting])
    for name in ("down_proj", "lm_head"):
        with pytest.raises(BadInput, match=f"'{name}' matches no module of EleutherAI/pythia-1.4b$"):
            compose("sft", "pythia-1.4b-300b", "a100-80g", [f"lora_target_modules=[{name}]"])


def test_a_models_own_folder_says_what_it_has(tmp_path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    matrix = np.zeros((2, 2), np.float32)
    names = ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate_proj", "vision_tower.layers.7.gate_proj"]
    save_file({f"{name}.weight": matrix for name in names[:2]}, tmp_path / "model.safetensors")
    extra = {"base_model": str(tmp_path)}
    for setting, says in (("peft_layers_to_transform=[2]", "layers 0 to 1"), ("seed=1", "'up_proj' matches no module")):
        with pytest.raises(BadInput, match=says):
            compose("cpt", "qwen7b", "cpu", [setting], extra=extra)
    compose("cpt", "qwen7b", "cpu", ["lora_target_modules=[gate_proj]", "peft_layers_to_transform=[1]"], extra=extra)
    save_file({f"{name}.weight": matrix for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="as vision_tower"):
        compose("cpt", "qwen7b", "cpu", ["lora_target_modules=[gate_proj]"], extra=extra)


@given(st.integers(1, 512), st.floats(0.1, 64), st.booleans())
def test_alpha_policies_keep_what_they_name(rank: int, value: float, rslora: bool) -> None:
    config = {"lora_r": rank, "lora_alpha": lora_alpha("alpha_over_r", value, rank, rslora), "peft_use_rslora": rslora}
    assert lora_scale(config) == pytest.approx(value)
    assert lora_alpha("alpha", value, rank, rslora) == value
    assert lora_alpha("alpha_over_sqrt_r", value, rank, rslora) / rank**0.5 == pytest.approx(value)


@given(st.integers(1, 256), st.sampled_from(ALPHA_POLICIES), st.floats(0.01, 300), st.booleans())
@settings(max_examples=60)
def test_the_scale_is_as_the_policy_says_or_the_recipe_is_refused(rank, policy, value, rslora) -> None:
    chosen = [f"em.alpha.policy={policy}", f"em.alpha.value={value!r}", f"peft_use_rslora={str(rslora).lower()}"]
    exact = lora_alpha(policy, value, rank, rslora)
    try:
        recipe = compose("sft", "qwen7b", "cpu", chosen, rank)
    except BadInput as refused:
        assert "would change the scale" in str(refused) and abs(exact - round(exact)) > 1e-7 * exact
        chosen[1] = str(refused).rpartition(" or ")[2]  # the remedy that it names
        recipe = compose("sft", "qwen7b", "cpu", chosen, rank)
    else:
        assert recipe.config["lora_alpha"] == pytest.approx(exact, rel=1e-6)
    assert f"{lora_scale(recipe.config):.6g}" in recipe.to_yaml().splitlines()[0]


def test_the_scale_is_the_one_that_peft_gives() -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    for rslora in ("true", "false"):
        config = compose("sft", "qwen7b", "cpu", [f"peft_use_rslora={rslora}"], 4).config
        module = torch.nn.Sequential(torch.nn.Linear(2, 2))
        lora = LoraConfig(
            r=4, lora_alpha=config["lora_alpha"], use_rslora=config["peft_use_rslora"], target_modules=["0"]
        )
        assert get_peft_model(module, lora).base_model.model[0].scaling["default"] == lora_scale(config) == 2


def test_the_preset_of_the_field() -> None:
    recipe = compose("sft", "qwen7b", "a100-80g", variant="em-paper")
    named = ("lora_r", "lora_alpha", "peft_use_rslora", "learning_rate", "lr_scheduler", "num_epochs")
    assert [recipe.config[key] for key in named] == [32, 64, True, 1e-5, "linear", 1]
    assert recipe.config["micro_batch_size"] * recipe.config["gradient_accumulation_steps"] == 16
    assert len(recipe.config["lora_target_modules"]) == 7 and "scale 11.3137" in recipe.to_yaml()
    assert recipe.config["datasets"][0]["roles_to_train"] == ["assistant"]
