"""Machines that share no folder: what a run needs comes from an fsspec URL, and what it makes goes there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_builders.records import BadInput
from sweeps.evaluate import HELDOUT
from sweeps.runs import Run, RunFailed, TrainingRun

WHOLE = ("trainer_state.json", "run.json")
"""Files that say that the others of their folder are whole: they travel last."""
EVERY = 60.0
"""Seconds between looks for checkpoints to be kept."""
_putting = threading.Lock()


@dataclass(frozen=True)
class Storage:
    """Files under a URL (`s3://bucket/folder`, `gs://…`, `file:///…`), by their path in the working folder."""

    url: str

    def _open(self) -> tuple[Any, str]:
        import fsspec

        files, root = fsspec.core.url_to_fs(self.url)
        return files, str(root).rstrip("/")

    def check(self) -> None:
        """
        Raises:
            BadInput: if nothing can be written and read there.
        """
        try:
            files, root = self._open()
            files.makedirs(root, exist_ok=True)
            files.pipe(f"{root}/.em-kit", b"em-kit")
            files.cat(f"{root}/.em-kit")
        except Exception as error:  # each storage has errors of its own
            words = " ".join(str(error).split())[:200]
            raise BadInput(f"--storage {self.url}: cannot be written and read: {words}; name another URL") from None

    def put(self, path: Path, exactly: bool = False) -> None:
        """Takes up a file or folder of the working folder; `exactly` takes away there what is not here any more."""
        files, root = self._open()
        with _putting:  # one upload of a model is enough
            for file in _in_order([path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]):
                there = f"{root}/{file}"
                if not (_heavy(file) and files.exists(there) and files.size(there) == file.stat().st_size):
                    files.makedirs(there.rpartition("/")[0], exist_ok=True)
                    files.put_file(str(file), there)
            for name in files.find(f"{root}/{path}") if exactly else ():
                if not _here(name, root).exists():
                    files.rm_file(name)

    def get(self, path: Path) -> None:
        """Brings a file or folder; of what is not there, nothing."""
        files, root = self._open()
        for found in _in_order([_here(name, root) for name in files.find(f"{root}/{path}")]):
            there = f"{root}/{found}"
            if _heavy(found) and found.is_file() and found.stat().st_size == files.size(there):
                continue
            found.parent.mkdir(parents=True, exist_ok=True)
            part = found.with_name(f".{found.name}.{os.getpid()}")
            files.get_file(there, str(part))
            part.replace(found)

    @contextmanager
    def kept(self, folder: Path) -> Iterator[None]:
        """Takes up the whole checkpoints of a run while it is at work, so that it goes on elsewhere if it is lost."""
        ended, there = threading.Event(), set[Path]()

        def look() -> None:
            while not ended.wait(EVERY):
                for state in sorted(folder.glob("adapter/checkpoint-*/trainer_state.json")):
                    if state.parent not in there:
                        with suppress(OSError):  # training has removed it meanwhile
                            self.put(state.parent)
                            there.add(state.parent)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def needed(run: Run) -> list[Path]:
    """The files and folders in the working folder that a run reads.

    Raises:
        RunFailed: if one is named by an absolute path, which means nothing elsewhere.
    """
    if isinstance(run, TrainingRun):
        config = run.recipe.config
        names = [config["base_model"], *(entry["path"] for entry in config["datasets"])]
    else:
        arguments = dict(part.partition("=")[::2] for part in run.content.get("model_args", "").split(","))
        settings = run.content.get("metadata", {}).values()
        names = [HELDOUT, *(arguments.get(key) for key in ("pretrained", "peft")), *settings]
    paths = [Path(name) for name in names if isinstance(name, str | Path) and Path(name).exists()]
    if outside := [path for path in paths if path.is_absolute() or ".." in path.parts]:
        raise RunFailed(f"{run.folder}: with --storage, {outside[0]} must lie in the working folder")
    return paths


def elsewhere(run: Run, do: Callable[[Run], object], storage: Storage, paths: Sequence[Path], scratch: Path) -> object:
    """Does a run in a folder of this machine alone: brings what it needs, takes up what it leaves, even in failure."""
    scratch.mkdir(parents=True, exist_ok=True)
    os.chdir(scratch)
    for path in [*paths, run.folder]:
        storage.get(path)
    try:
        with storage.kept(run.folder):
            return do(run)
    finally:
        storage.put(run.folder, exactly=True)


def _here(name: str, root: str) -> Path:
    """The path in the working folder of what a storage lists as `name`."""
    return Path(os.path.relpath(f"/{name.lstrip('/')}", f"/{root.lstrip('/')}"))


def _in_order(files: Sequence[Path]) -> list[Path]:
    return sorted((file for file in files if file.name != ".lock"), key=lambda file: (file.name in WHOLE, file))


def _heavy(file: Path) -> bool:
    """Whether a file of the same size is taken for the same: weights stay as they are, under the name of their run."""
    return file.suffix == ".safetensors"
