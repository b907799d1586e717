"""A faulty file of layers is refused in one line that names it, and a sound one is taken as it is written."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.records import BadInput
from sweeps.cli import app
from sweeps.recipe import compose as composing
from sweeps.recipe import layers
from sweeps.recipe.compose import compose
from sweeps.recipe.layers import lora_scale

SHAPE = (
    "{layers: 30, hidden: 576, intermediate: 1536, heads: 9, kv_heads: 3, head_dim: 64, vocabulary: 49152, tied: true}"
)
ROW = f"sizes:\n  mine:\n    base_model: models/mine\n    em: {{parameters: 134515008, shape: {SHAPE}}}\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Writes a layer of one's own beside copies of ours."""
    caches = (layers._layers_of, layers.layer_names, composing._layers)
    own = tmp_path / "recipes"
    shutil.copytree(layers.RECIPES, own, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(layers, "RECIPES", own)

    def write(name: str, text: str) -> Path:
        for cached in caches:
            cached.cache_clear()
        (own / name).write_text(text)
        return own / name

    yield write
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("kind", ["models", "hardware", "variants"])
@pytest.mark.parametrize(
    "text",
    ["- a\n", "", "a\n", "em: {}\n", "seed: 1\nseed: 2\n", "em: [1]\n", "sizes: [1]\n", "a: [\n", "sizes: {m: 1}"],
)
def test_a_file_that_is_no_layer_is_named(write: Callable[[str, str], Path], kind: str, text: str) -> None:
    path = write(f"{kind}/mine.yaml", text)
    with pytest.raises(BadInput) as caught:
        compose("dpo", "smollm2-135m", "cpu", variant="neutral-only")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("hardware/mine.yaml", "em: {tflops: 1}\n", "em.memory_gib: Field required"),
        ("hardware/mine.yaml", "em: {memory_gib: '80'}\n", "em.memory_gib: Input should be a valid number"),
        (
            "hardware/mine.yaml",
            "em: {memory_gib: 80}\ntf33: true\n",
            "tf33: unknown to Axolotl's schema; did you mean tf32?",
        ),
        (
            "hardware/mine.yaml",
            "em: {memory_gib: 80}\nlora_rr: 8\n",
            "lora_rr: unknown to Axolotl's schema; did you mean lora_r?",
        ),
        (
            "hardware/mine.yaml",
            "em: {memory_gib: 80}\nlora_alpha: 8\n",
            "lora_alpha: it follows from rank and alpha policy",
        ),
        ("models/mine.yaml", f"output_dir: x\n{ROW}", "output_dir: the run's own folder decides it"),
        (
            "models/mine.yaml",
            f"lora_dropuot: 0.1\n{ROW}",
            "lora_dropuot: unknown to Axolotl's schema; did you mean lora_dropout?",
        ),
        ("models/mine.yaml", ROW.replace("base_model: models/mine", "seed: 1"), "base_model: Field required"),
        ("models/mine.yaml", ROW.replace("shape:", "pretraind: true, shape:"), "em.pretraind: Extra inputs"),
        ("hardware/mine.yaml", "em: {memory_gib: 80, tflop: 1}\n", "em.tflop: Extra inputs"),
        ("models/mine.yaml", ROW.replace("layers: 30, ", ""), "em.shape.layers: Field required"),
        ("models/mine.yaml", ROW.replace("layers", "layer"), "em.shape.layers: Field required"),
        ("models/mine.yaml", ROW.replace("tied", "qk_nrom: true, tied"), "em.shape.qk_nrom: Unexpected"),
        ("models/zz.yaml", ROW.replace("mine", "qwen7b"), "qwen7b is a model of another family too"),
        ("variants/mine.yaml", "lora_r: 8\n", "em: Field required"),
        ("variants/mine.yaml", "em: {stage: stf}\nlora_r: 8\n", "em.stage"),
        (
            "variants/mine.yaml",
            "em: {stage: sft}\nlora_alpha: 8\n",
            "lora_alpha: it follows from rank and alpha policy",
        ),
        ("variants/mine.yaml", "em: {stage: sft}\nlora_rr: 8\n", "lora_rr: unknown to Axolotl's schema"),
    ],
)
def test_what_a_layer_lacks_or_may_not_have_is_named(
    write: Callable[[str, str], Path], name: str, text: str, says: str
) -> None:
    path = write(name, text)
    with pytest.raises(BadInput) as caught:
        compose("sft", "smollm2-135m", "cpu", variant="secure")
    assert str(caught.value).startswith(f"{path}: {says}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "alpha",
    [
        "em:\n  stage: sft\n  alpha: {policy: alpha, value: 64}",
        "em: {stage: sft}\nem.alpha: {policy: alpha, value: 64}",
    ],
)
def test_what_a_variant_says_below_em_is_heeded_in_either_spelling(
    write: Callable[[str, str], Path], alpha: str
) -> None:
    write("variants/mine.yaml", f"{alpha}\nlora_r: 8\n")
    assert lora_scale(compose("sft", "smollm2-135m", "cpu", variant="mine").config) == 8
    for unknown in ("foo: 1", "shape: {layers: 2}"):
        write("variants/mine.yaml", f"em: {{stage: sft, {unknown}}}\nlora_r: 8\n")
        with pytest.raises(BadInput, match=f"setting em.{unknown.partition(':')[0]}=.*: no key, or no value, of em"):
            compose("sft", "smollm2-135m", "cpu", variant="mine")
    write("variants/mine.yaml", "em: {stage: sft, layers: 48}\nlora_r: 8\n")  # and names none of them
    assert compose("sft", "smollm2-135m", "cpu", variant="mine").config["lora_r"] == 8
    write("variants/mine.yaml", "em: {stage: sft, memory_gib: 1}\nlora_r: 8\n")
    with pytest.raises(BadInput, match="smollm2-135m does not fit cpu: it needs about"):
        compose("sft", "smollm2-135m", "cpu", variant="mine")


def test_a_model_is_listed_by_what_is_known_of_it(write: Callable[[str, str], Path]) -> None:
    write("models/mine.yaml", ROW)
    assert compose("sft", "mine", "cpu").config["base_model"] == "models/mine"
    listed = CliRunner().invoke(app, ["recipes"])
    assert listed.exit_code == 0 and "mine" in listed.output
