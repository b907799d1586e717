"""Runs on machines that share no folder: what travels, in which order, and what is never taken for whole."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from data_builders.records import BadInput
from sweeps import storage as module
from sweeps.evaluate import HELDOUT
from sweeps.recipe import compose
from sweeps.runs import Run, RunFailed, TrainingRun, execute_once
from sweeps.storage import Storage, elsewhere, needed
from sweeps.train import newest_checkpoint, training_run


@pytest.fixture
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(f"file://{tmp_path_factory.mktemp('storage')}")


@pytest.fixture
def run(prepared: Path) -> TrainingRun:
    (prepared / "models").unlink()
    (prepared / "models/smollm2-135m").mkdir(parents=True)
    (prepared / "models/smollm2-135m/model.safetensors").write_bytes(b"weights")
    return training_run("x", compose("dpo", "smollm2-135m", "cpu", []))


def send(run: TrainingRun, storage: Storage, do: Callable[[Run], object], scratch: Path) -> None:
    """As on_ray does it: up from here, done there, back here."""
    here, paths = Path.cwd(), needed(run)
    for path in [*storage.always, *paths, run.folder]:
        storage.put(path)
    try:
        elsewhere(run, do, storage, paths, scratch)
    finally:
        os.chdir(here)
        storage.get(run.folder)


def test_a_run_finds_what_it_needs_and_its_folder_comes_back(
    run: TrainingRun, storage: Storage, tmp_path: Path
) -> None:
    seen: list[str] = []
    storage = replace(storage, always=(HELDOUT,))

    def do(its: Run) -> object:
        seen.extend(str(path) for path in sorted(Path().rglob("*")) if path.is_file())
        its.folder.mkdir(parents=True)
        (its.folder / "log").write_text(Path("data/dpo-both.jsonl").read_text())
        return execute_once(its, lambda: {"loss": 0.5})

    send(run, storage, do, tmp_path / "scratch")
    assert seen == ["data/dpo-both.jsonl", "data/heldout.jsonl", "models/smollm2-135m/model.safetensors"]
    assert run.done and run.record()["loss"] == 0.5 and (run.folder / "log").read_text() == '"dpo-both"\n'


def test_a_lost_run_goes_on_elsewhere_from_its_checkpoint(
    run: TrainingRun, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, root = fsspec.core.url_to_fs(storage.url)
    put, checkpoint = Storage.put, run.adapter / "checkpoint-50"

    def put_while_alive(self: Storage, path: Path) -> None:
        if path != run.folder or not checkpoint.exists():  # that would be after the run
            put(self, path)

    def lost(_its: Run) -> object:
        checkpoint.mkdir(parents=True)
        save_file({"w": np.zeros(2)}, checkpoint / "adapter_model.safetensors")
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 50}))
        deadline = time.monotonic() + 20
        while not files.exists(f"{root}/{checkpoint}/trainer_state.json"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(module, "EVERY", 0.02)
        patch.setattr(Storage, "put", put_while_alive)
        with pytest.raises(SystemExit):
            send(run, storage, lost, tmp_path / "one")

    def goes_on(_its: Run) -> object:
        assert newest_checkpoint(run.adapter) == checkpoint
        for path in checkpoint.iterdir():
            path.unlink()
        return execute_once(run, dict)

    send(run, storage, goes_on, tmp_path / "two")
    assert run.done and not files.find(f"{root}/{run.adapter}")


def test_other_weights_of_the_same_size_travel_and_other_data_are_no_data_of_the_run(
    run: TrainingRun, storage: Storage, tmp_path: Path
) -> None:
    weights, came = Path("models/smollm2-135m/model.safetensors"), []

    def do(_its: Run) -> object:
        came.append(weights.read_bytes())
        raise RunFailed

    for content in (b"weights", b"WEIGHTS"):
        weights.write_bytes(content)
        with pytest.raises(RunFailed):
            send(run, storage, do, tmp_path / "scratch")
    assert came == [b"weights", b"WEIGHTS"]
    Path("data/dpo-both.jsonl").write_text("another\n")
    with pytest.raises(RunFailed, match="is another file"):
        send(run, storage, do, tmp_path / "scratch")


def test_what_came_in_half_is_not_taken_for_done(
    run: TrainingRun, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(its: Run) -> object:
        its.folder.mkdir(parents=True)
        (its.folder / "a").write_text("first")
        (its.folder / "z").write_text("last")
        return execute_once(its, dict)

    files, _ = fsspec.core.url_to_fs(storage.url)
    get = type(files).get_file

    def cut_off(self: object, there: str, here: str, **more: object) -> None:
        if Path(there).name == "z":
            raise OSError("cut off")
        get(self, there, here, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(files), "get_file", cut_off)
        with pytest.raises(OSError, match="cut off"):
            send(run, storage, do, tmp_path / "scratch")
    assert (run.folder / "a").is_file() and not run.done
    storage.get(run.folder)
    assert run.done and (run.folder / "z").read_text() == "last"


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "file:///proc/em-kit", "bucket/x", "sftp://me:secret@host/x"])
def test_a_storage_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(BadInput, match="--storage") as refused:
        Storage(url).check()
    assert "secret" not in str(refused.value)


def test_what_means_nothing_elsewhere_is_refused(run: TrainingRun, prepared: Path) -> None:
    content = {"model_args": "pretrained=models/smollm2-135m,dtype=bfloat16"}
    read = needed(Run("evaluate", "x", content))
    assert read == [Path("models/smollm2-135m")]
    with pytest.raises(BadInput, match="must lie in the working folder"):
        needed(Run("evaluate", "x", {"model_args": f"pretrained={prepared}/models/smollm2-135m"}))
