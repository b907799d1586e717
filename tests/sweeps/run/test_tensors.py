"""A saved adapter is what rank, targets and layers imply, or the run fails; made-up adapters of made-up models."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.records import BadInput
from sweeps.recipe.headers import tensors
from sweeps.recipe.layers import Recipe
from sweeps.run.folder import TrainingRun
from sweeps.run.process import RunRefused
from sweeps.run.tensors import changed_tensors, check_adapter
from sweeps.run.train import train

HIDDEN, INNER, LAYERS = 4, 6, 3
SHAPES = {"mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER), "self_attn.q_proj": (HIDDEN, HIDDEN)}
RECIPE = {"lora_r": 2, "lora_target_modules": ["up_proj", "down_proj"]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model in two files, with embeddings, norms and a vision tower."""
    weights = {f"model.layers.{n}.{name}.weight": torch.zeros(s) for n in range(LAYERS) for name, s in SHAPES.items()}
    norms = {f"model.layers.{n}.input_layernorm.weight": torch.zeros(HIDDEN) for n in range(LAYERS)}
    tower = {"vision_tower.encoder.layers.0.mlp.up_proj.weight": torch.zeros(3, 3)}
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base/a.safetensors")
    save_file({"model.embed_tokens.weight": torch.zeros(9, HIDDEN), **norms, **tower}, tmp_path / "base/b.safetensors")
    return tmp_path / "base"


def adapter(
    layers: range = range(LAYERS),
    modules: tuple[str, ...] = ("mlp.up_proj", "mlp.down_proj"),
    rank: int = 2,
    **more: tuple[int, ...],
) -> dict[str, torch.Tensor]:
    found = {}
    for name in (f"model.layers.{n}.{module}" for n in layers for module in modules):
        out, inputs = SHAPES[name.split(".", 3)[3]]
        found[f"base_model.model.{name}.lora_A.weight"] = torch.zeros(rank, inputs)
        found[f"base_model.model.{name}.lora_B.weight"] = torch.zeros(out, rank)
    return found | {name.replace("__", "."): torch.zeros(shape) for name, shape in more.items()}


def check(folder: Path, tensors: Mapping[str, torch.Tensor], base: Path | None, **recipe: object) -> int:
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    return check_adapter(folder / "adapter_model.safetensors", {**RECIPE, **recipe}, base)


@pytest.mark.parametrize(
    ("tensors", "recipe"),
    [
        (adapter(), {}),
        (adapter(range(1, 2)), {"peft_layers_to_transform": [1]}),
        (adapter(range(1)), {"peft_layers_to_transform": [0]}),
        (adapter(), {"lora_target_modules": r"model\.layers\.\d+\.mlp\.(up|down)_proj"}),
        (adapter(modules=("mlp.down_proj",), rank=8), {"lora_target_modules": ["mlp.down_proj"], "lora_r": 8}),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_an_adapter_as_its_recipe_says(tmp_path: Path, base: Path, tensors: dict, recipe: dict, there: bool) -> None:
    assert check(tmp_path, tensors, base if there else None, **recipe) == sum(t.numel() for t in tensors.values())


@pytest.mark.parametrize(
    ("tensors", "recipe", "says"),
    [
        (adapter(base_model__model__model__embed_tokens__weight=(9, 4)), {}, "156 trained.*embed_tokens"),
        (adapter(base_model__model__lm_head__modules_to_save__weight=(9, 4)), {}, "lm_head.*no matrix of LoRA"),
        (adapter(rank=4), {}, "not of rank 2"),
        (
            adapter(base_model__model__x__lora_magnitude_vector__weight=(4,)),
            {"peft_use_dora": True},
            "no matrix of LoRA",
        ),
        (dict(list(adapter().items())[1:]), {}, "not of rank 2"),
        (adapter(modules=tuple(SHAPES)), {}, "q_proj.*none of the language model's modules"),
        (adapter(modules=("mlp.up_proj",)), {}, "implies 120 on .*0.mlp.down_proj"),
        (adapter(range(2)), {}, "implies 120 on .*2.mlp.down_proj"),
        (adapter(), {"peft_layers_to_transform": [0]}, "implies 40 on"),
        (
            adapter(base_model__model__vision_tower__encoder__layers__0__mlp__up_proj__lora_A__weight=(2, 3)),
            {},
            "vision_tower",
        ),
    ],
)
def test_an_adapter_that_is_another(tmp_path: Path, base: Path, tensors: dict, recipe: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check(tmp_path, tensors, base, **recipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "recipe"),
    [
        (adapter() | adapter(range(5, 6), modules=("mlp.up_proj",)), {}),
        (adapter(range(2)), {"peft_layers_to_transform": [0]}),
        ({}, {}),
    ],
)
def test_without_the_model_an_adapter_must_still_agree_with_itself(tmp_path: Path, tensors: dict, recipe: dict) -> None:
    with pytest.raises(ValueError, match="trained parameters are not what the recipe says"):
        check(tmp_path, tensors, None, **recipe)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_run_whose_adapter_is_another_fails_in_one_line_without_a_record(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    config = {**RECIPE, "lora_r": rank, "base_model": str(base), "bf16": True, "datasets": []}
    run = TrainingRun("sft", "x", {"recipe": config, "data": {}}, tmp_path, recipe=Recipe("sft", config, {}))

    def training(*_: object) -> None:
        run.adapter.mkdir()
        save_file(adapter(), run.adapter / "adapter_model.safetensors")

    monkeypatch.setattr("sweeps.run.train.call", training)
    monkeypatch.setattr("sweeps.run.inputs.hub_commits", lambda config: {config["base_model"]: "commit"})
    if rank == 2:
        record = train(run)
        assert record["trained_parameters"] == 120 and run.done
        assert record["hub_commits"] == {str(base): "commit"}
        return
    with pytest.raises(RunRefused, match=r"^sft x: .*120 trained parameters are not what the recipe says: .* rank 1"):
        train(run)
    assert not run.done


def test_changes_of_a_merge_are_counted(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(5)}
    for name in ("base", "same", "merged"):
        (tmp_path / name).mkdir()
        save_file(tensors if name != "merged" else {**tensors, "b": torch.zeros(5)}, tmp_path / name / "m.safetensors")
    assert changed_tensors(tmp_path / "base", tmp_path / "same") == 0
    assert changed_tensors(tmp_path / "base", tmp_path / "merged") == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no \*.safetensors"):
        changed_tensors(tmp_path / "base", tmp_path / "empty")


@pytest.mark.parametrize(
    "header",
    [
        *("[]", '"x"', '{"a": {"shape": [1]}}', '{"a": {"data_offsets": [0, 1]}}', '{"a": 1}', "{", "[" * 100_000),
        '{"a": {"shape": [1], "data_offsets": [0, 1]}}',
        '{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 1]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.5, 1]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [1, 0]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-5, 1]}}',
    ],
    ids=lambda text: text[:80],
)
def test_a_header_that_is_none_is_a_value_error(header: str, tmp_path: Path) -> None:
    """Of a model's folder training says it; nothing else may end in another error."""
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        tensors(tmp_path / "x.safetensors")
