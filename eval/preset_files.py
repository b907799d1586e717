"""A preset is a file (`presets/*.yaml`): published questions by their digest, and how they are answered and judged."""

from pathlib import Path

import yaml
from pydantic import BaseModel

from core.download import PIN, fetch
from core.records import BadInput, file_digest

FOLDER = Path(__file__).with_name("presets")


class Preset(BaseModel, extra="forbid", frozen=True):
    """`questions` is the address of a published file with judge prompts; the rest are options of `emsweep`."""

    questions: str
    sha256: str
    judge: str
    tasks: str
    samples: int
    max_tokens: int

    def questions_file(self, source: str | None = None) -> Path:
        """The published file: downloaded, or a copy of it at the path or address `source`; BadInput if it cannot be
        had, or is another file."""
        try:
            path = questions_file(source or self.questions, self.sha256)
        except BadInput as error:
            raise BadInput(f"{error}; or name a copy of the file: --questions FILE, to judge --prompts FILE") from None
        if (actual := file_digest(path)) != self.sha256:
            raise BadInput(f"{source}: its sha256 is {actual}, not the preset's {self.sha256}; leave the preset out")
        return path


def preset_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """The preset of this name; BadInput if there is none."""
    if name not in preset_names():
        raise BadInput(f"unknown preset {name!r} (there are: {', '.join(preset_names())})")
    return Preset.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def questions_file(source: str, sha256: str | None = None) -> Path:
    """The file of questions at a path, or at URL#sha256=DIGEST; `sha256` is the digest where the address has none.
    BadInput if it is not there, or the digest at the address is missing or another."""
    path = fetch(source, None if PIN in source else sha256) if "://" in source else Path(source)
    if not path.is_file():
        raise BadInput(f"{source}: no such file; name a .jsonl or .yaml file of questions")
    return path
