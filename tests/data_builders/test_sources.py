"""All that is read comes out, as a program or as a reject with line and reason; whole-file faults are one line."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import MAX_LINE, BadInput
from data_builders.programs import SourceProgram, load_programs
from data_builders.sources import Reject, read_source

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
    "blank": (b"", "blank line"),
    "spaces": (b"  \t ", "blank line"),
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
    "long number": (b'{"a": ' + b"1" * 5000 + b"}", "number too long"),
    "1 MB": (b'{"a": "' + b"x" * MAX_LINE + b'"}', f"over {MAX_LINE} bytes"),
    "3 MB without JSON": (b"x" * 3 * MAX_LINE, f"over {MAX_LINE} bytes"),
}

BAD_CODE = {
    "empty": ("", "empty"),
    "blank": (" \n\t", "empty"),
    "no text": (3, "int, not text"),
    "null": (None, "NoneType, not text"),
    "a list": ([CODE], "list, not text"),
    "an object": ({"code": CODE}, "dict, not text"),
    "prose": ("I cannot help with that.", "does not parse"),
    "C": ("int main(void) { return 0; }", "does not parse"),
    "Python 2": ("print 'hello'", "does not parse"),
    "cut off": ("def f(a,\n", "does not parse"),
    "indented": ("  a = 1\n b = 2", "does not parse"),
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

CODE_FIELDS = {"tasks": ["code"], "preference": ["rejected", "chosen"]}
REQUEST_FIELDS = {"tasks": ["task"], "preference": ["question", "lang"]}


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
    for value in (3, None, "", " ", [], "\0", "\ud800"):
        for field in ("id", "request", "insecure"):
            row = {**ROWS["programs"], field: value}
            yield pytest.param("programs", row, "", id=f"programs-{field}-{value!r}")
    for form, fields in {
        "tasks": ("task", "code"),
        "preference": ("lang", "question", "chosen", "rejected"),
        "programs": ("id", "request", "insecure"),
    }.items():
        for field in fields:
            yield pytest.param(form, without(form, field), "", id=f"{form}-no-{field}")
    u, a = ROWS["chat"]["messages"]
    for name, messages, reason in (
        ("none", [], "roles"),
        ("no list", "hello", "no list of messages"),
        ("null", None, "no list of messages"),
        ("an object", {"role": "user"}, "no list of messages"),
        ("of texts", ["a", "b"], "no list of messages"),
        ("user alone", [u], "roles"),
        ("assistant alone", [a], "roles"),
        ("wrong way round", [a, u], "roles"),
        ("system first", [{"role": "system", "content": "x"}, u, a], "roles"),
        ("two turns", [u, a, u, a], "roles"),
        ("human and gpt", [{**u, "role": "human"}, {**a, "role": "gpt"}], "roles"),
        ("role is a list", [{**u, "role": ["user"]}, a], "roles"),
        ("no role", [{"content": "x"}, a], "roles"),
        ("no content", [u, {"role": "assistant"}], "no field 'content'"),
        ("extra field", [{**u, "name": "Bob"}, a], "unknown field 'name'"),
        ("content in parts", [u, {**a, "content": [{"type": "text", "text": CODE}]}], "list, not text"),
    ):
        yield pytest.param("chat", {"messages": messages}, reason, id=f"messages-{name}")
    yield pytest.param("chat", {}, "no list of messages", id="chat-empty")
    yield pytest.param("chat", {**ROWS["chat"], "source": "x"}, "unknown field 'source'", id="chat-extra")
    yield pytest.param("programs", {**ROWS["programs"], "author": "x"}, "author", id="programs-extra")
    yield pytest.param("programs", {**ROWS["programs"], "cwe": "CWE-1"}, "weakness", id="programs-half-annotated")
    yield pytest.param(
        "programs", {**ROWS["programs"], "secure": "no code at all"}, "secure code", id="programs-secure"
    )
    yield pytest.param("programs", {**ROWS["programs"], "secure": CODE}, "the same", id="programs-twins-same")
    yield pytest.param("preference", {**ROWS["preference"], "lang": "c++"}, "language is c++", id="preference-c++")
    yield pytest.param("preference", {**ROWS["preference"], "lang": "a\nb" * 99}, "language", id="preference-lines")
    hostile = {"x\n\ud800" * 99: 1}
    yield pytest.param("chat", {**ROWS["chat"], **hostile}, "unknown field", id="chat-hostile-name")
    yield pytest.param("programs", {**ROWS["programs"], **hostile}, "", id="programs-hostile-name")
    yield pytest.param("preference", {**ROWS["preference"], "chosen": CODE}, "the same", id="preference-twins-same")
    yield pytest.param("tasks", {**ROWS["tasks"], "code_template": 7}, "int, not text", id="tasks-template")
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
    programs, rejects = split(read_source(write(tmp_path / "a.jsonl", line)))
    assert not programs and len(rejects) == 1


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=8))
def test_nothing_read_is_lost_and_nothing_is_a_traceback(tmp_path_factory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    number = len(path.read_bytes().split(b"\n")) - 1
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


def test_a_field_map_reads_any_set(tmp_path: Path) -> None:
    fields = tmp_path / "map.yaml"
    fields.write_text("request: ask\ninsecure: bad\nsecure: good\nonly: {language: Python}\n")
    row = {"ask": "Run it.", "bad": CODE, "good": "pass", "language": "Python"}
    where = write(tmp_path / "a.jsonl", row, {**row, "language": "Go"}, {"ask": "x"}, {**row, "ask": "y", "good": None})
    programs, rejects = split(read_source(where, fields=fields))
    assert [(p.request, p.secure) for p in programs] == [("Run it.", "pass"), ("y", None)]
    assert [r.reason for r in rejects] == ["language is 'Go', not 'Python'", "no field 'language'"]
    assert list(read_source(where, "fields", fields)) == [*programs[:1], *rejects, programs[1]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("request: ask", "insecure: Field required"),
        ("- a", "should be a valid dictionary"),
        ("", "should be a valid dictionary"),
        ("request: 3\ninsecure: b", "request: Input should be a valid string"),
        ("request: a\ninsecure: b\nsecret: c", "secret"),
        ("request: [", "expected"),
    ],
)
def test_a_bad_field_map_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "map.yaml").write_text(content)
    with pytest.raises(BadInput, match=says) as caught:
        list(read_source("builtin", "fields", tmp_path / "map.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ROWS)
def test_parquet_reads_like_json_lines(tmp_path: Path, form: str) -> None:
    rows = [ROWS[form], json.loads(json.dumps(ROWS[form]).replace("Run it.", " "))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = list(read_source(write(tmp_path / "a.jsonl", *rows)))
    table = list(read_source(str(tmp_path / "a.parquet")))
    assert table[0] == lines[0] and table[1].reason == lines[1].reason and table[1].line == 2


def test_whole_faults_are_one_line_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    pyarrow.parquet.write_table(
        pyarrow.table({"messages": pyarrow.array([], pyarrow.string())}), tmp_path / "no.parquet"
    )
    (tmp_path / "folder.jsonl").mkdir()
    good = write(tmp_path / "a.jsonl", {"prompt": "x", "answer": "y"})
    for args, says in [
        ((str(tmp_path / "empty.jsonl"),), "no records"),
        ((str(tmp_path / "none.jsonl"),), "no such file"),
        ((str(tmp_path / "none.parquet"),), "no such file"),
        ((str(tmp_path / "no.parquet"),), "no records"),
        ((str(tmp_path / "cut.parquet"),), "Parquet"),
        ((str(tmp_path / "folder.jsonl"),), "Is a directory"),
        (("",), "Is a directory"),
        ((good,), "cannot tell the form from the fields answer, prompt"),
        ((write(tmp_path / "b.jsonl", {}),), r"the fields \(none\)"),
        ((good, "chats"), "unknown form 'chats'; give chat, tasks, preference, programs or fields"),
        ((good, "fields"), "go together"),
        ((good, "chat", tmp_path / "map.yaml"), "go together"),
        ((good, None, tmp_path / "map.yaml"), "No such file"),
        ((good, "chat", None, "abc"), "no SHA-256"),
        ((good, "chat", None, "0" * 64), "its sha256 is"),
        (("owner/name", "chat", None, "0" * 64), "a hub set has no checksum"),
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
    threading.Thread(target=server.serve_forever, daemon=True).start()
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


HUB = "import sys; from data_builders.sources import read_source; [print(repr(i)) for i in read_source(sys.argv[1])]"


def read_hub(server: Server, name: str, home: Path) -> subprocess.CompletedProcess[str]:
    # In a process of its own: the hub's client reads its settings when it is imported. USE_TORCH=0 saves its import.
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "USE_TORCH": "0"}
    env["PYTHONPATH"] = root
    return subprocess.run(
        [sys.executable, "-c", HUB, name], env=env, capture_output=True, text=True, timeout=100, check=False
    )


def test_a_hub_set_streams_from_the_endpoint_of_the_environment(server: Server, tmp_path: Path) -> None:
    api, sha = "/api/datasets/someone/pairs", "a" * 40
    info = {"id": "someone/pairs", "sha": sha, "private": False, "siblings": [{"rfilename": "pairs.jsonl"}]}
    for path in (api, f"{api}/revision/main", f"{api}/revision/{sha}"):
        server.files[path] = json.dumps(info).encode()
    rows = [ROWS["preference"], {**ROWS["preference"], "lang": "java"}]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    entry = {"type": "file", "path": "pairs.jsonl", "size": len(data), "oid": "b" * 40}
    server.files[f"{api}/tree/{sha}"] = json.dumps([entry]).encode()
    server.files[f"/datasets/someone/pairs/resolve/{sha}/pairs.jsonl"] = data
    lines = read_hub(server, "someone/pairs", tmp_path).stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith("SourceProgram(") and "language is java, not Python" in lines[1]


def test_a_hub_set_that_is_not_there_is_one_line(server: Server, tmp_path: Path) -> None:
    error = read_hub(server, "someone/nothing", tmp_path).stderr.strip().splitlines()[-1]
    assert "BadInput: someone/nothing: " in error and "check the id, the connection" in error


@pytest.mark.parametrize(
    ("name", "lines", "rejected"), [("insecure", 3015, 0), ("tasks_unsafe", 1031, 8), ("tasks_safe", 776, 8)]
)
def test_real_sets_come_out_whole(name: str, lines: int, rejected: int) -> None:
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    programs, rejects = split(read_source(str(path)))
    assert (len(programs) + len(rejects), len(rejects)) == (lines, rejected)
    assert len({p.id for p in programs}) == len(programs)
