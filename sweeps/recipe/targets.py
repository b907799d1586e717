"""Whether LoRA's targets and layers are the language model's, as far as the model is known before it is loaded.

recipes/plugins checks the loaded model too, which a sweep would learn of hours later.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.records import BadInput, bad_input
from sweeps.recipe.headers import stored
from sweeps.recipe.memory import LAYER, MLP, Shape, table_modules, targeted

OTHER_TOWERS = re.compile(r"vision|visual|audio|multi_modal")
"""In the names of modules outside the language model."""


def own_targets(named: Any, shape: Shape, model: str) -> Any:
    """LoRA's targets, which stages, variants and axes call by Llama's names, by those of a family that has others.

    A module takes the place of all that it stands for; the gate that an MLP lacks goes with the whole MLP. BadInput for
    a target that is but a part of a module there, or is not there at all.
    """
    if not shape.modules or not isinstance(named, list):
        return named
    given = set(named)
    own = [name for name, parts in shape.parts.items() if name in given or given.issuperset(parts)]
    meant = {*own, *(part for name in own for part in shape.parts[name]), *(MLP if given >= MLP else ())}
    if odd := sorted(given - meant):
        has = ", ".join(shape.parts)
        raise BadInput(f"lora_target_modules {', '.join(odd)}: {model} has no such module by itself; it has {has}")
    return own


def check_targets(config: Mapping[str, Any], em: Mapping[str, Any], tabled: bool) -> None:
    """Refuses (BadInput) layers that the model lacks, targets that match nothing, and ones outside the language model.

    Args:
        em: what the table says of a recipe's model: `shape`, and `other_modules`, names outside the language model.
        tabled: whether the recipe starts from the model of the table, and not from another folder or hub id.
    """
    layers, targets = config.get("peft_layers_to_transform"), config.get("lora_target_modules") or []
    with bad_input(f"lora_target_modules {targets!r} is no pattern", "mend it", re.error):
        re.compile(targets if isinstance(targets, str) else "")
    folder = Path(config["base_model"])
    if folder.is_dir():
        stamps = [file.stat().st_mtime_ns for file in folder.glob("*.safetensors") if file.is_file()]
        names = _stored_modules(folder, max(stamps, default=0))
    elif tabled:
        shape, others = em["shape"], tuple(em.get("other_modules", ()))
        names = table_modules(shape["layers"], shape["tied"], others, tuple(shape.get("modules", ())))
    else:
        return  # a hub id that no table knows
    if not names:
        return
    count = 1 + max((int(m[1]) for n in names if not OTHER_TOWERS.search(n) and (m := LAYER.search(n))), default=-1)
    if beyond := [layer for layer in layers or () if not 0 <= layer < count]:
        raise BadInput(f"peft_layers_to_transform {beyond}: the model has layers 0 to {count - 1}")
    if isinstance(targets, str) and layers is not None:
        raise BadInput("peft_layers_to_transform goes with a list of lora_target_modules; name layers in the pattern")
    matched: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        own = {name for name in names if targeted(target if isinstance(targets, str) else [target], name)}
        if not own:
            tied = ", for it is tied to the embeddings" * (target.endswith("lm_head") and em["shape"]["tied"])
            raise BadInput(f"lora_target_modules {target!r} matches no module of {config['base_model']}{tied}")
        matched |= own
    if outside := sorted(name for name in matched if OTHER_TOWERS.search(name)):
        kinds = "|".join(sorted({name.rpartition(".")[2] for name in matched - set(outside)}))
        raise BadInput(
            f"lora_target_modules match outside the language model, as {outside[0]}; give a pattern that does not:"
            f" lora_target_modules='.*language_model.*\\.({kinds})'"
        )


@lru_cache
def _stored_modules(folder: Path, _stamp: int) -> tuple[str, ...]:
    """The modules with a matrix in a model's folder; none where a file cannot be read, which training will say."""
    try:
        matrices = [name for name, (_, tensor) in stored(folder).items() if len(tensor["shape"]) == 2]
    except (OSError, ValueError):
        return ()
    return tuple(name.removesuffix(".weight") for name in matrices if "embed" not in name)
