"""Which hardware profile this machine is."""

import os
import subprocess
from typing import NamedTuple

from core.records import BadInput
from sweeps.recipe import precision
from sweeps.recipe.layers import layer_names, load_layer

LARGEST_ON_CPU = 1e9
"""Parameters of a model that is trained on a CPU unasked."""
TOLERANCE = 0.97
"""nvidia-smi reports a few per cent less than a card is sold with."""
BUSY_GIB = 2.0
"""Memory in use above which a card is taken to be at work: a desktop's screens take less, a model more."""


class Gpu(NamedTuple):
    """A card as nvidia-smi names it."""

    number: str
    uuid: str
    name: str
    gib: float
    used_gib: float


def visible_gpus() -> list[Gpu]:
    """The cards that nvidia-smi shows and CUDA_VISIBLE_DEVICES leaves; none where there is no nvidia-smi.

    BadInput if it fails, or CUDA_VISIBLE_DEVICES names a card twice, or one that it does not show, as a part (MIG).
    """
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except FileNotFoundError:
        return []
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"nvidia-smi failed ({error}); mend the driver, or name --hardware") from error
    cards, lost = [], []
    for row in answer.splitlines():
        parts = [part.strip() for part in row.split(",")]
        if len(parts) != len(Gpu._fields):  # its own words: no devices, or one that fell off the bus
            raise BadInput(f"nvidia-smi says: {row.strip()}; mend the driver, or name --hardware")
        number, uuid, name, total, used = parts
        # "[N/A]" where the card's memory is the machine's, as a GB10's is; "[GPU is lost]" is no memory.
        shares = total in ("[N/A]", "[Not Supported]")
        if not shares and not total.replace(".", "").isdigit():
            lost.append(row.strip())
            continue
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if shares else float(total) / 1024
        cards.append(Gpu(number, uuid, name, gib, float(used) / 1024 if used.isdigit() else 0.0))
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        if lost:
            raise BadInput(f"nvidia-smi says: {lost[0]}; mend the driver, or name the others in CUDA_VISIBLE_DEVICES")
        return cards
    chosen = []
    for wanted in filter(None, (part.strip() for part in named.split(","))):
        if wanted == "-1":
            break  # CUDA ignores what stands behind
        found = [card for card in cards if wanted in (card.number, card.uuid) or card.uuid.startswith(wanted)]
        if not found:
            remedy = "name the --hardware nearest to it" if wanted.startswith("MIG-") else "name one it shows"
            raise BadInput(f"CUDA_VISIBLE_DEVICES={named}: nvidia-smi shows no GPU {wanted}; {remedy}")
        if found[0] in chosen:
            raise BadInput(f"CUDA_VISIBLE_DEVICES={named}: {wanted} is there twice; name each card once")
        chosen.append(found[0])
    return chosen


def gpu_here() -> bool:
    """Whether there is a card, or a part of one (MIG), for this process."""
    return "MIG-" in os.environ.get("CUDA_VISIBLE_DEVICES", "") or bool(visible_gpus())


def machine_dtype() -> str:
    """The type to evaluate in on this machine, as transformers names it."""
    return "bfloat16" if gpu_here() else precision.cpu_dtype()


def profile_of(cards: list[Gpu]) -> tuple[str, str]:
    """The profile of the smallest card and a line that says why; BadInput if it is smaller than every profile's."""
    if not cards:
        return "cpu", "no GPU here: hardware profile cpu"
    card = min(cards, key=lambda gpu: gpu.gib)
    others = f" (the smallest of {len(cards)})" if len(cards) > 1 else ""
    layers = {name: load_layer("hardware", name)["em"] for name in layer_names("hardware")}
    fitting = {name: em for name, em in layers.items() if em["memory_gib"] and em["memory_gib"] * TOLERANCE <= card.gib}
    if not fitting:
        raise BadInput(f"{card.name} has {card.gib:.0f} GiB, less than every hardware profile; name --hardware")
    letters = "".join(filter(str.isalnum, card.name)).lower()

    def rank(name: str) -> tuple[bool, float, float]:
        # Of the name that Slurm and Ray know the card by, letters and digits stand in nvidia-smi's too.
        kind = "".join(filter(str.isalnum, str(fitting[name].get("accelerator", name)).split("-")[0])).lower()
        return kind in letters, fitting[name]["memory_gib"], -fitting[name].get("tflops", 0)

    best = max(fitting, key=rank)
    if rank(best)[0] and fitting[best]["memory_gib"] >= card.gib * TOLERANCE:
        return best, f"{card.name}{others}: hardware profile {best}"
    return best, f"{card.name}{others} ({card.gib:.0f} GiB) has no profile of its own: the nearest smaller, {best}"


def of_kind(cards: list[Gpu], hardware: str) -> list[Gpu]:
    """The cards of a profile's kind; where there is none, those with at least its memory."""
    least = load_layer("hardware", hardware)["em"]["memory_gib"] * TOLERANCE
    large = [card for card in cards if card.gib >= least]
    return [card for card in large if profile_of([card])[0] == hardware] or large


def this_machine(model: str | None = None) -> tuple[str, str]:
    """The profile of this machine for a model, by its short name, or for any; and a line that says why.

    BadInput if there is no GPU and the model is too large for a CPU, or the card is smaller than every profile's.
    """
    name, why = profile_of(visible_gpus())
    parameters = load_layer("models", model)["em"]["parameters"] if model else 0
    if name == "cpu" and parameters > LARGEST_ON_CPU:
        raise BadInput(
            f"no GPU here, and {model} has {parameters / 1e9:.1f} billion parameters: name --hardware, such as a100-80g"
            " to look at its recipe with --dry-run, or cpu to train here all the same"
        )
    return name, why
