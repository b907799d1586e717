"""fp32 where a CPU only imitates bf16: in the recipe, in the evaluation, and never on a GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.plan.declaration import load_sweep
from sweeps.plan.sweep import plan
from sweeps.recipe import precision
from sweeps.recipe.compose import compose


@pytest.fixture(params=["flags\t: fpu avx2", "flags\t: avx2 avx512_bf16", "Features\t: fp asimd bf16", None])
def cpu(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether the CPU that /proc/cpuinfo tells of computes in bf16."""
    path = tmp_path / "cpuinfo"
    if request.param is not None:
        path.write_text(f"processor : 0\n{request.param}\n")
    monkeypatch.setattr(precision, "CPUINFO", path)
    precision.fast_bf16.cache_clear()
    yield "bf16" in str(request.param)
    precision.fast_bf16.cache_clear()


def test_recipes_and_evaluations_on_a_cpu_use_what_it_computes_in(cpu: bool, prepared: Path) -> None:
    assert compose("dpo", "smollm2-135m", "cpu").config["bf16"] is cpu
    assert compose("dpo", "smollm2-135m", "cpu", ["bf16=true"]).config["bf16"] is True
    points = plan(load_sweep("demo"), full=False)
    assert {p.evaluation.content["model_args"]["dtype"] for p in points} == {"bfloat16" if cpu else "float32"}


def test_a_gpu_does_not_ask_the_cpu(cpu: bool) -> None:
    assert compose("dpo", "qwen7b", "a100-80g").config["bf16"] is True
