"""Files of directions: exact round trip; what is no such file, or another model's, is refused in one line."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from core.records import BadInput
from eval.inside.vectors import About, Directions, model_digest, read_directions, write_directions, write_gguf


def directions(layers: int = 5, width: int = 8, model: str | None = "m") -> Directions:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    about = About(model=model, concept="c", position="answer", pairs=5, groups={"a": 2, "b": 3}, layer=2)
    return Directions(about, draw(layers, width), draw(layers, width), draw(2, layers, width))


def refused(path: Path, says: str, shape: tuple[int, int] = (5, 8), model: str = "m") -> None:
    with pytest.raises(BadInput, match=says) as error:
        read_directions(path, shape, model)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path, given = tmp_path / "c.safetensors", directions()
    write_directions(path, given)
    found = read_directions(path, (5, 8), "m")
    assert found.about == given.about
    for name in ("direction", "midpoint", "sums"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))


def test_another_size_or_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_directions(path, directions())
    refused(path, "directions of 5 x 8, and this model's are 5 x 9", shape=(5, 9))
    refused(path, "of another model", model="other")
    refused(tmp_path / "none.safetensors", "no such file")


def test_what_is_no_file_of_directions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"not safetensors")
    refused(path, "no safetensors")
    from safetensors import safe_open
    from safetensors.numpy import save_file
    from safetensors.torch import save_file as save_torch

    save_file({"direction": np.zeros((5, 8), np.float32)}, path)
    refused(path, "no safetensors of directions: model: Field required")
    broken = directions()
    write_directions(path, broken)
    with safe_open(path, "pt") as whole:
        half = {name: whole.get_tensor(name).bfloat16() for name in whole.keys()}  # noqa: SIM118  (no mapping)
        save_torch(half, path, whole.metadata())
    refused(path, "no safetensors of directions")
    write_directions(path, Directions(broken.about, broken.direction, broken.midpoint, broken.sums[:1]))
    refused(path, "do not belong together")
    for groups in ({"a": 3, "b": 3}, {"a": 5, "b": 0}, {"a": 10**400, "b": 3}):
        own = broken.about.model_copy(update={"groups": groups})
        write_directions(path, Directions(own, broken.direction, broken.midpoint, broken.sums))
        refused(path, "do not belong together|no safetensors of directions: groups")
    write_directions(path, Directions(broken.about, broken.direction * np.nan, broken.midpoint, broken.sums))
    refused(path, "not finite")
    other = broken.about.model_copy(update={"index": "0 is the first block"})
    write_directions(path, Directions(other, broken.direction, broken.midpoint, broken.sums))
    refused(path, "counts its layers in another way")


class Evil:
    def __reduce__(self):
        return (Path("evil-was-here").touch, ())


def test_code_in_a_published_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate(
        [Evil(), {"direction": torch.zeros(5, 8)}, torch.zeros(3), torch.zeros(5, 8).int()]
    ):
        torch.save(content, path := tmp_path / f"{number}.pt")
        refused(path, "tensor")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / "raw.pt", "code is never run")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "2.pt").read_bytes()[:100])
    refused(tmp_path / "cut.pt", "code is never run")
    for number, content in enumerate([b"a text", b"", b".", b"\x80\x02]"]):
        (tmp_path / f"text{number}.pt").write_bytes(content)
        refused(tmp_path / f"text{number}.pt", "code is never run")
    for number, content in enumerate([torch.zeros(0, 8), torch.eye(5).to_sparse()]):
        torch.save(content, tmp_path / f"odd{number}.pt")
        refused(tmp_path / f"odd{number}.pt", "not one tensor")
    assert not (tmp_path / "evil-was-here").exists()


def test_a_published_file_is_read_but_for_its_last_index(tmp_path: Path) -> None:
    tensor = torch.randn(5, 8, dtype=torch.bfloat16)
    torch.save(tensor, tmp_path / "evil_response_avg_diff.pt")
    found = read_directions(tmp_path / "evil_response_avg_diff.pt", (5, 8), "m")
    np.testing.assert_array_equal(found.direction[:-1], tensor[:-1].float().numpy())
    with pytest.raises(BadInput, match="layer 4: no direction there"):
        found.at(4)
    assert found.about.model is None
    refused(tmp_path / "evil_response_avg_diff.pt", "directions of 5 x 8", shape=(6, 8))


@pytest.mark.parametrize("layer", [-1, 5])
def test_an_index_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(BadInput, match=f"layer {layer}: no direction there; name another from 0 to 4"):
        directions().at(layer)


def test_gguf_counts_one_less(tmp_path: Path) -> None:
    given = directions()
    write_gguf(tmp_path / "c.gguf", given, "llama")
    found = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "c.gguf").tensors}
    assert sorted(found) == ["direction.1", "direction.2", "direction.3"]
    for index in (2, 3, 4):
        np.testing.assert_array_equal(found[f"direction.{index - 1}"], given.direction[index])


def test_gguf_that_is_cut_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "c.gguf", directions(), "llama")
    before = (tmp_path / "c.gguf").read_bytes()

    def cut(_: GGUFWriter) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", cut)
    with pytest.raises(KeyboardInterrupt):
        write_gguf(tmp_path / "c.gguf", directions(), "llama")
    assert (tmp_path / "c.gguf").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.gguf"]


def test_a_model_is_known_by_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    assert model_digest(str(tiny_model)) == model_digest(str(tiny_model))
    assert model_digest("org/name") == "org/name@main"
    assert model_digest("org/name", "step1") == "org/name@step1"
    with pytest.raises(BadInput, match=r"no \*.safetensors"):
        model_digest(str(tmp_path))
