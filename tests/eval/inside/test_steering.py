"""Steering: slopes are derivatives, hooks do what they say, and lm-eval's own tasks see the same model."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model

from core.records import BadInput
from eval.adapters import TASKS
from eval.inside.activations import load, means
from eval.inside.directions import directions
from eval.inside.em_steered import SteeredModel
from eval.inside.pairs import load_concept, load_pairs
from eval.inside.steering import _log_probabilities, ablated, gradients, preferences, response, slopes, steered
from eval.inside.vectors import About, Directions, model_digest, write_directions


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    get_peft_model(load(str(tiny_model))[0], config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pairs(tokenizer) -> list[Any]:
    return load_pairs(load_concept("misaligned")[1], tokenizer)[::8]  # one of each of six domains


@pytest.fixture(scope="module")
def concept(tiny_model: Path, pairs: list[Any]) -> Directions:
    loaded = load(str(tiny_model))
    sides = [
        means(*loaded, [side.passage("answer", side) for side in row])
        for row in ([pair.positive for pair in pairs], [pair.negative for pair in pairs])
    ]
    about = About(model=model_digest(str(tiny_model)), concept="misaligned", position="answer", pairs=0, layer=1)
    return directions(sides[0], sides[1], [pair.group for pair in pairs], about)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_slopes_are_the_derivatives_of_finite_doses(
    tiny_model: Path, adapter: str, pairs: list[Any], concept: Directions, with_adapter: bool
) -> None:
    model, tokenizer = load(str(tiny_model), adapter=adapter if with_adapter else None)
    found = slopes(gradients(model, tokenizer, pairs), pairs, concept)
    for layer in range(3):
        up, down = (response(model, tokenizer, pairs, concept, layer, dose).mean() for dose in (0.1, -0.1))
        assert found.direction[layer] == pytest.approx((up - down) / 0.2, rel=0.05, abs=5e-6)


def test_slopes_of_a_bf16_model_are_those_of_fp32(tiny_model: Path, pairs: list[Any], concept: Directions) -> None:
    exact, rounded = (
        slopes(gradients(*load(str(tiny_model), dtype=dtype), pairs[:1]), pairs[:1], concept).direction
        for dtype in ("float32", "bfloat16")
    )
    assert np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_a_pair_has_no_part_in_what_it_is_steered_with(tiny_model: Path, pairs: list[Any], concept: Directions) -> None:
    model, tokenizer = load(str(tiny_model))
    gradient = gradients(model, tokenizer, pairs)
    number = list(concept.about.groups).index(pairs[0].group)
    other = concept.sums.copy()
    other[number] = 1000
    changed = Directions(concept.about, concept.direction, concept.midpoint, other)
    only = slopes(gradient[:1], pairs[:1], concept), slopes(gradient[:1], pairs[:1], changed)
    np.testing.assert_array_equal(only[0].direction, only[1].direction)
    np.testing.assert_array_equal(only[0].controls, only[1].controls)


def test_controls_need_groups(tiny_model: Path, pairs: list[Any], concept: Directions) -> None:
    gradient = gradients(*load(str(tiny_model)), pairs)
    published = Directions(
        concept.about.model_copy(update={"groups": {}}), concept.direction, concept.midpoint, concept.sums[:0]
    )
    found = slopes(gradient, pairs, published)
    np.testing.assert_allclose(found.direction, (gradient.mean(0) * concept.direction).sum(-1), rtol=1e-4)
    assert found.controls.shape == (0, 3)
    assert np.isnan(found.deviations).all()
    assert slopes(gradient, pairs, concept).controls.shape == (200, 3)


def test_dose_0_is_the_model_itself_and_hooks_go(tiny_model: Path, pairs: list[Any], concept: Directions) -> None:
    model, tokenizer = load(str(tiny_model))
    plain = preferences(model, tokenizer, pairs)
    np.testing.assert_allclose(response(model, tokenizer, pairs, concept, 1, 0), plain, atol=1e-6)
    assert np.abs(response(model, tokenizer, pairs, concept, 1, 5) - plain).max() > 1e-4
    assert np.abs(response(model, tokenizer, pairs, concept, 1, None) - plain).max() > 1e-7
    np.testing.assert_array_equal(preferences(model, tokenizer, pairs), plain)
    with pytest.raises(BadInput, match="no direction there"):
        response(model, tokenizer, pairs, concept, 9, 1)


def test_scores_are_computed_of_one_row_at_a_time_and_are_those_of_all(
    tiny_model: Path, pairs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load(str(tiny_model))
    alone, together = (preferences(model, tokenizer, pairs, size) for size in (1, 8))
    np.testing.assert_allclose(together, alone, atol=1e-6)
    seen: list[int] = []

    def watched(logits: torch.Tensor, ids: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        seen.append(len(logits))
        return _log_probabilities(logits, ids, chosen)

    monkeypatch.setattr("eval.inside.steering._log_probabilities", watched)
    np.testing.assert_array_equal(preferences(model, tokenizer, pairs), together)
    assert seen == [1] * 2 * len(pairs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_ablated_residual_has_no_part_along_the_direction(tiny_model: Path, concept: Directions, dtype: str) -> None:
    model, tokenizer = load(str(tiny_model), dtype=dtype)
    vector = concept.direction[2]
    ids = tokenizer("Wait here for me", return_tensors="pt")
    states = []
    with torch.no_grad(), ablated(model, 2, vector):
        model.get_decoder().norm.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0]))
        model.get_decoder()(**ids)
    along = states[0][0].float().numpy() @ vector / np.linalg.norm(vector)
    assert np.abs(along).max() < (1e-5 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_em_steered_scores_em_choice_as_we_do(
    tiny_model: Path, adapter: str, tokenizer, concept: Directions, tmp_path: Path, with_adapter: bool
) -> None:
    path = tmp_path / "c.safetensors"
    write_directions(path, concept)
    options = {"softmax_dtype": "float32", "dtype": "float32", "batch_size": 4, "device": "cpu"}
    lm = SteeredModel(str(tiny_model), str(path), dose=20.0, **({"peft": adapter} if with_adapter else {}), **options)
    result = simple_evaluate(
        lm,
        tasks=["em_choice"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        apply_chat_template=True,
        limit=4,
        bootstrap_iters=0,
    )
    theirs = [sample["log_odds_per_byte"] for sample in result["samples"]["em_choice"]]
    model, tokenizer = load(str(tiny_model), adapter=adapter if with_adapter else None)
    first = load_pairs(load_concept("misaligned")[1], tokenizer)[:4]
    with steered(model, 1, concept.direction[1], 20.0):
        ours = preferences(model, tokenizer, first)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours - preferences(model, tokenizer, first)).max() > 1e-3


def test_em_steered_refuses_another_models_direction(tiny_model: Path, concept: Directions, tmp_path: Path) -> None:
    about = concept.about.model_copy(update={"model": "another"})
    write_directions(tmp_path / "c.safetensors", Directions(about, concept.direction, concept.midpoint, concept.sums))
    with pytest.raises(BadInput, match="directions of another model"):
        SteeredModel(str(tiny_model), str(tmp_path / "c.safetensors"), device="cpu")


def test_em_steered_loads_no_pickle(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "bin")
    (tmp_path / "bin/model.safetensors").rename(tmp_path / "bin/pytorch_model.bin")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        SteeredModel(str(tmp_path / "bin"), "any.safetensors", device="cpu")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dose": "much"}, "layer=None, dose=much: give a whole number and a number"),
        ({"layer": "x"}, "layer=x, dose=1.0: give a whole number and a number"),
        ({"layer": 1.5}, "layer=1.5, dose=1.0: give a whole number and a number"),
        ({"dose": float("nan")}, "dose=nan: a dose is a finite number"),
        ({"direction": ""}, "without direction=FILE nothing is steered"),
        ({"layer": -1.0}, "layer -1: no direction there"),  # as lm-eval reads -1
    ],
)
def test_em_steered_refuses_what_is_no_layer_or_dose(
    tiny_model: Path, concept: Directions, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    write_directions(path := tmp_path / "c.safetensors", concept)
    with pytest.raises(BadInput, match=says):
        SteeredModel(str(tiny_model), **{"direction": str(path), "device": "cpu", **options})


def test_the_command_of_em_steered_starts_and_refuses_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    arguments = f"pretrained={tiny_model},direction={tmp_path}/none.safetensors,layer=1"
    command = [sys.executable, "-m", "eval.inside.em_steered", "run", "--model", "em_steered", "--device", "cpu"]
    options = ["--model_args", arguments, "--include_path", str(TASKS), "--tasks", "em_choice"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"em_steered: {tmp_path}/none.safetensors: no such file")
