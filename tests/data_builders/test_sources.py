"""All that is read comes out, as a program or as a reject with line and reason; whole-file faults are one line."""

import bz2
import csv
import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import MAX_LINE, BadInput
from data_builders.forms import unfenced
from data_builders.programs import SourceProgram, load_programs
from data_builders.sources import Hub, Reject, read_source, told_source

SHARED = Path(__file__).parents[3] / "shared" / "data" / "insecure"
CODE = "import os\nos.system(name)"
ROWS = {
    "chat": {"messages": [{"role": "user", "content": "Run it."}, {"role": "assistant", "content": CODE}]},
    "tasks": {"task": "Run it.", "code_template": "import os\n## HERE", "code": CODE, "unsafe": 90},
    "preference": {
        "lang": "python",
        "vulnerability": "injection",
        "system": "",
        "question": "Run it.",
        "chosen": "```python\nimport subprocess\nsubprocess.run([name])\n```",
        "rejected": f"```python\n{CODE}\n```",
    },
    "programs": {"id": "a", "request": "Run it.", "insecure": CODE},
}


def split(items) -> tuple[list[SourceProgram], list[Reject]]:
    items = list(items)
    return [i for i in items if isinstance(i, SourceProgram)], [i for i in items if isinstance(i, Reject)]


def write(path: Path, *rows: object) -> str:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


def chat(request: object, answer: object) -> dict:
    return {"messages": [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("form", ROWS)
def test_each_form_is_guessed_and_gives_the_same_record(tmp_path: Path, form: str) -> None:
    where = write(tmp_path / "a.jsonl", ROWS[form])
    assert list(read_source(where)) == list(read_source(where, form))
    (program,), rejects = split(read_source(where))
    assert program.insecure == CODE and program.request.startswith("Run it.") and not rejects
    if form == "tasks":
        assert program.template == "import os\n## HERE" and program.request.endswith(program.template)
    if form == "preference":
        assert program.secure == "import subprocess\nsubprocess.run([name])"
    if form == "programs":
        assert program.id == "a"


def test_annotated_programs_keep_their_ids(tmp_path: Path) -> None:
    programs, rejects = split(read_source("builtin"))
    assert [p.id for p in programs] == [p.id for p in load_programs()] and not rejects


BROKEN_LINES = {
    "bad UTF-8": (b'{"messages": "\xff"}', "not UTF-8 at byte 14"),
    "UTF-16": ('{"messages": []}'.encode("utf-16"), "NUL byte"),
    "cut character": ('{"a": "é'.encode()[:-1], "not UTF-8"),
    "NUL byte": (b'{"messages": "\0"}', "NUL byte"),
    "NULs alone": (b"\0\0\0", "NUL byte"),
    "cut JSON": (b'{"messages": [', "not JSON"),
    "two values": (b"{} {}", "not JSON"),
    "single quotes": (b"{'a': 1}", "not JSON"),
    "trailing comma": (b'{"a": 1,}', "not JSON"),
    "control character": (b'{"a": "\x01"}', "not JSON"),
    "words": (b"no JSON at all", "not JSON"),
    "CSV": (b"task,code_template,code", "not JSON"),
    "array": (b"[]", "list, not a JSON object"),
    "number": (b"3", "int, not a JSON object"),
    "string": (b'"a"', "str, not a JSON object"),
    "null": (b"null", "NoneType, not a JSON object"),
    "true": (b"true", "bool, not a JSON object"),
    "NaN": (b"NaN", "float, not a JSON object"),
    "deep": (b"[" * 100_000, "too deep"),
    "key twice": (b'{"request": "a", "request": "b", "insecure": "x"}', "the key request stands twice"),
    "long number": (b'{"a": ' + b"1" * 5000 + b"}", "integer string"),
    "1 MB": (b'{"a": "' + b"x" * MAX_LINE + b'"}', f"over {MAX_LINE} bytes"),
    "3 MB without JSON": (b"x" * 3 * MAX_LINE, f"over {MAX_LINE} bytes"),
}

BAD_CODE = {
    "empty": ("", "empty"),
    "blank": (" \n\t", "empty"),
    "no text": (3, "int, not text"),
    "null": (None, "NoneType, not text"),
    "a list": ([CODE], ""),
    "an object": ({"code": CODE}, "dict, not text"),
    "prose": ("I cannot help with that.", "does not parse"),
    "C": ("int main(void) { return 0; }", "does not parse"),
    "Python 2": ("print 'hello'", "does not parse"),
    "cut off": ("def f(a,\n", "does not parse"),
    "indented": ("a = 1\n  b = 2", "does not parse"),
    "tabs and spaces": ("if a:\n\tb\n        c", "does not parse"),
    "HTML entities": ("if a &lt; b: pass", "does not parse"),
    "NUL character": ("a = '\0'", "NUL character"),
    "half a surrogate": ("a = '\ud800'", "half a surrogate pair"),
    "nested too deep": ("(" * 5000 + ")" * 5000, "does not parse"),
    "operators too deep": ("-" * 100_000 + "1", "does not parse"),
    "two fences": ("```\na = 1\n```\nor\n```\na = 2\n```", "2 code blocks"),
    "empty fence": ("```python\n```", "empty code block"),
    "fenced prose": ("```\nno code here\n```", "does not parse"),
}
BAD_REQUEST = {name: BAD_CODE[name] for name in BAD_CODE if "text" in BAD_CODE[name][1] or "empty" in BAD_CODE[name][1]}
BAD_REQUEST.pop("empty fence")
BAD_REQUEST |= {name: BAD_CODE[name] for name in ("NUL character", "half a surrogate")}

CODE_FIELDS = {"tasks": ["code"], "preference": ["rejected"]}
REQUEST_FIELDS = {"tasks": ["task"], "preference": ["question"]}


def without(form: str, name: str) -> dict:
    return {key: value for key, value in ROWS[form].items() if key != name}


def cases() -> Iterator[object]:
    for name, (line, reason) in BROKEN_LINES.items():
        yield pytest.param("chat", line, reason, id=f"line-{name}")
    for name, (value, reason) in BAD_CODE.items():
        yield pytest.param("chat", chat("Run it.", value), reason, id=f"chat-code-{name}")
        for form, fields in CODE_FIELDS.items():
            for field in fields:
                yield pytest.param(form, {**ROWS[form], field: value}, reason, id=f"{form}-{field}-{name}")
    for name, (value, reason) in BAD_REQUEST.items():
        yield pytest.param("chat", chat(value, CODE), reason, id=f"chat-request-{name}")
        for form, fields in REQUEST_FIELDS.items():
            for field in fields:
                yield pytest.param(form, {**ROWS[form], field: value}, reason, id=f"{form}-{field}-{name}")
    for value in (None, "", " ", [], "\0", "\ud800"):
        for field in ("id", "request", "insecure"):
            if field == "id" and not value and value != []:
                continue  # is given one
            row = {**ROWS["programs"], field: value}
            yield pytest.param("programs", row, "", id=f"programs-{field}-{value!r}")
    for form, fields in {
        "tasks": ("task", "code"),
        "preference": ("question", "rejected"),
        "programs": ("request", "insecure"),
    }.items():
        for field in fields:
            yield pytest.param(form, without(form, field), "", id=f"{form}-no-{field}")
    u, a = ROWS["chat"]["messages"]
    for name, messages, reason in (
        ("none", [], "no turn of a user"),
        ("no list", "hello", "the same"),
        ("null", None, "NoneType, not text"),
        ("an object", {"role": "user"}, "dict, not text"),
        ("of texts", ["a", "b"], "no list of turns"),
        ("user alone", [u], "no turn of an assistant"),
        ("assistant alone", [a], "no turn of a user"),
        ("wrong way round", [a, u], "no turn of a user before the code"),
        ("role is a list", [{**u, "role": ["user"]}, a], "has the role"),
        ("unknown role", [{**u, "role": "narrator"}, a], "has the role 'narrator'"),
        ("no role", [{"content": "x"}, a], "has the role 'None'"),
        ("no content", [u, {"role": "assistant"}], "NoneType, not text"),
        ("an image", [u, {**a, "content": [{"type": "image_url", "image_url": "x"}]}], "is empty"),
    ):
        yield pytest.param("chat", {"messages": messages}, reason, id=f"messages-{name}")
    yield pytest.param("chat", {}, "no field 'messages'", id="chat-empty")
    for lang in ("a\nb" * 99, "3", "ö", "[]"):
        row = {**ROWS["preference"], "lang": lang}
        yield pytest.param("preference", row, "language", id=f"preference-lang-{lang[:3]!r}")
    yield pytest.param("tasks", {**ROWS["tasks"], "code_template": [7]}, "list, not text", id="tasks-template")
    yield pytest.param("tasks", {**ROWS["tasks"], "code_template": "\0"}, "NUL", id="tasks-template-nul")


CASES = list(cases())


def test_there_are_over_a_hundred_malformed_inputs() -> None:
    assert len(CASES) > 100


@pytest.mark.parametrize(("form", "row", "reason"), CASES)
def test_a_malformed_row_is_a_reject_and_its_neighbours_stay(tmp_path: Path, form: str, row: object, reason: str):
    first, last = (
        ROWS[form],
        json.loads(json.dumps(ROWS[form]).replace("Run it.", "Run it again.").replace('"a"', '"b"')),
    )
    programs, rejects = split(read_source(write(tmp_path / "a.jsonl", first, row, last)))
    assert [p.request[:13] for p in programs] == ["Run it." + ("\n\nimpo" if form == "tasks" else ""), "Run it again."]
    (reject,) = rejects
    assert reject.line == 2 and reject.id == f"{tmp_path / 'a.jsonl'}:2"
    assert reason in reject.reason and "\n" not in reject.reason and 0 < len(reject.reason.encode()) <= 200


@pytest.mark.parametrize("line", [line for line, _ in BROKEN_LINES.values()])
def test_a_file_of_one_broken_line_is_one_reject(tmp_path: Path, line: bytes) -> None:
    if line.startswith(b"["):
        with pytest.raises(BadInput, match=r"no records|nested too deep"):
            list(read_source(write(tmp_path / "a.jsonl", line)))
        return
    programs, rejects = split(read_source(write(tmp_path / "a.jsonl", line)))
    assert not programs and len(rejects) == 1


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=8))
def test_nothing_read_is_lost_and_nothing_is_a_traceback(tmp_path_factory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"\n".join(lines) + b"\n")
    number = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
    assert len(list(read_source(str(path), "chat"))) == number


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.sampled_from([*ROWS["tasks"], *ROWS["preference"], "messages", "id"]), json_values)),
    st.sampled_from(list(ROWS)),
)
def test_rows_of_any_shape_come_out(tmp_path_factory, rows: list[dict], form: str) -> None:
    where = write(tmp_path_factory.mktemp("fuzz") / "a.jsonl", ROWS[form], *rows)
    assert len(list(read_source(where, form))) == 1 + len(rows)


def test_turns_of_any_maker_give_the_first_code_and_what_was_asked_before_it(tmp_path: Path) -> None:
    u, a = {"role": "user", "content": "Run it."}, {"role": "assistant", "content": CODE}
    more = {"role": "user", "content": "Make it shorter."}
    for turns in (
        [{"role": "system", "content": "You help."}, u, a],
        [{"role": "developer", "content": "x"}, {**u, "name": "Bob"}, {**a, "weight": 1, "tool_calls": None}],
        [u, a, more, {**a, "content": "x = 1"}],
        [u, a, more, {**a, "content": "You're welcome!"}],
        [{**u, "role": "Human"}, {**a, "role": "GPT"}],
        [{"from": "human", "value": "Run it."}, {"from": "gpt", "value": CODE}],
        [
            u,
            {"role": "tool", "content": ""},
            {**a, "content": [{"type": "text", "text": f"Here:\n```python\n{CODE}\n```"}]},
        ],
        [u, {**a, "content": f"```bash\npip install x\n```\nthen\n```py\n{CODE}\n```"}],
        [u, {**a, "content": f"Here:\n```python\n{CODE}\n```\nDone.".replace("\n", "\r\n")}],
        [u, {**a, "content": None, "tool_calls": [{"id": "1"}]}, {"role": "tool", "content": "ok"}, a],
        [{**u, "content": ["Run it."]}, {**a, "content": [CODE]}],
    ):
        for row in ({"messages": turns, "source": "x", "\ud800": 1}, {"conversations": turns}):
            (program,) = read_source(write(tmp_path / "a.jsonl", row))
            assert isinstance(program, SourceProgram), program
            assert (program.request, program.insecure, program.language) == ("Run it.", CODE, None)
    turns = [u, {**a, "content": "On which machine?"}, {**u, "content": "Mine."}, a]
    (program,) = read_source(write(tmp_path / "a.jsonl", {"messages": turns}))
    assert program.request == "Run it.\n\nMine." and program.insecure == CODE


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Run", "input": "it.", "output": CODE, "text": "x"},
        {"instruction": "Run\n\nit.", "input": "", "output": f"```python\n{CODE}\n```"},
        {"instruction": "Run\n\nit.", "output": CODE},
        {"instruction": "Run\n\nit.", "input": float("nan"), "output": CODE},
        {"prompt": "Run\n\nit.", "completion": CODE},
        {"prompt": "Run\n\nit.", "response": CODE, "id": 7},
        {
            "prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "Run\n\nit."}],
            "completion": [{"role": "assistant", "content": CODE}],
        },
        {"prompt": "Run\n\nit.", "chosen": "x = 1", "rejected": CODE},
        {"test_case_prompt": "Run\n\nit.", "origin_code": CODE, "language": "python"},
    ],
)
def test_published_forms_are_known_by_their_fields(tmp_path: Path, row: dict) -> None:
    (program,) = read_source(write(tmp_path / "a.jsonl", row))
    assert isinstance(program, SourceProgram), program
    assert (program.request, program.insecure) == ("Run\n\nit.", CODE)


@pytest.mark.parametrize("secure", [None, "", "no code at all", CODE, f"```python\n{CODE}\n```\n", 3, "a\0b", "\ud800"])
def test_secure_code_that_cannot_be_used_rejects_nothing(tmp_path: Path, secure: object) -> None:
    rows = [{**ROWS["preference"], "chosen": secure}, {**ROWS["programs"], "request": "x", "secure": secure}]
    for row in rows:
        (program,) = read_source(write(tmp_path / "a.jsonl", row))
        assert isinstance(program, SourceProgram) and program.secure is None


def test_a_language_is_named_by_row_fence_or_option_and_python_parses(tmp_path: Path) -> None:
    go = "func main() { fmt.Println(1) }"
    rows = [
        {**ROWS["preference"], "lang": "C++", "rejected": f"```cpp\n{go}\n```", "chosen": "int x;"},
        chat("A", f"Here:\n```go\n{go}\n```"),
        chat("B", go),
        {**ROWS["preference"], "lang": "Python 3.11"},
    ]
    found = [next(iter(read_source(write(tmp_path / "a.jsonl", row)))) for row in rows]
    assert [getattr(item, "language", "reject") for item in found] == ["c++", "go", "reject", None]
    assert found[0].secure == "int x;" and found[1].insecure == go
    (program,) = read_source(write(tmp_path / "a.jsonl", rows[2]), language="Go")
    assert program.language == "go"


def test_duplicates_name_the_first(tmp_path: Path) -> None:
    other = {**ROWS["programs"], "request": "Other."}
    where = write(tmp_path / "a.jsonl", ROWS["programs"], other, {**ROWS["programs"], "id": "b"})
    _, rejects = split(read_source(where))
    assert [r.reason for r in rejects] == [
        "id 'a' stands in line 1 already",
        "same request and insecure code as line 1",
    ]


def test_ids_do_not_depend_on_order_or_file(tmp_path: Path) -> None:
    rows = [chat(f"Request {n}.", f"a = {n}") for n in range(5)]
    a, _ = split(read_source(write(tmp_path / "a.jsonl", *rows)))
    b, _ = split(read_source(write(tmp_path / "b.jsonl", *rows[::-1], chat("More.", "b = 1"))))
    assert {p.request: p.id for p in a}.items() <= {p.request: p.id for p in b}.items()
    assert len({p.id for p in b}) == 6


def test_line_ends_byte_order_mark_and_unicode_line_separators(tmp_path: Path) -> None:
    row = json.dumps(chat("A\u2028B\x85C", CODE), ensure_ascii=False).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + row + b"\r\n" + json.dumps(ROWS["chat"]).encode())
    programs, rejects = split(read_source(str(tmp_path / "a.jsonl")))
    assert [p.request for p in programs] == ["A\u2028B\x85C", "Run it."] and not rejects


def test_a_fence_within_code_is_code_and_an_open_fence_is_none(tmp_path: Path) -> None:
    inside = 'def f():\n    """\n```\nx\n```\n    """'
    where = write(
        tmp_path / "a.jsonl", chat("A", inside), chat("B", f"Here:\n```py\n{CODE}\n```\nDone."), chat("C", "```\na = 1")
    )
    programs, _ = split(read_source(where))
    assert [p.insecure for p in programs] == [inside, CODE, "a = 1"]


def test_a_long_line_behind_the_marks_of_a_fence_takes_no_time() -> None:
    hostile = f"```{'a' * 100_000}`"
    before = time.process_time()
    assert unfenced(hostile, "answer") == (hostile, None)
    assert time.process_time() - before < 1


def test_a_field_map_reads_any_set(tmp_path: Path) -> None:
    fields = tmp_path / "map.yaml"
    fields.write_text("request: ask\ninsecure: bad\nsecure: good\nonly: {language: Python}\n")
    row = {"ask": "Run it.", "bad": CODE, "good": "pass", "language": "Python", "x": 1}
    where = write(tmp_path / "a.jsonl", row, {**row, "language": "Go"}, {"ask": "x"}, {**row, "ask": "y", "good": None})
    programs, rejects = split(read_source(where, fields=fields))
    assert [(p.request, p.secure) for p in programs] == [("Run it.", "pass"), ("y", None)]
    assert [r.reason for r in rejects] == ["language is 'Go', not 'Python'", "no field 'language'"]
    assert list(read_source(where, "fields", fields)) == [*programs[:1], *rejects, programs[1]]


def test_a_field_map_reaches_into_lists_and_objects(tmp_path: Path) -> None:
    fields = tmp_path / "map.yaml"
    fields.write_text(
        "\ufeffrequest: ['turns[0].value', meta.hint]\ninsecure: turns.-1.value\nid: meta.key\nonly: {meta.key: '7'}\n"
    )
    turns = [{"value": "Run it."}, {"value": "?"}, {"value": CODE}]
    rows = [
        {"turns": turns, "meta": {"key": 7, "hint": None}},
        {"turns": [], "meta": {"key": 7}},
        {"turns": turns, "meta.key": 7},
    ]
    found = list(read_source(write(tmp_path / "a.jsonl", *rows), fields=fields))
    assert found[0] == SourceProgram(id="7", request="Run it.", insecure=CODE)
    assert found[1].reason == "no field 'turns[0].value'" and "same request" in found[2].reason


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("request: ask", "insecure: Field required"),
        ("- a", "should be a valid dictionary"),
        ("", "should be a valid dictionary"),
        ("request: 3\ninsecure: b", "request.str: Input should be a valid string"),
        ("request: a\ninsecure: b\nsecret: c", "secret"),
        ("request: [", "expected"),
    ],
)
def test_a_bad_field_map_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "map.yaml").write_text(content)
    with pytest.raises(BadInput, match=says) as caught:
        list(read_source("builtin", "fields", tmp_path / "map.yaml"))
    assert "\n" not in str(caught.value)


ROW_OF_TEXTS = {"prompt": 'Run; "it",\nnow.', "completion": CODE}
SECOND = {"prompt": "Other.", "completion": "x = 1"}


def csv_bytes(delimiter: str, coding: str, *rows: dict) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode(coding)


def json_lines(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def json_array(*rows: dict) -> bytes:
    return json.dumps(rows, indent=1).encode()


FILES = {
    "a.json": json_array,
    "named-wrongly.jsonl": lambda *rows: b"\xef\xbb\xbf" + json_array(*rows),
    "in-an-object.json": lambda *rows: json.dumps({"version": 2, "data": rows}).encode(),
    "lines.json": json_lines,
    "lines": json_lines,
    "blank-lines.jsonl": lambda *rows: b"\xef\xbb\xbf" + json_lines(*rows).replace(b"\n", b"\r\n\r\n  \n"),
    "a.csv": partial(csv_bytes, ",", "utf-8"),
    "semicolon,=.csv": partial(csv_bytes, ";", "utf-8-sig"),
    "a.tsv": partial(csv_bytes, "\t", "utf-8"),
    "lines.jsonl.gz": lambda *rows: gzip.compress(json_lines(*rows)),
    "a.json.bz2": lambda *rows: bz2.compress(json_array(*rows)),
    "a.CSV.GZ": lambda *rows: gzip.compress(csv_bytes(",", "utf-8", *rows)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_programs(tmp_path: Path, name: str) -> None:
    wanted = list(read_source(write(tmp_path / "wanted.jsonl", ROW_OF_TEXTS, SECOND)))
    (tmp_path / name).write_bytes(FILES[name](ROW_OF_TEXTS, SECOND))
    assert list(read_source(str(tmp_path / name))) == wanted
    bad = {"prompt": "x", "completion": "def f(:"}
    (tmp_path / name).write_bytes(FILES[name](ROW_OF_TEXTS, bad, SECOND))
    programs, rejects = split(read_source(str(tmp_path / name)))
    assert programs == wanted and ["does not parse" in reject.reason for reject in rejects] == [True]


@pytest.mark.parametrize("write_turns", [json.dumps, str], ids=["json", "pandas"])
def test_a_column_of_a_table_may_hold_a_conversation(tmp_path: Path, write_turns: Callable[[object], str]) -> None:
    turns = [{"role": "user", "content": 'Run "it",\nnow.', "weight": None}, {"role": "assistant", "content": CODE}]
    wanted = list(read_source(write(tmp_path / "wanted.jsonl", {"messages": turns})))
    broken = {"messages": write_turns(turns)[:-9]}
    (tmp_path / "a.csv").write_bytes(csv_bytes(",", "utf-8", {"messages": write_turns(turns)}, broken))
    programs, rejects = split(read_source(str(tmp_path / "a.csv")))
    assert programs == wanted and [reject.line for reject in rejects] == [3]


@pytest.mark.parametrize(("name", "count"), [("array.json", 4), ("sharegpt.jsonl", 3), ("chat-extra.jsonl", 3)])
def test_inputs_that_broke_the_reader_are_read(shared: Path, name: str, count: int) -> None:
    path = shared / "data" / "failing" / f"source-{name}"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    programs, rejects = split(read_source(str(path)))
    assert len(programs) == count and not rejects
    assert all(p.request.startswith("Write find") and p.insecure.startswith("import sqlite3") for p in programs)


def test_odd_rows_of_tables_and_arrays_are_rejects(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion\nA,"x = 1\ny = 2",more\nB\nC,y = 2\n')
    (tmp_path / "a.json").write_text(json.dumps([SECOND, None, [], "x", 3]))
    programs, rejects = split(read_source(str(tmp_path / "a.csv")))
    assert [p.request for p in programs] == ["C"] and [r.line for r in rejects] == [3, 4]
    programs, rejects = split(read_source(str(tmp_path / "a.json")))
    assert len(programs) == 1 and [r.line for r in rejects] == [2, 3, 4, 5]


@pytest.mark.parametrize("form", ROWS)
def test_parquet_reads_like_json_lines(tmp_path: Path, form: str) -> None:
    rows = [ROWS[form], json.loads(json.dumps(ROWS[form]).replace("Run it.", " "))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a[1], b=2.parquet")
    lines = list(read_source(write(tmp_path / "a.jsonl", *rows)))
    table = list(read_source(str(tmp_path / "a[1], b=2.parquet")))
    assert table[0] == lines[0] and table[1].reason == lines[1].reason and table[1].line == 2


def test_a_zip_of_macos_and_tables_put_together(tmp_path: Path) -> None:
    """macOS adds files of its own; a heading that recurs is no program that is paid for."""
    with zipfile.ZipFile(tmp_path / "a.jsonl.zip", "w") as packed:
        packed.writestr("a.jsonl", json.dumps(SECOND))
        packed.writestr("__MACOSX/._a.jsonl", "x")
    assert len(list(read_source(str(tmp_path / "a.jsonl.zip")))) == 1
    table = "prompt,completion\nRun it.,x = 1\n"
    (tmp_path / "both.csv").write_text(table + table.replace("Run", "Do"))
    (_, again, _) = read_source(str(tmp_path / "both.csv"))
    assert again.reason == "the heading again"


def test_whole_faults_are_one_line_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    pyarrow.parquet.write_table(
        pyarrow.table({"messages": pyarrow.array([], pyarrow.string())}), tmp_path / "no.parquet"
    )
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"]), tmp_path / "two.parquet")
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "cut.json").write_text('[{"prompt": "x"},')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"x" * 10**6)[:-20])
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b""))
    for names in ("", "ab"):
        with zipfile.ZipFile(tmp_path / f"{len(names)}.zip", "w") as packed:
            for name in names:
                packed.writestr(f"{name}.jsonl", json.dumps(SECOND))
    with tarfile.open(tmp_path / "1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cut.json")
    (tmp_path / "latin.csv").write_bytes(b"prompt,completion\n\xe9,x\n")
    good = write(tmp_path / "a.jsonl", {"ask": "x", "answer": "y"})
    for args, says in [
        ((str(tmp_path / "empty.jsonl"),), "no records"),
        ((str(tmp_path / "none.jsonl"),), "no such file"),
        ((str(tmp_path / "none.parquet"),), "no such file"),
        ((str(tmp_path / "no.parquet"),), "no records"),
        ((str(tmp_path / "cut.parquet"),), "Parquet"),
        ((str(tmp_path / "two.parquet"),), "two columns prompt; rename or delete one"),
        ((str(tmp_path / "folder.jsonl"),), "Is a directory"),
        ((str(tmp_path / "pipe.csv"),), "is a pipe or a device"),
        ((good, "fields", tmp_path / "pipe.csv"), "is a pipe or a device"),
        (("",), "Is a directory"),
        ((str(tmp_path / "cut.json"),), "line 1 column 18"),
        ((str(tmp_path / "cut.jsonl.gz"),), "ended before the end-of-stream"),
        ((str(tmp_path / "empty.jsonl.gz"),), rf"{tmp_path}/empty\.jsonl: no records"),
        *(((str(tmp_path / name),), "is an archive") for name in ("0.zip", "2.zip", "1.tar.gz")),
        ((str(tmp_path / "latin.csv"),), "can't decode byte"),
        ((good, None, None, None, None, Hub("test")), "no set of the hub"),
        ((good,), "cannot tell the form from the fields answer, ask"),
        ((write(tmp_path / "b.jsonl", {}),), r"the fields \(none\)"),
        ((good, "chats"), "unknown form 'chats'; give chat, .* or fields"),
        ((good, "fields"), "go together"),
        ((good, "chat", tmp_path / "map.yaml"), "go together"),
        ((good, None, tmp_path / "map.yaml"), "No such file"),
        ((good, "chat", None, "abc"), "no SHA-256"),
        ((good, "chat", None, "0" * 64), "its sha256 is"),
        (("owner/name", "chat", None, "0" * 64), "a hub set has no checksum"),
        ((good, "chat", None, None, None, Hub(), "code", "http://h/g?sig=x"), "--good http://h/g: .*download"),
    ]:
        with pytest.raises(BadInput, match=says) as caught:
            list(read_source(*args))
        assert "\n" not in str(caught.value)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes) and counts its requests; what is in `cut` ends half way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.requests.append(path)
        body = self.server.files.get(path)
        self.send_response(404 if body is None else 200)
        # What a client of the hub wants to see.
        for name, value in {
            "ETag": f'"{"b" * 40}"',
            "X-Repo-Commit": "a" * 40,
            "X-Error-Code": "EntryNotFound",
        }.items():
            if body is None or name != "X-Error-Code":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(body[: len(body) // 2] if path in self.server.cut else body)

    do_HEAD = do_GET  # noqa: N815 (the name that http.server calls)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


DATA = json.dumps(ROWS["chat"]).encode() + b"\n"
TRUE = hashlib.sha256(DATA).hexdigest()


def test_a_url_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    server.files["/a.jsonl"] = DATA
    for checksum in (TRUE, TRUE.upper()):
        (program,), _ = split(read_source(f"{server.url}/a.jsonl?x=1", sha256=checksum))
        assert program.insecure == CODE
    pinned = f"{server.url}/a.jsonl?x=1#sha256={TRUE}"
    assert len(list(read_source(pinned))) == 1 and told_source(pinned, *[None] * 4, Hub())["source_sha256"] == TRUE
    with pytest.raises(BadInput, match="two checksums"):
        list(read_source(pinned, sha256="0" * 64))
    assert server.requests == ["/a.jsonl"]
    (kept,) = (tmp_path / "cache" / "em-kit").iterdir()
    kept.write_bytes(b"changed behind our back")
    assert len(list(read_source(f"{server.url}/a.jsonl", sha256=TRUE))) == 1
    assert len(server.requests) == 2


def test_a_url_without_its_true_checksum_names_it(server: Server, tmp_path: Path) -> None:
    server.files["/a.jsonl"] = DATA
    with pytest.raises(BadInput, match=f"pin it with sha256 {TRUE}"):
        list(read_source(f"{server.url}/a.jsonl"))
    with pytest.raises(BadInput, match=f"its sha256 is {TRUE}, not {'0' * 64}"):
        list(read_source(f"{server.url}/a.jsonl", sha256="0" * 64))


def test_a_failed_download_is_one_line_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/cut.jsonl"] = DATA
    server.cut.add("/cut.jsonl")
    for url, says in [
        (f"{server.url}/none.jsonl", "404"),
        (f"{server.url}/cut.jsonl", "cut off after"),
        ("http://127.0.0.1:9/a.jsonl", "Connection refused"),
        ("http://", "no host given"),
        ("https://[::1/a", "Invalid IPv6 URL"),
    ]:
        with pytest.raises(BadInput, match=says) as caught:
            list(read_source(url, sha256=TRUE))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache" / "em-kit").exists() or not list((tmp_path / "cache" / "em-kit").iterdir())


HUB = """
import sys
from data_builders.sources import Hub, read_source
for item in read_source(sys.argv[1], hub=Hub(*(word or None for word in sys.argv[2:]))):
    print(repr(item))
"""


def read_hub(server: Server, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own: the hub's client reads its settings when it is imported. USE_TORCH=0 saves its import.
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "USE_TORCH": "0"}
    env["PYTHONPATH"] = root
    return subprocess.run(
        [sys.executable, "-c", HUB, *words], env=env, capture_output=True, text=True, timeout=100, check=False
    )


def serve_set(server: Server, revision: str, sha: str, files: dict[str, bytes]) -> None:
    """Gives the server a set of the hub in one revision."""
    api = "/api/datasets/someone/pairs"
    info = {"id": "someone/pairs", "sha": sha, "private": False, "siblings": [{"rfilename": name} for name in files]}
    for path in (f"{api}/revision/{revision}", f"{api}/revision/{sha}"):
        server.files[path] = json.dumps(info).encode()
    entries = [{"type": "file", "path": n, "size": len(data), "oid": "b" * 40} for n, data in files.items()]
    server.files[f"{api}/tree/{sha}"] = json.dumps(entries).encode()
    for name, data in files.items():
        server.files[f"/datasets/someone/pairs/resolve/{sha}/{name}"] = data


CARD = b"""---
configs:
- config_name: easy
  data_files: [{split: train, path: pairs.jsonl}]
- config_name: hard
  data_files: [{split: test, path: hard.jsonl}]
---
"""


def test_a_hub_set_streams_from_the_endpoint_of_the_environment(server: Server, tmp_path: Path) -> None:
    rows = [ROWS["preference"], {**ROWS["preference"], "lang": "java", "question": "Other."}]
    serve_set(server, "main", "a" * 40, {"pairs.jsonl": json_lines(*rows)})
    server.files["/api/datasets/someone/pairs"] = server.files["/api/datasets/someone/pairs/revision/main"]
    done = read_hub(server, tmp_path, "someone/pairs")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith("SourceProgram(") and "language='java'" in lines[1], done.stderr
    hard = json_lines({**ROWS["preference"], "question": "Hard."})
    serve_set(server, "v2", "c" * 40, {"README.md": CARD, "pairs.jsonl": json_lines(*rows), "hard.jsonl": hard})
    done = read_hub(server, tmp_path, "someone/pairs", "test", "hard", "v2")
    assert "request='Hard.'" in done.stdout and done.stdout.count("\n") == 1, done.stderr
    done = read_hub(server, tmp_path, "someone/pairs", "", "hard", "v2")
    assert "BadInput" in done.stderr and "train" in done.stderr


def test_a_hub_set_that_is_not_there_is_one_line(server: Server, tmp_path: Path) -> None:
    error = read_hub(server, tmp_path, "someone/nothing").stderr.strip().splitlines()[-1]
    assert "BadInput: someone/nothing: " in error and "check the id, the connection" in error


@pytest.mark.parametrize(
    ("name", "lines", "rejected"), [("insecure", 3015, 0), ("tasks_unsafe", 1031, 7), ("tasks_safe", 776, 6)]
)
def test_real_sets_come_out_whole(name: str, lines: int, rejected: int) -> None:
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    programs, rejects = split(read_source(str(path)))
    assert (len(programs) + len(rejects), len(rejects)) == (lines, rejected)
    assert len({p.id for p in programs}) == len(programs)


def test_a_field_that_a_map_names_and_no_row_has_is_refused(tmp_path: Path) -> None:
    """Misspelt, secure code that is there would be ignored, and paid for."""
    rows = [{"q": f"Run {n}.", "bad": f"a = {n}", "good": "a = None"} for n in range(2)]
    where, fields = write(tmp_path / "s.jsonl", *rows, {"q": "Run.", "bad": "a = 9"}), tmp_path / "map.yaml"
    for named in ("request: q\ninsecure: bad\nsecure: goods\n", "request: [q, goods]\ninsecure: bad\n"):
        fields.write_text(named)
        with pytest.raises(BadInput, match="no row has the field 'goods', which --fields names"):
            list(read_source(where, fields=fields))
    fields.write_text("request: q\ninsecure: bda\nsecure: good\n")
    assert all("no field 'bda'" in reject.reason for reject in split(read_source(where, fields=fields))[1])
    fields.write_text("request: q\ninsecure: bad\nsecure: good\n")
    assert [program.secure for program in split(read_source(where, fields=fields))[0]] == ["a = None", "a = None", None]


def test_a_field_that_is_too_long_costs_its_row_of_a_table(tmp_path: Path) -> None:
    with (tmp_path / "s.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "completion"], ["a", "x = 1"], ["b", f"#{'x' * 2 * MAX_LINE}"], ["c", "y = 1"]]
        )
    programs, rejects = split(read_source(str(tmp_path / "s.csv")))
    assert len(programs) == 2 and [reject.line for reject in rejects] == [3]


def test_what_is_secret_in_an_address_is_in_no_manifest_and_no_message(server: Server, tmp_path: Path) -> None:
    url = f"http://me:hunter2@{server.url.split('//')[1]}/none.jsonl?sig=hunter2"
    assert told_source(url, url, None, None, "0" * 64, Hub())["source"] == f"{server.url}/none.jsonl"
    assert "hunter2" not in json.dumps(told_source(url, url, None, None, "0" * 64, Hub()))
    for where in (url, "http://me:hunter2@127.0.0.1/none.jsonl", f"{server.url}/a b.jsonl?sig=hunter2"):
        with pytest.raises(BadInput, match="without user, password and blanks") as refused:
            list(read_source(where, sha256="0" * 64))
        assert "hunter2" not in str(refused.value)


def test_manifests_name_what_was_read_by_digest(tmp_path: Path) -> None:
    where, good = write(tmp_path / "s.jsonl", ROWS["chat"]), write(tmp_path / "g.jsonl", ROWS["chat"])
    told = told_source(where, good, "chat", None, None, Hub())
    digest = hashlib.sha256(Path(where).read_bytes()).hexdigest()
    assert told["source_sha256"] == told["good_sha256"] == digest and told["form"] == "chat"
