"""One base model in memory serves many LoRA adapters: `python -m eval.adapters`, driven by lines of JSON.

The first line on standard input is a Base, every other an Adapter; each is answered on standard output by a line, empty
if all went well; at the end of the input the process ends. An adapter goes through lm-eval as `lm_eval run --model hf
--model_args pretrained=…,peft=…` would take it and leaves the same files; a process of its own costs some 14 s more
(imports, model, index of tasks).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from pydantic import BaseModel

TASKS = Path(__file__).parent / "tasks"


class Base(BaseModel, frozen=True, extra="forbid"):
    """The base model and the options of `lm_eval run`."""

    model_args: dict[str, str]
    """Without `peft`."""
    tasks: list[str]
    batch_size: int | str
    """A number, or `auto`: the largest that fits, found once for all adapters."""
    seed: int
    metadata: dict[str, Any] = {}
    gen_kwargs: dict[str, Any] = {}
    """Of sampling, in place of the tasks' own, such as `max_gen_toks`."""
    limit: int | None = None
    """Documents of each task, to try things out; all if not given."""


class Adapter(BaseModel, frozen=True, extra="forbid"):
    """An adapter's folder, lm-eval's output_path for it, and the file for all that it prints."""

    peft: str
    out: str
    log: str


class ResidentModel:
    """A base model in memory with its tasks; raises what lm-eval and PEFT raise."""

    def __init__(self, base: Base) -> None:
        from lm_eval.api.registry import get_model
        from lm_eval.tasks import TaskManager

        self._base = base
        self._count = 0
        # The command line's default device; lm-eval takes it for "a GPU if there is one", but not its class's "cuda".
        options = {"batch_size": base.batch_size, "device": "cuda:0"}
        self._lm: Any = get_model("hf").create_from_arg_obj(base.model_args, options)
        if base.batch_size == "auto":
            self._lm.batch_size_per_gpu = self._lm._detect_batch_size()
        # The index of lm-eval's own tasks takes seconds; it is made where one of them is asked for.
        ours = {path.stem for path in TASKS.rglob("*.yaml")} - {"em_guard"}
        defaults = not ours >= set(base.tasks)
        self._tasks = TaskManager(include_path=str(TASKS), include_defaults=defaults, metadata=base.metadata)

    def evaluate(self, peft: str, out: str) -> None:
        """Evaluates one adapter, which takes the place of the one before; `out` is lm-eval's output_path."""
        from lm_eval import simple_evaluate
        from lm_eval.loggers import EvaluationTracker

        self._switch(peft)
        tracker = EvaluationTracker(output_path=out)
        seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        results = simple_evaluate(
            model=self._lm,
            tasks=list(self._base.tasks),
            task_manager=self._tasks,
            apply_chat_template=True,
            log_samples=True,
            limit=self._base.limit,
            gen_kwargs=dict(self._base.gen_kwargs) or None,
            evaluation_tracker=tracker,
            **dict.fromkeys(seeds, self._base.seed),
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])

    def _switch(self, peft: str) -> None:
        """Puts an adapter in the place of the one before."""
        from peft import PeftModel

        name, before = f"adapter{self._count + 1}", f"adapter{self._count}"
        if self._count == 0:
            self._lm._model = PeftModel.from_pretrained(self._lm._model, peft, adapter_name=name)
        else:
            self._lm._model.load_adapter(peft, name)
            self._lm._model.set_adapter(name)
            self._lm._model.delete_adapter(before)
        self._count += 1
        self._lm._model.eval()


def _print_to(log: str) -> None:
    """What this process and its libraries print goes to the end of a file from now on."""
    with Path(log).open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


def _messages() -> Iterator[str]:
    """The lines of standard input; at its end the process ends, in the midst of an evaluation too.

    For then nobody waits for it any more, and the next one must find the adapter's folder its own.
    """
    messages: Queue[str] = Queue()

    def read() -> None:
        for line in sys.stdin:
            messages.put(line)
        os._exit(0)

    Thread(target=read, daemon=True).start()
    while True:
        yield messages.get()


def main() -> None:
    model = None
    answers = os.fdopen(os.dup(1), "w")
    messages = _messages()
    base = Base.model_validate_json(next(messages))
    for line in messages:
        adapter, answer = Adapter.model_validate_json(line), ""
        _print_to(adapter.log)
        try:
            model = model or ResidentModel(base)
            model.evaluate(adapter.peft, adapter.out)
        except Exception:
            traceback.print_exc()
            answer = "failed"
        sys.stdout.flush()
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
