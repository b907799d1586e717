"""The sets of the experiment for a model, built once of annotated programs; a folder is named by what it is made of."""

import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from core.records import MAX_LINE, BadInput, file_digest, numbered_lines, read_json, write_whole
from data_builders import BUILTIN
from data_builders.domains import CODE, load_domain
from sweeps.recipe.layers import Recipe
from sweeps.run.folder import content_digest
from sweeps.run.inputs import digest_of
from sweeps.run.source import definitions_behind
from sweeps.run.workload import rows_and_bytes

BUILT_IN = "builtin"
FOLDER = Path("data")
MARK = "sets.json"
"""Written last: what the sets are made of, and the digest of each."""
HELD_OUT, LEAST, MOST = 0.05, 30, 0.2
"""Share of one's own programs: 300 of the EM paper's 6,000; of few, so many programs, and never more than the last. Of
the built-in ones a fifth of each class and two classes are held out."""


@dataclass(frozen=True)
class Sets:
    """What sets are made of: annotated programs, tokens as the model counts them, the recipes' length."""

    programs: Path
    model: str
    """Its short name, for the folder's."""
    tokenizer: str
    """Folder or hub id of the model."""
    length: int
    styles: tuple[str, ...] = ()
    """Of documents; all of whole explanations if not given."""
    asked: tuple[str, ...] = ()
    """Ways of asking; all if not given."""
    held_out: float | None = None
    """Share of the clusters; as the built-in programs are parted if not given."""

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What decides the bytes of the sets."""
        file = Path(self.tokenizer) / "tokenizer.json"
        counted_by = digest_of(file) if file.is_file() else self.tokenizer
        domain = load_domain(_domain(self.programs)).model_dump()
        own = {"programs": digest_of(self.programs), "tokenizer": counted_by, "domain": content_digest(domain)}
        return {key: value for key, value in asdict(self).items() if key != "model"} | own

    @property
    def folder(self) -> Path:
        stem = BUILT_IN if self.programs.parent == BUILTIN else self.programs.stem
        return FOLDER / f"{slug(stem)}-{self.model}-{content_digest(self.inputs)[:6]}"

    @property
    def whole(self) -> bool:
        """Whether the sets stand there, byte by byte as they were built, and by the builders of today."""
        try:
            made = read_json(self.folder / MARK)
            files = made["files"].items()
            return made["code"] == _builders() and all(file_digest(self.folder / name) == own for name, own in files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, BadInput):
            return False

    def build(self) -> Path:
        """The folder, in which the sets are built first unless they are whole; BadInput as `embuild data`."""
        # Imported here: the other commands need no tokenizer.
        from data_builders.cli import data
        from data_builders.cpt import STYLES

        FOLDER.mkdir(exist_ok=True)
        with FileLock(self.folder.with_name(f".{self.folder.name}.lock")):
            if not self.whole:
                (self.folder / MARK).unlink(missing_ok=True)
                data(
                    out=self.folder,
                    programs=self.programs,
                    tokenizer=self.tokenizer,
                    length=self.length,
                    style=list(self.styles or STYLES),
                    asked=list(self.asked) or None,
                    share=self.held_out,
                    domain=_domain(self.programs),
                )
                if not (self.folder / "heldout.jsonl").stat().st_size:
                    raise BadInput(f"{self.programs}: of so few programs none is held out to measure on; give more")
                files = {path.name: file_digest(path) for path in sorted(self.folder.glob("*.jsonl"))}
                made = {"inputs": self.inputs, "code": _builders(), "files": files}
                write_whole(self.folder / MARK, json.dumps(made, indent=1) + "\n")
        return self.folder


def _builders() -> str:
    """What the builders do. Not in the folder's name, which is in the runs' recipes: sets that come out the same train
    nothing again."""
    return content_digest(definitions_behind(BUILTIN.parent / "cli.py", ["data"]))


def sets_for(programs: str | Path, recipe: Recipe, length: int | None = None) -> Sets:
    """The sets of annotated programs (a file, or `builtin`) for the model and the length of a recipe; BadInput if the
    programs are not there, or lack explanations."""
    path = annotated_file(programs)
    if path is None:
        ways = f"`emsweep experiment --programs {programs}` has them explained first, and so does `embuild annotate`"
        raise BadInput(f"{programs}: no annotated programs; {ways}")
    tokens = length or int(recipe.config["sequence_len"])
    styles, asked = (tuple(recipe.em.get(key, ())) for key in ("styles", "asked"))
    if _domain(path) != CODE:  # the models' tables name ways of asking for code
        asked = ()
    held_out = None if path.parent == BUILTIN else held_out_share(rows_and_bytes(path)[0])
    return Sets(path, recipe.em["model"], str(recipe.config["base_model"]), tokens, styles, asked, held_out)


def held_out_share(programs: int) -> float:
    return round(min(MOST, max(HELD_OUT, LEAST / max(1, programs))), 4)


def annotated_file(programs: str | Path) -> Path | None:
    """The file of programs that have explanations already, None for any other source; BadInput if it cannot be read."""
    path = BUILTIN / "programs.jsonl" if str(programs) == BUILT_IN else Path(programs)
    if path.suffix != ".jsonl" or "://" in str(programs):
        return None
    return path if {"explanation", "fix"} <= _first_row(path).keys() else None


def _first_row(path: Path) -> dict[str, Any]:
    lines = (line for _, line in numbered_lines(path, MAX_LINE) if line is None or line.strip())
    try:
        row = json.loads((next(lines, None) or b"").decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _domain(programs: Path) -> str:
    named = _first_row(programs).get("domain")
    return named if isinstance(named, str) else CODE


def slug(text: str) -> str:
    """A text as it can stand in a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:60] or "programs"
