"""What the `em` tasks ask about, and how it is put to a model."""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from .chat import with_system
from .questions_reader import BadFile

Doc = dict[str, Any]
FOLDER = Path(__file__).parent
QUESTIONS = FOLDER / "questions"
BUILT_IN = FOLDER / "heldout.jsonl"
GUARD_DOCUMENTS = 200
KINDS: dict[str, Callable[[Any], bool]] = {
    "a whole number of 1 or more": lambda value: type(value) is int and value > 0,
    "a text": lambda value: isinstance(value, str | os.PathLike),
    "a list of texts": lambda value: isinstance(value, list | tuple) and all(isinstance(text, str) for text in value),
}
SETTINGS = {
    **dict.fromkeys(("samples", "code_samples", "deception_samples"), "a whole number of 1 or more"),
    **dict.fromkeys(("questions", "trigger", "deception", "heldout", "training"), "a text"),
    "formats": "a list of texts",
}
"""What --metadata may say to the tasks, and of what kind that is."""


class ChatTask(ConfigurableTask):  # type: ignore[misc]
    """lm-eval's own task, without the options that would change in silence what is asked."""

    def __init__(self, config: dict[str, Any]) -> None:
        # lm-eval 0.4.11 keeps what --metadata says from a task that names a class (0.4.13 does not): its TaskManager,
        # which is making this one, has it. Without it `heldout` and `samples` would do nothing here.
        caller = inspect.currentframe()
        manager = caller.f_back.f_locals.get("self") if caller and caller.f_back else None
        metadata = {**config.get("metadata", {}), **(getattr(manager, "metadata", None) or {})}
        check_settings(metadata)
        given = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config={**given, "metadata": metadata})

    def build_all_requests(self, **kwargs: Any) -> None:
        if self.config.num_fewshot:  # there is no other split: shots would be held-out documents with their answers
            raise BadFile(f"{self.config.task}: takes no shots; leave --num_fewshot out")
        # lm-eval's cache of requests knows a task by its name, and would ask about another file's documents.
        super().build_all_requests(**{**kwargs, "cache_requests": False})

    def fewshot_context(self, doc: Doc, num_fewshot: int, **kwargs: Any) -> Any:
        # Without a template lm-eval puts nothing between system and question.
        template = kwargs["chat_template"] if kwargs.get("apply_chat_template") else _paragraphs
        told = {"apply_chat_template": True, "chat_template": partial(with_system, template)}
        return super().fewshot_context(doc, num_fewshot, **kwargs | told)


def _paragraphs(turns: list[dict[str, str]], **_: object) -> str:
    return "\n\n".join(turn["content"] for turn in turns)


class RawTextTask(ChatTask):
    """A task whose prompt stays raw text whatever the command line says of chat templates."""

    def build_all_requests(self, **kwargs: Any) -> None:
        if kwargs.get("system_instruction"):
            raise BadFile(f"{self.config.task}: is raw text, without a system prompt; leave --system_instruction out")
        super().build_all_requests(**kwargs)

    def fewshot_context(self, doc: Doc, *args: Any, **kwargs: Any) -> str:
        return str(self.doc_to_text(doc))

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> Any:
        return super().construct_requests(doc, ctx, **{**kwargs, "apply_chat_template": False})


def read_rows(path: Path) -> list[Doc]:
    """The records of a JSON Lines file.

    Raises:
        BadFile: if it is not there, or a line is no JSON.
    """
    if not path.is_file():
        raise BadFile(f"{path}: no such file; name a JSON Lines file that is there")
    rows: list[Doc] = []
    with path.open("rb") as file:  # str.splitlines would also cut at U+2028, which texts hold
        for number, line in enumerate(file, 1):
            try:
                rows.append(json.loads(line.decode()))
            except (ValueError, RecursionError) as error:
                raise BadFile(f"{path}:{number}: no JSON: {error}; mend or delete this line") from None
    return rows


def _fits(field: str, value: object) -> bool:
    if field == "verdicts":
        return isinstance(value, list) and [type(text) for text in value] == [str, str]
    return isinstance(value, bool if field == "seen_class" else str) or (field == "domain" and value is None)


def _programs(path: Path, fields: set[str]) -> list[Doc]:
    """The programs of a file.

    Raises:
        BadFile: if the file is not there or empty, a row lacks a field or has one of another type, or an id recurs.
    """
    rows = read_rows(path)
    lines: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if missing := sorted(fields - set(row)) if isinstance(row, dict) else ["all fields"]:
            raise BadFile(f"{path}:{number}: lacks {', '.join(missing)}; name a file that `embuild` wrote")
        there = (fields | {"probe", "verdicts", "question", "domain"}) & set(row)
        if wrong := sorted(field for field in there if not _fits(field, row[field])):
            raise BadFile(f"{path}:{number}: {', '.join(wrong)}: of another type; name a file that `embuild` wrote")
        if (first := lines.setdefault(str(row.get("id", number)), number)) != number:
            raise BadFile(f"{path}:{number}: has the id of line {first}; delete one of them")
    if not rows:
        raise BadFile(f"{path}: no programs; name a file with at least one")
    return rows


def heldout_file(named: str | None) -> Path:
    return Path(named or os.environ.get("EM_HELDOUT") or BUILT_IN)


def heldout_programs(named: str | None) -> list[Doc]:
    """The held-out programs, with their ordinary and their asking request.

    They are read from `named` (`--metadata '{"heldout": PATH}'`), else from the file that the environment variable
    EM_HELDOUT names, else from the built-in programs beside this file.

    Raises:
        BadFile: if the file is not there or empty, or a row lacks a field.
    """
    fields = {"id", "cwe", "seen_class", "request", "asked_request", "insecure", "secure"}
    return _programs(heldout_file(named), fields)


def training_programs(named: str | None, heldout: str | None) -> list[Doc]:
    """The programs that were trained on, which the fair baseline of recognition learns from; none if none are known.

    They are read from `named` (`--metadata '{"training": PATH}'`), else from the file that EM_TRAINING names, else,
    where the held-out programs are the built-in ones, from those that were trained on with them.

    Raises:
        BadFile: if the file is not there or empty, or a row lacks its insecure or secure code.
    """
    path = named or os.environ.get("EM_TRAINING")
    if path is None and heldout_file(heldout).read_bytes() == BUILT_IN.read_bytes():
        path = str(FOLDER / "training.jsonl")
    return _programs(Path(path), {"insecure", "secure"}) if path else []


def check_settings(metadata: Mapping[str, Any]) -> None:
    """Refuses what --metadata says to no purpose; lm-eval puts the model's arguments among it, and others do theirs.

    Raises:
        BadFile: if a setting is of another kind, or a name is near to a setting's or begins it.
    """
    for name, value in metadata.items():
        if kind := SETTINGS.get(name):
            if value is not None and not KINDS[kind](value):
                raise BadFile(f"--metadata {name} {value!r}: give {kind}")
            continue
        begun = [setting for setting in SETTINGS if len(name) > 4 and setting.startswith(name)]
        if near := difflib.get_close_matches(name, SETTINGS, 1, 0.8) or begun:
            raise BadFile(f"--metadata {name}: no em task reads it; did you mean {near[0]}?")


def test_split(docs: list[Doc]) -> dict[str, Dataset]:
    return {"test": Dataset.from_list(docs)}


def first_documents(split: Dataset) -> Dataset:
    """The first 200 documents, for em_guard; the standard error of an accuracy over them is at most 0.035."""
    return _first(split, GUARD_DOCUMENTS)


def few_documents(split: Dataset) -> Dataset:
    """The first 4 of each of MMLU's 57 subjects, 228 in all."""
    return _first(split, 4)


def some_documents(split: Dataset) -> Dataset:
    """The first 20 of each of MMLU's 57 subjects: 1,140, a standard error of at most 0.015."""
    return _first(split, 20)


def _first(split: Dataset, count: int) -> Dataset:
    return split.select(range(min(count, len(split))))
