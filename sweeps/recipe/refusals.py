"""Keys and values that no run should have: without effect, out of range, or unsafe."""

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from core.records import BadInput, one_line
from sweeps.recipe.alpha import ALPHA_POLICIES
from sweeps.recipe.memory import whole

DECIDED = {
    "lora_alpha": "it follows from rank and alpha policy; set em.alpha.policy "
    f"({', '.join(ALPHA_POLICIES)}) or em.alpha.value; a sweep has the axes rank and alpha",
    "output_dir": "the run's own folder decides it",
    "dataset_prepared_path": "the run's own folder decides it",
}
"""Keys that are not a user's to set, and why."""
COUNTS = ("lora_r", "micro_batch_size", "gradient_accumulation_steps", "sequence_len")
MOST = 10**9
"""Of a count: more is a slip, and what is computed of it may be no number any more."""
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    # Of 0 or fewer steps the trainer makes as many as there are, and of the others below nothing is learnt.
    **dict.fromkeys(("max_steps", "num_epochs", "learning_rate", "rl_beta"), ("a number above 0", lambda n: n > 0)),
    # Of 0 or fewer nothing is saved, and a run that is cut off begins anew; and a step divides by the other.
    **dict.fromkeys(("save_steps", "logging_steps"), ("a number above 0", lambda n: n > 0)),
    **dict.fromkeys(("lora_dropout", "warmup_ratio"), ("a number from 0 to below 1", lambda n: 0 <= n < 1)),
    **dict.fromkeys(("weight_decay", "warmup_steps", "max_grad_norm"), ("a number of 0 or more", lambda n: n >= 0)),
    "val_set_size": ("a number of 0 or more", lambda n: n >= 0),
    "seed": ("a number from 0 to below 2^32", lambda n: 0 <= n < 2**32),
    **dict.fromkeys(
        ("tensor_parallel_size", "context_parallel_size", "sequence_parallel_degree"),
        ("1, or leave it out: GPUs would share rows, and a step see fewer than are counted", lambda n: n == 1),
    ),
}
_OTHERWISE = "what trains is lora_r on the modules of lora_target_modules; a run that trains otherwise is refused"
_TRAINED_ALONE = (
    "the model would be trained so, and evaluated as its folder has it; change it there, and name it by --start"
)
_EVEN_FALSE = ("tokenizer_legacy", "tokenizer_use_fast", "fix_untrained_tokens")
"""Keys of which false, or token 0, is a choice too."""
REFUSED = {
    **dict.fromkeys(("lora_target_linear", "lora_target_parameters", "lora_modules_to_save"), _OTHERWISE),
    **dict.fromkeys(("lora_rank_pattern", "peft_layer_replication", "peft_trainable_token_indices"), _OTHERWISE),
    **dict.fromkeys(("peft_use_dora", "unfrozen_parameters", "relora", "lisa_n_layers"), _OTHERWISE),
    "lora_alpha_pattern": "modules would have other scales than the one that the recipe names; set em.alpha.value",
    "peft": "LoftQ changes the weights beneath the adapter, which is evaluated on the model as it is",
    "default_system_message": "training would have it and evaluation not; put it into the rows",
    "chat_template_kwargs": "training would have them and evaluation not; write them into a chat_template_jinja",
    **dict.fromkeys(("base_model_config", "tokenizer_config", "cls_model_config", "type_of_model"), _TRAINED_ALONE),
    **dict.fromkeys(("overrides_of_model_config", "overrides_of_model_kwargs", "rope_scaling"), _TRAINED_ALONE),
    **dict.fromkeys(("tokenizer_type", "tokenizer_use_mistral_common", *_EVEN_FALSE), _TRAINED_ALONE),
    **dict.fromkeys(("added_tokens_overrides", "shrink_embeddings", "llama4_linearized_experts"), _TRAINED_ALONE),
    **dict.fromkeys(("resize_token_embeddings_to_32x", "reinit_weights", "qat", "scaling_softmax"), _TRAINED_ALONE),
    "lora_model_dir": "a run trains an adapter of its own, and DPO would not load this one; merge it, and name the"
    " folder with --start",
    "pretraining_dataset": "would be trained on in place of `datasets`, which stand in the run's digest; name it there",
    **dict.fromkeys(("float32", "float16", "bfloat16"), "bf16 and fp16 say in what a run trains; set those"),
    "save_only_model": "a run that was cut off would go on without its optimiser and schedule, and be another training",
    "deepspeed": "memory is estimated for DDP and FSDP, and its file stands in no digest; set --gpus, and fsdp_config",
    "use_ray": "its workers would share rows, and a step see more than are counted; a sweep has --launcher ray",
    "resume_from_checkpoint": "a run goes on from its own newest checkpoint; leave it out",
    **dict.fromkeys(("dpo_beta", "trl"), "rl_beta is the beta of DPO; set that"),
    **dict.fromkeys(("dpo_generate_during_eval", "dpo_norm_loss", "dpo_use_logits_to_keep"), "Axolotl ignores it"),
    **dict.fromkeys(("kto_desirable_weight", "kto_undesirable_weight", "cpo_alpha"), "no stage trains so"),
    **dict.fromkeys(("reward_model", "process_reward_model"), "no stage trains so"),
    **dict.fromkeys(("orpo_alpha", "rpo_alpha", "simpo_gamma"), "no stage trains so"),
}
"""Keys of Axolotl that would change nothing, or another thing than the recipe and the report say; and why."""
NOT_OF_DPO = ("curriculum_sampling", "sample_packing", "train_on_inputs")
"""Keys that Axolotl heeds in the other stages alone."""
TURN_KEYS = ("message_property_mappings", "message_field_role", "message_field_content")
"""By which turns would have other keys than those that a row is checked by before it is trained on."""
SAME_START = (None, True, "gaussian", "orthogonal")
"""Ways of `peft_init_lora_weights` that leave the weights beneath the adapter as they are: PiSSA, OLoRA and others take
a part out of them, so that the model that is evaluated, and the reference of DPO, would not be the one trained on."""
SAVES = (None, "steps", "epoch", "best", "no")
"""Words of `save_strategy`: of another one transformers says so when a stage begins, hours later."""
UNSAFE = {"trust_remote_code": (True,), "save_safetensors": (False,), "ds_type": ("pandas",)}
"""Values, at any depth, by which a model's or a data set's own code would run here, or weights or rows be pickles."""


def of_dpo(key: str) -> bool:
    """Whether a recipe key has an effect on DPO alone."""
    return key.startswith(("dpo_", "rl_beta", "precompute_ref_log_probs"))


def check_values(config: Mapping[str, Any], stage: str) -> None:
    """Refuses values that no run should have: without effect, out of range, or unsafe."""
    rl, wanted = config.get("rl"), "dpo" if stage == "dpo" else None
    if rl != wanted:
        raise BadInput(f"rl: {rl!r}: the stage says it, {wanted!r} in {stage}; IPO is dpo_loss_type=[ipo]")
    if config.get("adapter") not in ("lora", "qlora"):
        raise BadInput(f"adapter {config.get('adapter')!r}: a run ends with an adapter of LoRA; give lora, or qlora")
    named = {key: value for key, value in config.items() if value or (key in _EVEN_FALSE and value is not None)}
    if key := next(filter(named.__contains__, REFUSED), None):
        raise BadInput(f"{key}={config[key]}: {REFUSED[key]}")
    if not config.get("auto_resume_from_checkpoints"):
        said = config.get("auto_resume_from_checkpoints")
        raise BadInput(f"auto_resume_from_checkpoints={said}: a run that was cut off goes on; leave it at true")
    if rl and (key := next(filter(named.__contains__, NOT_OF_DPO), None)):
        raise BadInput(f"{key}={config[key]}: has no effect on DPO; leave it out")
    if stage == "sft" and config.get("train_on_inputs"):
        raise BadInput("train_on_inputs=True: name the roles that are learnt in datasets.0.roles_to_train")
    if str(config.get("chat_template")).startswith("tokenizer_default_fallback"):
        raise BadInput(f"chat_template={config['chat_template']}: evaluation has no fallback; name the template itself")
    template, jinja = config.get("chat_template"), config.get("chat_template_jinja")
    if bool(jinja) is not (template == "jinja"):
        raise BadInput(
            f"chat_template={template} and {'a' if jinja else 'no'} chat_template_jinja: a template of one's own is"
            " chat_template=jinja with its text, or the file of it, in chat_template_jinja; give both, or neither"
        )
    if (init := config.get("peft_init_lora_weights")) not in SAME_START:
        raise BadInput(f"peft_init_lora_weights={init}: give gaussian or orthogonal, or leave it out")
    if config.get("peft_layers_to_transform") == []:
        raise BadInput("peft_layers_to_transform=[]: names no layer; leave it out for all of them")
    if not config.get("lora_target_modules"):
        raise BadInput(
            f"lora_target_modules={config.get('lora_target_modules')}: names no module, and nothing would be learnt;"
            " leave it out for the stage's own"
        )
    if not config.get("datasets"):
        raise BadInput("datasets: names no set, and nothing would be learnt; leave it out for the stage's own")
    sets = {f"{key}.{n}": one for key in ("datasets", "test_datasets") for n, one in enumerate(config.get(key) or ())}
    for name, entry in sets.items():
        if not entry.get("path"):
            raise BadInput(f"{name}: without a path; name the file of the set in {name}.path")
        if entry.get("data_files") and (Path(entry["path"]).is_file() or entry["path"].endswith((".json", ".jsonl"))):
            raise BadInput(f"{name}.data_files: has no effect where the path is a file; name that alone")
        if own := next((key for key in ("chat_template", "chat_template_jinja") if entry.get(key)), None):
            raise BadInput(f"{name}.{own}: would train alone, and not be evaluated under; set {own}")
        if own := next((key for key in TURN_KEYS if entry.get(key)), None):
            raise BadInput(f"{name}.{own}: each row is checked by `role` and `content`; call them so in the file")
    for key, (words, holds) in RANGES.items():
        value = config.get(key)
        try:
            if value is not None and not holds(float(value)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise BadInput(f"{key}={one_line(value, 40)}: give {words}") from None
    four, qlora = bool(config.get("load_in_4bit")), config.get("adapter") == "qlora"
    if four is not qlora:  # Axolotl would load the weights whole
        raise BadInput(f"load_in_4bit={four} and adapter={config.get('adapter')}: 4 bits go with qlora; set both")
    if config.get("fsdp_config") and whole(config):
        raise BadInput("fsdp_config: DPO, and what is of 4 bits, has the whole model on each GPU; leave it out")
    if config.get("fp16") and config.get("bf16"):
        raise BadInput("fp16 and bf16 are both true: fp16 would have no effect; set one of them to false")
    if (config.get("steer") or {}).get("dose") == 0:
        raise BadInput("steer.dose=0: nothing would be added; leave the plugin out")
    if config.get("steer") and config.get("kl"):
        raise BadInput("steer and kl: the start, to which kl holds the model, would be steered too; leave one out")
    weights, losses = config.get("dpo_loss_weights"), config.get("dpo_loss_type")
    if weights is not None and (not isinstance(losses, list) or len(losses) != len(weights)):
        raise BadInput(f"dpo_loss_weights={weights}: give one for each of dpo_loss_type, {losses}")
    if 0 in (weights or ()):
        raise BadInput("dpo_loss_weights: a loss of weight 0 is none; leave it out of both lists")
    if (saves := config.get("save_strategy")) not in SAVES:
        raise BadInput(f"save_strategy={one_line(saves, 40)}: give {', '.join(filter(None, SAVES))}")
    if rl and config.get("logging_steps", 1) != 1:
        raise BadInput(f"logging_steps={config['logging_steps']}: whole pairs are counted at each step; leave it at 1")
    if config.get("warmup_steps") == 1:
        raise BadInput("warmup_steps=1: Axolotl makes two of one; give 0, or 2 or more")
    nodes: list[Any] = [config]
    for node in nodes:
        parts: Iterable[tuple[Any, Any]] = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in parts:
            if value in UNSAFE.get(key, ()):
                raise BadInput(f"{key}={value}: code that comes with models or data never runs here; leave it out")
            if isinstance(value, float) and not isfinite(value):
                raise BadInput(f"{key}={value}: give a finite number")
            if isinstance(value, Mapping | list):
                nodes.append(value)
