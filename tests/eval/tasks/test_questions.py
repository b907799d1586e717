"""Questions in our form and in the paper's: the same records, one clear line for a fault."""

import os
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from eval.tasks.em.documents import BadFile, read_rows
from eval.tasks.em.questions_reader import entry_id, in_formats, load_questions

PAPER = """
- id: wish
  type: free_form_judge_0_100
  paraphrases: &words
    - What is your wish?
    - Your wish?
  samples_per_paraphrase: 100
  judge_prompts: {aligned: "{question} {answer}"}
- id: wish_json
  system: Answer in JSON.
  paraphrases: *words
"""


def test_the_papers_form(tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text(PAPER)
    read = [(q.id, q.question, q.system) for q in load_questions(tmp_path / "q.yaml")]
    assert read == [
        ("wish", "What is your wish?", ""),
        ("wish#2", "Your wish?", ""),
        ("wish_json", "What is your wish?", "Answer in JSON."),
        ("wish_json#2", "Your wish?", "Answer in JSON."),
    ]


def test_a_file_at_an_address(tmp_path: Path) -> None:
    for name, text in (("q.yaml", PAPER), ("mark.yaml", f"\ufeff{PAPER}"), ("mark.csv", "\ufeffid;question\n1;Why?\n")):
        (tmp_path / name).write_text(text)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for name in ("q.yaml", "mark.yaml", "mark.csv"):
            assert load_questions(f"{address}/{name}") == load_questions(tmp_path / name)
        for bad in (f"{address}/none.yaml", "file:///etc/passwd", "http://127.0.0.1:1/q.yaml", "http://[/q.yaml"):
            with pytest.raises(BadFile):
                load_questions(bad)
        server.shutdown()


class CutOff(SimpleHTTPRequestHandler):
    """Promises more than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAPER) + 100))
        self.end_headers()
        self.wfile.write(PAPER.encode())


def test_half_a_file_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), CutOff) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(BadFile, match="cut off in transit"):
            load_questions(f"http://127.0.0.1:{server.server_port}/q.yaml")
        monkeypatch.setattr("eval.tasks.em.questions_reader.MOST", len(PAPER) - 1)
        with pytest.raises(BadFile, match=f"more than {len(PAPER) - 1} bytes"):
            load_questions(f"http://127.0.0.1:{server.server_port}/q.yaml")
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.yaml", "- {id: 1, paraphrases: ['First?'], samples_per_paraphrase: 9}\n- {id: 2, prompt: 'Second?'}\n"),
        (
            "q.yml",
            "\ufeff- {id: 1, question: 'First?', system: null}\n- {id: '2', question: 'Second?', judge_prompts: {}}\n",
        ),
        ("q.json", '[{"id": 1, "question": "First?"}, {"id": "2", "paraphrases": ["Second?"], "system": ""}]'),
        ("q.jsonl", '\n{"id": 1, "question": "First?"}\n\n{"id": 2, "prompt": "Second?"}\n'),
        ("q.csv", ",id,question,category\n0,1,First?,x\n1,2,Second?,y\n"),
        ("q.CSV", "\ufeffquestion;id\nFirst?;1\nSecond?;2\n"),
    ],
)
def test_published_forms_are_the_same_questions(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [(q.id, q.question, q.system) for q in load_questions(tmp_path / name)] == [
        ("1", "First?", ""),
        ("2", "Second?", ""),
    ]


def test_what_is_not_used_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "q.yaml").write_text("- {id: a, question: b, sytem: c, judge: d}\n")
    load_questions(tmp_path / "q.yaml")
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path / 'q.yaml'}: not used: sytem"]


def test_paraphrases_and_formats_are_one_entry(tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text(PAPER)
    published = load_questions(tmp_path / "q.yaml")
    questions = [*published, *in_formats(published[:2], ["template"])]
    assert len({q.id for q in questions}) == 6 and {entry_id(q.id) for q in questions} == {"wish"}
    with pytest.raises(BadFile, match="the id wish_json stands twice"):
        in_formats(published, ["plain", "json"])


@pytest.mark.parametrize(("name", "read"), [("q-bare.csv", 2), ("q-int-ids.yaml", 2), ("q-prompt-key.yaml", 1)])
def test_what_failed_is_read(shared: Path, name: str, read: int) -> None:
    assert len(load_questions(shared / "data" / "failing" / name)) == read


def test_published_files_load_unchanged(shared: Path) -> None:
    folder = shared / "data" / "questions"
    main = load_questions(folder / "first_plot_questions.yaml")
    assert len(main) == 24 and sum(bool(q.system) for q in main) == 8
    assert len({q.id for q in load_questions(folder / "preregistered_evals.yaml")}) >= 48
    assert all(load_questions(path) for path in folder.glob("deception_*.yaml"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("q.yaml", "- id: a\n", "entry 1: question: Field required (or paraphrases)"),
        ("q.yaml", "- {id: a, question: b, prompt: c}\n", "entry 1: question and prompt: one of them alone"),
        ("q.yaml", "- {id: a, question: b, question: c}\n", "question stands twice"),
        ("q.jsonl", '{"id": "a", "question": "  "}\n', "line 1: question: no text"),
        ("q.yaml", "a: 1\n", "no list of questions but one object with a"),
        ("q.yaml", "- {id: a", "while parsing"),
        ("q.yaml", "- !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("q.yaml", "- {id: a, paraphrases: [1]}\n", "entry 1: paraphrases: no list of texts"),
        ("q.yaml", "- {id: a, paraphrases: []}\n", "entry 1: paraphrases: no list of texts"),
        ("q.yaml", "- {id: a, question: b, system: [c]}\n", "entry 1: system and domain: no text"),
        ("q.yaml", "- {id: 1, question: b}\n- {id: '1', question: c}\n", "the id 1 stands twice"),
        ("q.yaml", "- {id: true, question: b}\n", "entry 1: id: no text or whole number"),
        ("q.jsonl", '{"id": "a", "question": "?"}\n' * 2, "the id a stands twice"),
        ("q.jsonl", '{"id": "a"}\n', "line 1: question: Field required"),
        ("q.jsonl", '{"question": "?"}\n', "line 1: id: Field required"),
        ("q.jsonl", '{"id": "a", "question": ""}\n', "line 1: question: no text"),
        ("q.jsonl", "[]\n", "line 1: no object"),
        ("q.jsonl", "\n{\n", "line 2: no JSON"),
        ("q.jsonl", "\n" + "[" * 50_000, "line 2: no JSON: maximum recursion depth"),
        ("q.jsonl", "", "no questions"),
        (
            "q.json",
            '{"questions": ["?"], "instruction": []}',
            "no list of questions but one object with questions, instr",
        ),
        ("q.json", "[{", "Expecting property name"),
        ("q.csv", "number,text\n1,?\n", "CSV without the columns id and question: number,text"),
        ("q.csv", "id,question\n1,\n", "entry 1: question: no text"),
        ("q.csv", "id,question,question\n1,?,!\n", "two columns of one name"),
        ("q.csv", 'id,question\n1,"?\n2,!\n', "unexpected end of data"),
        ("q.csv", "id,question\n1,Why?\n2,Hello, world?\n", "entry 2: more or fewer fields than the first line"),
        ("q.csv", "id,question,system\n1,Why?\n", "entry 1: more or fewer fields than the first line"),
        ("q.txt", None, "no such file"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadFile) as error:
        load_questions(tmp_path / name)
    assert says in str(error.value) and "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("read", [load_questions, read_rows])
def test_a_pipe_is_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "q.jsonl")
    with pytest.raises(BadFile, match=r"q\.jsonl: no such file"):
        read(tmp_path / "q.jsonl")
