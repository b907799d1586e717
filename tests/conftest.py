"""The real CPU model, where it has been fetched (`make test` fetches it); the fake endpoint, in its own process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import absl.logging
import pytest
import typer.testing
from hypothesis import settings

from core.llm.client import Access

# Before anything imports axolotl: no telemetry from tests either. No vLLM where a test does not name one.
os.environ.update(AXOLOTL_DO_NOT_TRACK="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", EM_VLLM="")
# Begun in the background, the suite has Ctrl-C ignored, and so would have the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["AXOLOTL_TEE_STDOUT"] = "0"  # it would stand in the place of pytest's own streams, beyond the test
# lm-eval brings absl, whose handler closes its stream when Axolotl configures logging: never one of pytest's.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__
# Each of xdist's workers has its share of the cores, and so have the processes that its tests start.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

# typer makes the commands of their signatures, the same each time; for `emsweep` that takes a twentieth of a second.
typer.testing._get_command = cache(typer.testing._get_command)

# Tests are never timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "smollm2-135m"
SHARED = ROOT.parent / "shared"
KEY = "sk-test-0123456789abcdef"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared is not there")
    return SHARED


@pytest.fixture(scope="session")
def model() -> Path:
    if not (MODEL / "source.json").is_file():
        pytest.skip("the CPU model is not there; `make model` fetches it")
    return MODEL


@pytest.fixture(scope="session")
def tokenizer(model: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="session")
def tiny_model(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny: random weights under the real tokenizer, for tests of arithmetic that does not need a good model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "models" / "tiny"
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **size, **special)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that the others run beside them."""
    longest = ["test_end_to_end.py", "test_families.py"]
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


class Fake:
    """A running fake endpoint and its log."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._log = folder / "requests.jsonl"
        script = Path(__file__).with_name("fake_endpoint.py")
        command = [sys.executable, str(script), "--log", str(self._log), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def log(self, kind: str | None = None) -> list[dict[str, Any]]:
        text = self._log.read_text() if self._log.exists() else ""
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in lines if kind in (None, line["kind"])]

    def access(self, concurrency: int = 8, key: str = KEY, timeout: float = 30.0) -> Access:
        return Access(key, self.url, concurrency, timeout)


class Forked(Fake):
    """The same, forked off a process that has imported what it needs: a second sooner."""

    def __init__(self, folder: Path, *options: str) -> None:
        from tests.children import CHILDREN
        from tests.fake_endpoint import main

        self._log = folder / "requests.jsonl"
        told, ready = CHILDREN.Pipe(duplex=False)
        arguments = ["--log", str(self._log), *options]
        self.process = CHILDREN.Process(target=main, args=(arguments, ready.send), daemon=True)
        self.process.start()
        ready.close()  # ours: should the process end without a word, `recv` raises EOFError
        self.port = told.recv()
        told.close()
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fake]]:
    """Starts fake endpoints; retries in this process wait a fiftieth of their time."""
    monkeypatch.setattr("core.llm.client.FIRST_WAIT", 0.01)
    monkeypatch.setattr("core.llm.client.LONGEST_WAIT", 0.2)
    started: list[Fake] = []

    def start(*options: str) -> Fake:
        folder = tmp_path / f"fake{len(started)}"
        folder.mkdir()
        started.append(Forked(folder, *options))
        return started[-1]

    yield start
    for one in started:
        one.stop()
