"""lora_alpha by a policy: what a sweep over ranks holds fixed."""

from collections.abc import Mapping
from math import inf, isclose
from typing import Any

from core.records import BadInput

ALPHA_POLICIES = ("alpha_over_r", "alpha", "alpha_over_sqrt_r")


def lora_alpha(policy: str, value: float, rank: int, rslora: bool = False) -> float:
    """lora_alpha for a rank under an alpha policy; a rank sweep at fixed alpha also sweeps the scale.

    `alpha_over_r` keeps the scale of `lora_scale` at `value`, under rsLoRA too; `alpha` keeps alpha itself;
    `alpha_over_sqrt_r` keeps alpha/sqrt(r).
    """
    factors = {"alpha_over_r": rank**0.5 if rslora else float(rank), "alpha": 1.0, "alpha_over_sqrt_r": rank**0.5}
    if policy not in factors:
        raise BadInput(f"unknown alpha policy {policy!r} (there are: {', '.join(ALPHA_POLICIES)})")
    return float(value * factors[policy])


def whole_alpha(alpha: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """lora_alpha by a recipe's policy; BadInput if it is not whole, as Axolotl has it: rounded it is another scale."""
    policy, value, rank = alpha["policy"], alpha["value"], config["lora_r"]
    number = value if isinstance(value, int | float) else 0
    exact = lora_alpha(policy, number, rank, bool(config.get("peft_use_rslora")))
    if not 0 < exact < inf:
        raise BadInput(f"em.alpha.value={value}: give a number above 0, and a finite one")
    whole = max(1, round(exact))
    if not isclose(exact, whole, rel_tol=1e-6):
        raise BadInput(
            f"alpha policy {policy} = {value:g} makes lora_alpha {exact:.6g} at rank {rank}; Axolotl takes whole"
            f" numbers, and {whole} would change the scale: take another rank, or"
            f" em.alpha.value={value * whole / exact:.9g}"
        )
    return whole
