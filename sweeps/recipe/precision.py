"""Whether this machine's CPU computes in bf16, or only imitates it."""

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""What Linux calls the instructions on x86-64 and on ARM."""
SLOW_BF16 = "this CPU has no bf16 instructions, so fp32 is used (bf16 would take some sixty times as long)"


@cache
def fast_bf16() -> bool:
    """Whether the CPU has instructions for bf16; without them torch's matrix product is 65 times slower than in fp32
    (AVX2 alone, docs/measurements.md). Where that cannot be read it is taken to have none."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return bool(BF16_FLAGS & set(flags.split()))


def cpu_dtype() -> str:
    """The type to evaluate in on this CPU, as transformers names it."""
    return "bfloat16" if fast_bf16() else "float32"
