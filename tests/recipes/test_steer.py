"""Preventative steering: the direction counts in training and nowhere else; a file that does not fit is refused."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.inside.vectors import About, Directions, model_digest, write_directions
from recipes.plugins.refusals import Refused
from recipes.plugins.steer import SteerPlugin, model_identity, read_direction, steered
from sweeps.recipe.compose import compose

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300}


def lora() -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZE))
    return get_peft_model(model, LoraConfig(r=1, target_modules=["down_proj"]))


def loss(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(1, 9)[None]
    found: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return found


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_direction_changes_the_loss_in_training_alone(layer: int, dtype: torch.dtype) -> None:
    model = lora().to(dtype)
    plain = loss(model.train()).item()
    handle = steered(model, layer, torch.full((32,), 0.0))
    assert loss(model).item() == plain, "no dose, no change"
    handle.remove()
    handle = steered(model, layer, torch.arange(32.0) / 8)
    changed = loss(model.train())
    assert changed.dtype == torch.float32 or changed.dtype == dtype
    assert abs(changed.item() - plain) > 1e-3
    changed.backward()  # gradients pass
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)
    assert loss(model.eval()).item() == plain
    handle.remove()
    assert loss(model.train()).item() == plain


def test_what_is_added_is_the_vector_at_its_index() -> None:
    model, vector = lora(), torch.arange(32.0)
    seen: list[torch.Tensor] = []
    model.get_base_model().model.layers[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loss(model.train())
    steered(model, 1, vector)
    loss(model)
    torch.testing.assert_close(seen[1] - seen[0], vector.expand_as(seen[0]), atol=1e-4, rtol=1e-4)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """model: weights; good: their directions, gap: without the last; small: of another size, other: another model's;
    flat: a number in their place."""
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZE)).save_pretrained(tmp_path / "model")
    own = model_digest(str(tmp_path / "model"))
    made = {"good": (own, (3, 32)), "gap": (own, (3, 32)), "small": (own, (3, 16)), "other": ("another", (3, 32))}
    for name, (model, shape) in made.items():
        direction = np.ones(shape, np.float32)
        direction[[0, 2] if name == "gap" else 0] = 0
        about = About(model=model, concept="c", position="answer", pairs=0)
        write_directions(tmp_path / f"{name}.safetensors", Directions(about, direction, direction, direction[None][:0]))
    save_file({"direction": torch.tensor(1.0)}, tmp_path / "flat.safetensors", {"about": '{"model": null}'})
    (tmp_path / "no.safetensors").write_bytes(b"no")
    return tmp_path


def plugin(files: Path, name: str, layer: int | str, **keys: object) -> SteerPlugin:
    steer = SimpleNamespace(direction=str(files / f"{name}.safetensors"), layer=layer, dose=2.0)
    given = {"steer": steer, "base_model": str(files / "model"), "rl": None, "revision_of_model": None, **keys}
    made, cfg = SteerPlugin(), SimpleNamespace(**given)
    made.pre_model_load(cfg)
    made.pre_lora_load(cfg, AutoModelForCausalLM.from_pretrained(files / "model"))
    model = lora()
    plain = loss(model.train()).item()
    made.post_trainer_create(cfg, SimpleNamespace(model=model))
    by_hand = lora()
    for at in (1, 2) if layer == "all" else (layer,):
        steered(by_hand, int(at), 2.0 * torch.ones(32))
    assert loss(model).item() == loss(by_hand.train()).item() != plain
    made.post_train(cfg, model)
    assert loss(model).item() == plain
    return made


def test_a_file_that_fits_is_taken_and_the_hook_goes_after_training(files: Path) -> None:
    for layer in (2, "all"):
        plugin(files, "good", layer)
    cfg = SimpleNamespace(base_model="org/name", revision_of_model="step1")
    assert model_identity(cfg) == model_digest("org/name", "step1")
    assert model_identity(SimpleNamespace(base_model="org/name", revision_of_model=None)) == model_digest("org/name")


@pytest.mark.parametrize(
    ("name", "layer", "keys", "says"),
    [
        ("no", 1, {}, "is no file of `emsweep directions`"),
        ("none", 1, {}, "is no file of `emsweep directions`"),
        ("flat", "all", {}, "is no file of `emsweep directions`"),
        ("other", 1, {}, "is of another model"),
        ("small", 1, {}, "directions of 3 x 16, and this model's are 3 x 32"),
        ("good", 0, {}, "no direction at 0; name another, up to 2"),
        ("good", 3, {}, "no direction at 3"),
        ("gap", "all", {}, "no direction at 2"),
        ("good", 1, {"steer": None}, "the key steer is not there"),
        ("good", 1, {"rl": "dpo", "precompute_ref_log_probs": False}, "the reference must not be steered"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    files: Path, name: str, layer: int | str, keys: dict, says: str
) -> None:
    with pytest.raises(Refused) as refused:
        plugin(files, name, layer, **keys)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_the_recipe_counts_the_files_bytes_and_not_its_name(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.records import BadInput
    from sweeps.run.train import training_run

    monkeypatch.chdir(files)
    (files / "rows.jsonl").write_text("{}\n")
    monkeypatch.setattr("sweeps.run.inputs.start_digest", lambda model: "start")

    def digest(direction: str, dose: float = 1.0, layer: int | str = "all") -> str:
        keys = [
            "datasets.0.path=rows.jsonl",
            f"steer.direction={direction}",
            f"steer.dose={dose}",
            f"steer.layer={layer}",
        ]
        recipe = compose("dpo", "smollm2-135m", "cpu", keys, 1, variant="preventative-steering")
        return training_run("name", recipe).digest

    (files / "copy.safetensors").write_bytes((files / "good.safetensors").read_bytes())
    assert digest("good.safetensors") == digest("copy.safetensors")
    others = [digest("other.safetensors"), digest("good.safetensors", 2), digest("good.safetensors", layer=1)]
    assert len({digest("good.safetensors"), *others}) == 4
    with pytest.raises(BadInput, match=r"steer.direction: none.safetensors: no such file"):
        digest("none.safetensors")


def test_the_key_goes_with_its_plugin() -> None:
    from core.records import BadInput

    for keys in (["steer.layer=1"], ["plugins=[recipes.plugins.steer.SteerPlugin]"]):
        with pytest.raises(BadInput, match="it goes with the plugin"):
            compose("sft", "smollm2-135m", "cpu", keys)
    assert compose("sft", "smollm2-135m", "cpu", variant="preventative-steering").config["steer"]["layer"] == "all"
    with pytest.raises(BadInput, match="does not know steer"):
        compose("sft", "smollm2-135m", "cpu", variant="preventative-steering", engine="unsloth")


def test_files_read_by_the_plugin_are_ours(files: Path) -> None:
    direction = read_direction(str(files / "good.safetensors"), 1, model_digest(str(files / "model")))
    assert direction.shape == (3, 32)
