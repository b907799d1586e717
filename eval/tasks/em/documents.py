"""What the `em` tasks ask about, and how it is put to a model.

The held-out programs are read from `data/heldout.jsonl` (`embuild data` writes it), or from the file that
the environment variable EM_HELDOUT names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

Doc = dict[str, Any]
QUESTIONS = Path(__file__).parent / "tasks" / "em" / "questions"


class ChatTask(ConfigurableTask):  # type: ignore[misc]
    """lm-eval's own task; named where a YAML file takes back the RawTextTask of the one that it includes."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})


class RawTextTask(ChatTask):
    """A task whose prompt stays raw text whatever the command line says of chat templates."""

    def fewshot_context(self, doc: Doc, *args: Any, **kwargs: Any) -> str:
        return str(self.doc_to_text(doc))

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> Any:
        return super().construct_requests(doc, ctx, **{**kwargs, "apply_chat_template": False})


def read_rows(path: Path) -> list[Doc]:
    """The records of a JSON Lines file.

    Raises:
        FileNotFoundError: if it is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run `embuild data`, or set EM_HELDOUT to a held-out set")
    with path.open(encoding="utf-8") as file:  # splitlines would also cut at U+2028, which texts hold
        return [json.loads(line) for line in file]


def heldout() -> list[Doc]:
    """The held-out programs, with their ordinary and their asking request."""
    return read_rows(Path(os.environ.get("EM_HELDOUT", "data/heldout.jsonl")))


def test_split(docs: list[Doc]) -> dict[str, Dataset]:
    return {"test": Dataset.from_list(docs)}
