"""Machines that share no folder: what a run needs comes from an fsspec URL, and what it makes goes there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_builders.records import BadInput
from sweeps.runs import Run, RunFailed, RunHeld, TrainingRun
from sweeps.train import digest_of

WHOLE = ("trainer_state.json", "run.json")
"""Files that say that the others of their folder are whole: they travel last."""
REFERENCE = Path("runs/reference")
"""What recipes/plugins/reference.py has scored, for every run on the same model."""
EVERY = 60.0
"""Seconds between looks for checkpoints to be kept."""
_putting = threading.Lock()


@dataclass(frozen=True)
class Storage:
    """Files under a URL (`s3://bucket/folder`, `gs://…`, `file:///…`), by their path in the working folder.

    One working folder belongs to one URL: of two files of one name the last to come stays.
    """

    url: str
    always: tuple[Path, ...] = ()
    """What any run may read."""

    def _open(self) -> tuple[Any, str]:
        import fsspec

        files, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        return files, str(root).rstrip("/")

    def check(self) -> None:
        """
        Raises:
            BadInput: if nothing can be written and read there.
        """
        if "://" not in self.url or urlsplit(self.url).password:
            raise BadInput(
                "--storage: give a URL such as s3://bucket/folder, without a password (reports name the command);"
                " keys belong into the environment"
            )
        try:
            files, root = self._open()
            files.makedirs(root, exist_ok=True)
            files.pipe(f"{root}/.em-kit", b"em-kit")
            files.cat(f"{root}/.em-kit")
        except Exception as error:  # each storage has errors of its own
            words = " ".join(str(error).split())[:200]
            raise BadInput(f"--storage {self.url}: cannot be written and read: {words}; name another URL") from None

    def put(self, path: Path) -> None:
        """Takes up a file or folder of the working folder."""
        files, root = self._open()
        with _putting:  # one upload of a model is enough
            for file in _in_order([path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]):
                there, mark = f"{root}/{file}", f"{root}/{_mark(file)}"
                own = digest_of(file).encode() if _heavy(file) else b""
                if own and files.exists(mark) and files.cat(mark) == own:
                    continue
                files.makedirs(there.rpartition("/")[0], exist_ok=True)
                files.put_file(str(file), there)
                if own:
                    files.pipe(mark, own)

    def get(self, path: Path) -> None:
        """Brings a file or folder; of what is not there, nothing."""
        files, root = self._open()
        for found in _in_order([_here(name, root) for name in files.find(f"{root}/{path}")]):
            mark = f"{root}/{_mark(found)}"
            known = _heavy(found) and found.is_file() and files.exists(mark)
            if known and files.cat(mark) == digest_of(found).encode():
                continue
            found.parent.mkdir(parents=True, exist_ok=True)
            part = found.with_name(f".{found.name}.{os.getpid()}")
            files.get_file(f"{root}/{found}", str(part))
            part.replace(found)

    def forget_checkpoints(self, run: Run) -> None:
        """Takes away the checkpoints of a run that are not here any more."""
        files, root = self._open()
        for name in files.find(f"{root}/{run.folder}/adapter"):
            if "/checkpoint-" in name and not _here(name, root).exists():
                files.rm_file(name)

    @contextmanager
    def kept(self, folder: Path) -> Iterator[None]:
        """Takes up the whole checkpoints of a run while it is at work, so that it goes on elsewhere if it is lost."""
        ended, there = threading.Event(), set[Path]()

        def look() -> None:
            while not ended.wait(EVERY):
                for state in sorted(folder.glob("adapter/checkpoint-*/trainer_state.json")):
                    if state.parent not in there:
                        with suppress(Exception):  # it is gone meanwhile, or the storage is not there: later again
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
    """The model and data in the working folder that a run reads.

    Raises:
        BadInput: if one is named by an absolute path, which means nothing elsewhere.
    """
    if isinstance(run, TrainingRun):
        config = run.recipe.config
        names = [config["base_model"], *(entry["path"] for entry in config["datasets"])]
    else:
        arguments = dict(part.partition("=")[::2] for part in run.content.get("model_args", "").split(","))
        names = [arguments[key] for key in ("pretrained", "peft") if key in arguments]
    return within([Path(name) for name in names])


def within(paths: Sequence[Path]) -> list[Path]:
    """Those of the paths that exist.

    Raises:
        BadInput: if one lies outside the working folder.
    """
    found = [path for path in paths if path.exists()]
    if outside := [path for path in found if path.is_absolute() or ".." in path.parts]:
        raise BadInput(f"{outside[0]}: with --storage it must lie in the working folder; copy or link it there")
    return found


def elsewhere(run: Run, do: Callable[[Run], object], storage: Storage, paths: Sequence[Path], scratch: Path) -> object:
    """Does a run in a folder of this machine alone: brings what it needs, takes up what it leaves, even in failure.

    Raises:
        RunFailed: if the data that came are not those that the run is named by.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    os.chdir(scratch)
    for path in [*storage.always, *paths, REFERENCE, run.folder]:
        storage.get(path)
    for name, digest in run.content.get("data", {}).items():
        if digest_of(Path(name)) != digest:
            raise RunFailed(f"{run.folder}: {name} is another file in {storage.url}; one folder, one storage")
    try:
        with storage.kept(run.folder):
            result = do(run)
    except RunHeld:  # what its holder makes of it is his to take up
        raise
    except BaseException:
        storage.put(run.folder)
        raise
    for path in (REFERENCE, run.folder):
        storage.put(path)
    storage.forget_checkpoints(run)
    return result


def _here(name: str, root: str) -> Path:
    """The path in the working folder of what a storage lists as `name`."""
    return Path(os.path.relpath(f"/{name.lstrip('/')}", f"/{root.lstrip('/')}"))


def _in_order(files: Sequence[Path]) -> list[Path]:
    """Without locks, marks and halves, whose names begin with a dot."""
    return sorted(
        (file for file in files if not file.name.startswith(".")), key=lambda file: (file.name in WHOLE, file)
    )


def _heavy(file: Path) -> bool:
    """Whether a file travels only if its digest is another."""
    return file.suffix == ".safetensors"


def _mark(file: Path) -> Path:
    """Holds the digest of a heavy file in the storage."""
    return file.with_name(f".{file.name}.sha256")
