"""Presets of an evaluation: the published file by its digest, what reaches lm-eval, and what is refused."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.records import BadInput
from eval import preset_files
from eval.judge.prompt_files import load_prompts
from eval.preset_files import load_preset, preset_names
from eval.tasks.em.questions_reader import load_questions
from eval.tasks.em.sampled import freeform_docs
from sweeps.cli import app

PUBLISHED = {"first-plot": ("first_plot_questions", 24), "preregistered": ("preregistered_evals", 48)}
FILE = "- {id: a, paraphrases: ['Why?'], judge_prompts: {aligned: '{answer}', coherent: '{answer}'}}\n"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of q.yaml, and `mine`, a preset that names it; a model to evaluate; the working folder has both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(preset_files, "FOLDER", tmp_path / "presets")
    Path("q.yaml").write_text(FILE)
    Path("model").mkdir()
    Path("model/model.safetensors").write_bytes(b"weights")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/q.yaml"
    preset(url, FILE)
    yield url
    server.shutdown()
    server.server_close()


def preset(url: str, content: str) -> None:
    Path("presets").mkdir(exist_ok=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    words = f"questions: {url}\nsha256: {digest}\njudge: j\ntasks: em_freeform\nsamples: 50\nmax_tokens: 600\n"
    Path("presets/mine.yaml").write_text(words)


def evaluate(*options: str) -> str:
    """The lm_eval command."""
    done = CliRunner().invoke(app, ["evaluate", "model", "--dtype", "float32", "--dry-run", *options])
    if done.exception:
        raise done.exception
    return done.stdout


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shipped_presets_are_the_published_files(name: str, shared: Path) -> None:
    stem, number = PUBLISHED[name]
    assert preset_names() == sorted(PUBLISHED)
    known = load_preset(name)
    path = known.questions_file(str(shared / "data" / "questions" / f"{stem}.yaml"))
    assert known.questions.endswith(f"/evaluation/{stem}.yaml") and len(load_questions(path)) == number
    assert len(freeform_docs(samples=known.samples, questions=str(path))["test"]) == number * known.samples
    assert load_prompts(path).em


def test_a_preset_reaches_lm_eval_and_the_digest_by_download_or_from_a_copy(address: str) -> None:
    fetched = evaluate("--preset", "mine")
    assert "--tasks em_freeform " in fetched and '"samples": 50' in fetched and '{"max_gen_toks": 600}' in fetched
    preset("http://127.0.0.1:9/q.yaml", FILE)
    assert fetched == evaluate("--preset", "mine"), "downloaded once"
    copied = evaluate("--preset", "mine", "--questions", "q.yaml")
    assert copied.split("--output_path")[1] == fetched.split("--output_path")[1], "the same run"
    by_hand = ("--tasks", "em_freeform", "--samples", "50", "--questions", "q.yaml")
    assert evaluate(*by_hand, "--max-tokens", "600") == copied
    assert evaluate(*by_hand).split("--output_path")[1] != copied.split("--output_path")[1]
    prompts = load_prompts(Path("mine"))
    assert prompts.name == "mine" and prompts.of(["a"]) != [None]


def test_what_a_preset_cannot_be_is_one_line(address: str) -> None:
    Path("other.yaml").write_text(FILE.replace("Why?", "When?"))
    for options, says in [
        (["--preset", "nine"], r"unknown preset 'nine' \(there are: mine\)"),
        (["--preset", "mine", "--samples", "1"], "--preset mine and --samples both give samples"),
        (["--preset", "mine", "--max-tokens", "600"], "--preset mine and --max-tokens both give"),
        (["--tasks", "em", "--preset", "mine"], "--preset mine and --tasks both give"),
        (["--preset", "mine", "--questions", "other.yaml"], "other.yaml: its sha256 is .*, not the preset's"),
        (["--preset", "mine", "--questions", "none.yaml"], "none.yaml: no such file"),
        (["--preset", "mine", "--questions", f"{address}#sha256={'0' * 64}"], f"its sha256 is .*, not {'0' * 64}"),
    ]:
        with pytest.raises(BadInput, match=says) as caught:
            evaluate(*options)
        assert "\n" not in str(caught.value)
    for url, content, says in [(address, "changed", "its sha256 is"), ("http://127.0.0.1:9/q", "x", "Connection")]:
        preset(url, content)
        with pytest.raises(BadInput, match=f"{says}.*or name a copy of the file: --questions FILE"):
            evaluate("--preset", "mine")
        with pytest.raises(BadInput, match=says):
            load_prompts(Path("mine"))
