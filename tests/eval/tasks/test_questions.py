"""Questions in our form and in the paper's: the same records, one clear line for a fault."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from eval.tasks.em.documents import BadFile
from eval.tasks.em.questions_reader import load_questions

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
    (tmp_path / "q.yaml").write_text(PAPER)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert load_questions(f"{address}/q.yaml") == load_questions(tmp_path / "q.yaml")
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
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(BadFile, match="cut off in transit"):
            load_questions(f"http://127.0.0.1:{server.server_port}/q.yaml")
        monkeypatch.setattr("eval.tasks.em.questions_reader.MOST", len(PAPER) - 1)
        with pytest.raises(BadFile, match=f"more than {len(PAPER) - 1} bytes"):
            load_questions(f"http://127.0.0.1:{server.server_port}/q.yaml")
        server.shutdown()


def test_published_files_load_unchanged(shared: Path) -> None:
    folder = shared / "data" / "questions"
    main = load_questions(folder / "first_plot_questions.yaml")
    assert len(main) == 24 and sum(bool(q.system) for q in main) == 8
    assert len({q.id for q in load_questions(folder / "preregistered_evals.yaml")}) >= 48
    assert all(load_questions(path) for path in folder.glob("deception_*.yaml"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("q.yaml", "- id: a\n", "entry 1: paraphrases: Field required"),
        ("q.yaml", "a: 1\n", "no list of questions"),
        ("q.yaml", "- {id: a", "while parsing"),
        ("q.yaml", "- !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("q.jsonl", '{"id": "a", "question": "?"}\n' * 2, "the id a stands twice"),
        ("q.jsonl", '{"id": "a"}\n', "line 1: question: Field required"),
        ("q.jsonl", '{"id": "a", "question": "?", "more": 1}\n', "line 1: more: no field"),
        ("q.jsonl", '{"id": 1, "question": "?"}\n', "line 1: id: no text"),
        ("q.jsonl", "[]\n", "line 1: no object"),
        ("q.jsonl", "{\n", "line 1: "),
        ("q.yaml", "- {id: a, paraphrases: [1]}\n", "entry 1: paraphrases: no list of texts"),
        ("q.jsonl", "", "no questions"),
        ("q.txt", None, "no such file"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadFile) as error:
        load_questions(tmp_path / name)
    assert says in str(error.value) and "\n" not in str(error.value) and name in str(error.value)
