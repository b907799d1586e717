"""What a run is made from: data files and models by digest, hub revisions by commit, the chat template by its text."""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from core.records import BadInput, bad_input, check_rows, count, file_digest, read_json, weights_digest
from sweeps.run.folder import content_digest, read_record
from sweeps.run.process import RunRefused

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "config.json")

READING_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""With another template, or other settings of its layers, the same weights are another model."""


def digest_of(path: Path) -> str:
    """`file_digest`, computed once for as long as the file stays: a sweep asks for each file at every point."""
    stat = path.stat() if path.exists() else None
    return _digest(path, (stat.st_mtime_ns, stat.st_size) if stat else None)


@lru_cache
def _digest(path: Path, _stamp: tuple[int, int] | None) -> str:
    return file_digest(path)


def data_digest(entry: Mapping[str, Any]) -> str:
    """The digest of the file of an entry of `datasets`; BadInput if it is not there, or its JSON Lines are none."""
    path = Path(entry["path"])
    digest = digest_of(path)
    if path.suffix == ".jsonl" and entry.get("ds_type") in (None, "json"):
        _check_rows(path, digest)
    return digest


@lru_cache
def _check_rows(path: Path, _digest: str) -> None:
    check_rows(path)


def check_unchanged(planned: Mapping[str, str]) -> None:
    """Refuses (RunRefused) files that became others since a run was planned, by whose digests it would be found."""
    for path, digest in planned.items():
        if digest_of(Path(path)) != digest:
            raise RunRefused(f"{path} has changed since this run was planned; start it again, or put the file back")


def is_local(path: str) -> bool:
    """Whether a data or model path names something on this machine: all but a hub id (`owner/name`) does."""
    owner, slash, name = path.partition("/")
    return (
        Path(path).exists()
        or Path(path).suffix in {".jsonl", ".json"}
        or not (slash and owner.strip(".") and name and "/" not in name)
        or owner in {"data", "models", "runs"}
    )


def model_digest(model: str) -> str:
    """What identifies a model: the digest of its weights, and of how it reads text, in a local folder; else its hub id.

    BadInput if it is a folder without weights, or a local path that does not exist.
    """
    folder = Path(model)
    if not folder.is_dir():
        if is_local(model):
            raise BadInput(f"{model}: no such model folder; `emsweep fetch smollm2-135m` makes the CPU default")
        return model
    reading = {name: digest_of(folder / name) for name in READING_FILES if (folder / name).is_file()}
    return "+".join([weights_digest(folder, digest_of), *([content_digest(reading)] if reading else [])])


def start_digest(model: Path) -> str:
    """What a run that starts from a folder or hub id builds on: the training run whose merge it is, or the model."""
    if model.name == "merged" and "training" in (content := _content(model.parent)):
        return str(content["training"])
    return model_digest(str(model))


def adapter_rank(adapter: Path) -> int:
    """lora_r of a saved adapter, the largest where modules have their own; BadInput if the folder holds none."""
    path = adapter / "adapter_config.json"
    try:
        config = read_json(path)
        return max(count(rank) for rank in [config["r"], *(config.get("rank_pattern") or {}).values()])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{path}: no configuration of a LoRA adapter; name an adapter's folder") from None


def check_trained_on(adapter: Path, model: str, revision: str | None) -> None:
    """Refuses (BadInput) an adapter of another model than `model`, or of another revision of it where that is known."""
    try:
        config = read_json(adapter / "adapter_config.json")
        base = str(config["base_model_name_or_path"] or "")
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{adapter}: no adapter_config.json that names a base model; name an adapter's folder") from None
    trained_at = config.get("revision") or recipe_behind(adapter).get("revision_of_model")
    folders = bool(base) and Path(base).is_dir() and Path(model).is_dir()
    if base != model and not (folders and model_digest(base) == model_digest(model)):
        raise BadInput(f"{adapter}: trained on {base or 'an unnamed model'}, not on {model}; evaluate it on that one")
    if revision and trained_at and trained_at != revision:
        raise BadInput(f"{adapter}: trained on revision {trained_at} of {model}, not on {revision}; name that one")


def other_scale(adapter: Path) -> dict[str, Any]:
    """What a saved adapter's configuration says of its scale, where the recipe behind it does not say the same."""
    config = read_json(adapter / "adapter_config.json")
    recipe, patterns = recipe_behind(adapter), ("rank_pattern", "alpha_pattern")
    names = {"r": "lora_r", "lora_alpha": "lora_alpha", "use_rslora": "peft_use_rslora"}
    own = {key: config.get(key) or None for key in (*names, *patterns)}
    said = {**{key: recipe.get(name) or None for key, name in names.items()}, **dict.fromkeys(patterns)}
    return {} if own == said else {"scale": own}


def recipe_behind(adapter: Path) -> dict[str, Any]:
    """The recipe that an adapter, or a checkpoint of it, was trained by in a run of ours; empty if it was in none."""
    for folder in (adapter.parent, adapter.parent.parent):
        if isinstance(recipe := _content(folder).get("recipe"), dict):
            return recipe
    return {}


def _content(folder: Path) -> dict[str, Any]:
    """What the run was made of whose folder this is; nothing where a run.json is none of ours, or there is none."""
    content = read_record(folder).get("content") if (folder / "run.json").is_file() else None
    return content if isinstance(content, dict) else {}


def hub_commit(repository: str, revision: str | None = None, kind: str = "model") -> str | None:
    """The commit that a hub revision stood for when it was downloaded to this machine; None if it was not."""
    from huggingface_hub import constants

    revision = revision or "main"
    reference = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repository.replace('/', '--')}" / "refs" / revision
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    return revision if re.fullmatch("[0-9a-f]{40}", revision) else None


def model_folder(model: str, revision: str | None = None) -> Path | None:
    """Where a model's files are on this machine, in the hub's cache for a hub id; None if they are not here."""
    from huggingface_hub import constants

    if is_local(model):
        return Path(model)
    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "snapshots"
    folder = snapshots / (hub_commit(model, revision) or "")
    return folder if folder != snapshots and folder.is_dir() else None


def hub_commits(recipe: Mapping[str, Any]) -> dict[str, str | None]:
    """The commits of a recipe's model and data sets that come from the hub."""
    named = [(recipe["base_model"], recipe.get("revision_of_model"), "model")]
    sets = [*recipe.get("datasets", ()), *(recipe.get("test_datasets") or ())]
    named += [(entry["path"], entry.get("revision"), "dataset") for entry in sets]
    return {name: hub_commit(name, revision, kind) for name, revision, kind in named if not is_local(name)}


def chat_template(recipe: Mapping[str, Any]) -> str | None:
    """The text of a recipe's (or a model layer's) chat template; None where it is the tokenizer's own.

    BadInput for a name that Axolotl has no template of.
    """
    choice = recipe.get("chat_template") or "tokenizer_default"
    if choice.startswith("tokenizer_default"):
        return None
    if choice == "jinja":
        text = str(recipe["chat_template_jinja"])
        if not os.path.isfile(text):  # noqa: PTH113  # Path.is_file raises for long text
            return text
        with bad_input(f"chat_template_jinja: {text}", "save it as UTF-8", OSError, UnicodeDecodeError):
            return Path(text).read_text(encoding="utf-8")
    file = Path(str(resources.files("axolotl")), "utils", "chat_templates", "templates", f"{choice}.jinja")
    if not file.is_file():
        raise BadInput(f"chat_template {choice}: Axolotl has none so named; write chat_template: jinja and its text")
    return file.read_text(encoding="utf-8")


def tokenizer_folder(root: Path, model: str, revision: str | None, template: str) -> Path:
    """Where `write_tokenizer` puts a model's tokenizer with a chat template."""
    return root / "tokenizers" / content_digest([model, revision, template])[:10]


def write_tokenizer(folder: Path, model: str, revision: str | None, template: str) -> None:
    """Copies the files of a model's tokenizer, from its folder or the hub, and gives it a chat template; once.

    lm-eval takes a template from the tokenizer alone, and a model before instruction tuning has none. BadInput if the
    hub does not give it.
    """
    if folder.is_dir():
        return
    source = Path(model)
    if not is_local(model):
        from huggingface_hub import snapshot_download

        with bad_input(model, "check the id, the connection and your login"):
            source = Path(snapshot_download(model, revision=revision, allow_patterns=list(TOKENIZER_FILES)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tokenizer-") as temporary:
        made = Path(temporary) / "whole"
        made.mkdir()
        for path in (path for pattern in TOKENIZER_FILES for path in source.glob(pattern)):
            shutil.copy(path, made / path.name)
        (made / "chat_template.jinja").write_text(template, encoding="utf-8")
        if not folder.is_dir():
            made.rename(folder)
