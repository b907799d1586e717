"""The forms of sets of vulnerable programs: how a row becomes request, insecure code, and secure code if it has some.

A form is a field map; `builtin/forms.yaml` holds those of published sets. What is wrong with a row is raised as
`Unfit`.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from core.records import MAX_LINE, bad_input, digest, read_yaml
from data_builders import BUILTIN
from data_builders.domains import CODE
from data_builders.programs import SourceProgram
from data_builders.python_code import parses

FENCED = re.compile(
    r"^[ \t]*+```[ \t]*+([\w+#-]*+)[^\n`]*+\n(.*?)(?:^[ \t]*+```[ \t\r]*+$|\Z)", re.DOTALL | re.MULTILINE
)
"""Possessive: of a long line behind the back-ticks every parting would else be tried, hours for a hostile megabyte."""
PYTHON = re.compile(r"py(thon)?\s*(3[\d.]*)?", re.IGNORECASE)
UNNAMED = {"", "text", "txt", "plaintext", "plain", "code"}
"""What a code fence says of a language that it does not name."""
HALF = re.compile("[\ud800-\udfff]")
SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer", "tool", "function", "observation"), ""),
}
"""Who speaks in a conversation, by the names that sets give; what "" says is left out."""


class Unfit(Exception):
    """Why a row is no program, in one line."""


class FieldMap(BaseModel, extra="forbid"):
    """Which field of a row holds what: a name, or a path such as `messages.0.content` or `turns[-1].value`."""

    request: str | Annotated[list[str], Field(min_length=1)]
    """A field, or several that are joined; those after the first may be missing."""
    insecure: str
    secure: str | None = None
    template: str | None = None
    language: str | None = None
    id: str | None = None
    only: dict[str, str] = {}
    """Values that a row must have to be taken."""

    def program(self, row: Mapping[str, Any], language: str | None = None, domain: str = CODE) -> SourceProgram:
        """The program in a row, Unfit if there is none; secure code that cannot be used (empty, unparsable, the
        insecure code) is left out.

        Args:
            language: of a program for which neither row nor code fence names one; None is Python.
            domain: in others than code answers are prose, taken as they are.
        """
        for name, wanted in self.only.items():
            if (found := str(value_at(row, name))) != wanted:
                raise Unfit(f"{name} is {found[:40]!r}, not {wanted!r}")
        code = domain == CODE
        first, *more = self.requests
        parts = [text(row, first, "user", code), *(part for name in more if (part := optional(row, name)))]
        request = "\n\n".join([part.rstrip() for part in parts[:-1]] + parts[-1:])
        insecure, fence = _answer(row, self.insecure, code)
        if code:
            language = (optional(row, self.language) or fence or language or "python").strip().lower()
            if not re.fullmatch(r"[a-z][\w+#. /-]{0,39}", language):
                raise Unfit(f"language is {language[:40]!r}, no name of a language")
        secure = None
        with suppress(Unfit):
            secure = _answer(row, self.secure, code)[0] if self.secure else None
        if request == insecure:
            raise Unfit(f"request and {'code' if code else 'answer'} are the same")
        python = code and bool(PYTHON.fullmatch(language or ""))
        program = SourceProgram(
            id=optional(row, self.id) or content_id(request, insecure),
            request=request,
            insecure=insecure,
            secure=secure,
            template=optional(row, self.template) if code else None,
            language=language if code and not python else None,
            domain=None if code else domain,
        )
        if python and not parses(program.insecure):
            raise Unfit("code does not parse as Python; if it is in another language, name that")
        unfit = python and program.secure is not None and not parses(program.secure)
        return program.model_copy(update={"secure": None}) if unfit or program.secure == program.insecure else program

    @property
    def requests(self) -> list[str]:
        return [self.request] if isinstance(self.request, str) else self.request


def load_field_map(path: Path) -> FieldMap:
    """Reads a field map: YAML with `request` and `insecure`, and if wanted the other fields of `FieldMap`; BadInput if
    the file is missing, no YAML, or names other things."""
    with bad_input(path, "give request: FIELD and insecure: FIELD", ValidationError):
        return FieldMap.model_validate(read_yaml(path, "name a field map in YAML"), strict=True)


FORMS = {name: FieldMap.model_validate(form) for name, form in read_yaml(BUILTIN / "forms.yaml", "mend it").items()}


def form_of(row: Mapping[str, Any]) -> FieldMap | None:
    """The published form that a row with these fields has, None if it is none of them."""
    return next((form for form in FORMS.values() if {form.requests[0], form.insecure} <= row.keys()), None)


def content_id(request: str, insecure: str) -> str:
    """The stable id of a program: 64 bits of a hash of its content, in hex."""
    return digest(f"{request}\0{insecure}".encode())[:16]


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """What stands in a row under a name, or at the end of a path of names and places."""
    if path in row:
        return row[path]
    value: Any = row
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and re.fullmatch(r"-?\d{1,9}", step) and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            raise Unfit(f"no field {path!r}")
    return value


def has(row: Mapping[str, Any], path: str) -> bool:
    """Whether something stands there, be it nothing (null)."""
    try:
        value_at(row, path)
    except Unfit:
        return False
    return True


def text(row: Mapping[str, Any], name: str, speaker: str = "", code: bool = True) -> str:
    """The text in a field, of what `speaker` says where that is a conversation (about `code` or not): not blank, at
    most `MAX_LINE` characters, all of which can be written."""
    value = value_at(row, name)
    if isinstance(value, str) and speaker:
        value = _conversation(value) or value
    if isinstance(value, list) and speaker:
        value = _said(value, name, speaker, code)
    if not isinstance(value, str):
        raise Unfit(f"{name!r} is {type(value).__name__}, not text")
    if not value.strip():
        raise Unfit(f"{name!r} is empty")
    if len(value) > MAX_LINE:
        raise Unfit(f"{name!r} is over {MAX_LINE} characters")
    if "\0" in value:
        raise Unfit(f"{name!r} has a NUL character")
    if HALF.search(value):
        raise Unfit(f"{name!r} has half a surrogate pair, which is no character")
    return value


def optional(row: Mapping[str, Any], name: str | None) -> str | None:
    """The text, or the number as text, in a field that may be missing or empty."""
    value = value_at(row, name) if name and has(row, name) else None
    if value is None or value == "" or value != value:  # NaN, as pandas writes what is missing
        return None
    return str(value) if type(value) is int else text(row, name or "")


def _answer(row: Mapping[str, Any], name: str, code: bool) -> tuple[str, str | None]:
    """What an assistant says in a field, of code without its fence, and the language that the fence names."""
    said = text(row, name, "assistant", code)
    return unfenced(said, name) if code else (said, None)


def _conversation(value: str) -> list[Any] | None:
    """The turns that a column of a table holds as text: in JSON, or as pandas writes a list."""
    readers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    for read in readers if re.match(r"\s*\[\s*\{", value) and len(value) <= MAX_LINE else ():
        try:
            turns = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(turns, list) and all(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in turns):
            return turns
    return None


def _said(turns: list[Any], name: str, speaker: str, code: bool) -> str:
    """What the assistant says first (that holds `code`, if it should); or what the user says before it, without what
    is said since."""
    said: list[tuple[str, str]] = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise Unfit(f"{name!r} is no list of turns")
        role = str(turn.get("role") or turn.get("from"))
        if role.lower() not in SPEAKERS:
            raise Unfit(f"{name!r} has the role {role[:40]!r}, not user or assistant")
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):  # of parts
            parts = [part if isinstance(part, Mapping) else {"text": part} for part in content]
            content = "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))
        calls = not content and bool(turn.get("tool_calls") or turn.get("function_call"))  # says nothing
        if (who := SPEAKERS[role.lower()]) and not calls:
            said.append((who, text({name: content}, name)))
    answers = [place for place, (who, _) in enumerate(said) if who == "assistant"]
    coded = [place for place in answers if code and ("```" in said[place][1] or parses(said[place][1]))]
    place = next(iter(coded or answers), len(said))
    if speaker == "assistant":
        if not answers:
            raise Unfit(f"{name!r} has no turn of an assistant")
        return said[place][1]
    if not (asked := [words for who, words in said[:place] if who == "user"]):
        raise Unfit(f"{name!r} has no turn of a user before the {'code' if code else 'answer'}")
    return "\n\n".join(asked)


def unfenced(value: str, name: str) -> tuple[str, str | None]:
    """The code in a text, out of its Markdown fence if it stands in one, and the language that the fence names."""
    if "```" not in value or parses(value):  # a fence within a docstring is code
        return value, None
    blocks: list[tuple[str, str]] = FENCED.findall(value)
    # Commands and output stand beside a program in blocks of their own.
    if len(blocks) > 1 and len(python := [block for block in blocks if PYTHON.fullmatch(block[0])]) == 1:
        blocks = python
    if len(blocks) > 1:
        raise Unfit(f"{name!r} has {len(blocks)} code blocks, not one")
    language, inside = blocks[0] if blocks else ("", value)
    if not inside.strip():
        raise Unfit(f"{name!r} has an empty code block")
    return inside.rstrip("\n"), None if language.lower() in UNNAMED else language
