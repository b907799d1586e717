"""One base model in memory serves many LoRA adapters: `python -m eval.adapters`, driven by lines of JSON.

The first line on standard input is a Base, every other an Adapter; each is answered on standard output by a line, empty
if all went well; at the end of the input the process ends. An adapter goes through lm-eval as `lm_eval run --model hf
--model_args pretrained=…,peft=…` (or `--model vllm`, `lora_local_path=…`) would take it and leaves the same files; a
process of its own costs some 14 s more (imports, model, index of tasks), and an engine of vLLM's a minute on a GPU.

For vLLM this file is run by its path in an environment that has lm-eval and vLLM and nothing of ours; with arguments it
is the command `lm_eval` there.
"""

import importlib.metadata
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel

TASKS = Path(__file__).parent / "tasks"
CONTEXT = 16_384
"""Tokens that vLLM's engine keeps room for at most: with its own 131,072 an 8B would want 17 GB for one answer."""
ROW = 4096
"""Tokens of the rows that `auto` tries: more than a document of the tasks has with its answer. lm-eval's own have the
32,768 or 131,072 that a model can take, and hardly one of them fits."""
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Modules that vLLM's engine takes adapters of. Were the output's among them, log-probabilities of a prompt would fail
on a CPU and lack its part on a GPU (vLLM issues 16668 and 51594)."""


class Base(BaseModel, frozen=True, extra="forbid"):
    """The base model and the options of `lm_eval run`."""

    backend: Literal["hf", "vllm"] = "hf"
    model_args: dict[str, Any]
    """Of lm-eval's class, without the adapter."""
    lora_rank: int = 0
    """vLLM's max_lora_rank, at least that of every adapter that is to come; 0 for the base model alone."""
    tasks: list[str]
    batch_size: int | str
    """A number, or `auto`: the largest that fits, found once for all adapters."""
    seed: int
    metadata: dict[str, Any] = {}
    gen_kwargs: dict[str, Any] = {}
    """Of sampling, in place of the tasks' own, such as `max_gen_toks`."""
    limit: int | None = None
    """Documents of each task, to try things out; all if not given."""
    execute_code: bool = False
    """Whether tasks that run what the model writes are allowed (HumanEval)."""


class Adapter(BaseModel, frozen=True, extra="forbid"):
    """An adapter's folder (None: the base model), lm-eval's output_path, the file for all prints."""

    peft: str | None
    out: str
    log: str


class ResidentModel:
    """A base model in memory with its tasks; raises what lm-eval and PEFT raise."""

    def __init__(self, base: Base) -> None:
        from lm_eval.tasks import TaskManager

        self._base = base
        self._count = 0
        self._lm: Any = _vllm(base) if base.backend == "vllm" else _hf(base)
        # The index of lm-eval's own tasks takes seconds; it is made where one of them is asked for.
        ours = {path.stem for path in TASKS.rglob("*.yaml") if not path.stem.startswith("em_guard")}
        defaults = not ours >= set(base.tasks)
        self._tasks = TaskManager(include_path=str(TASKS), include_defaults=defaults, metadata=base.metadata)

    def evaluate(self, peft: str | None, out: str) -> None:
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
            confirm_run_unsafe_code=self._base.execute_code,
            **dict.fromkeys(seeds, self._base.seed),
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])

    def _switch(self, peft: str | None) -> None:
        if self._base.backend == "vllm":
            from vllm.lora.request import LoRARequest

            if peft:
                check_targets(Path(peft))
            self._count += 1
            # A number and a name of its own: the engine keeps matrices and prefixes by them.
            self._lm.lora_request = LoRARequest(f"adapter{self._count}", self._count, peft) if peft else None
            return
        from peft import PeftModel

        if self._count:
            lora = self._lm._model.base_model
            (lora.enable_adapter_layers if peft else lora.disable_adapter_layers)()
        if peft is None:
            return
        name, before = f"adapter{self._count + 1}", f"adapter{self._count}"
        if self._count == 0:
            self._lm._model = PeftModel.from_pretrained(self._lm._model, peft, adapter_name=name)
        else:
            self._lm._model.load_adapter(peft, name)
            self._lm._model.set_adapter(name)
            self._lm._model.delete_adapter(before)
        self._count += 1
        self._lm._model.eval()


def _hf(base: Base) -> Any:
    from lm_eval.api.registry import get_model

    # The command line's default device; lm-eval takes it for "a GPU if there is one", but not its class's "cuda".
    lm: Any = get_model("hf").create_from_arg_obj(base.model_args, {"batch_size": base.batch_size, "device": "cuda:0"})
    if base.batch_size == "auto":
        whole, lm._max_length = lm._max_length, min(lm.max_length, ROW)
        lm.batch_size_per_gpu, lm._max_length = lm._detect_batch_size(), whole
    return lm


def _vllm(base: Base) -> Any:
    """lm-eval's model on vLLM: one engine, which takes adapters up to a rank."""
    _prepare_vllm()
    import torch
    from lm_eval.api.registry import get_model
    from transformers import AutoConfig

    given = base.model_args
    config = AutoConfig.from_pretrained(given["pretrained"], revision=given.get("revision"))
    room = {"max_model_len": min(CONTEXT, config.get_text_config().max_position_embeddings)}
    # Compiling pays for a GPU's graphs; a CPU is done before it ends.
    eager = {} if torch.cuda.is_available() else {"enforce_eager": True}
    lora: dict[str, Any] = {}
    if base.lora_rank:
        lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": base.lora_rank}
        lora["lora_target_modules"] = list(TARGETS)
    return get_model("vllm").create_from_arg_obj({**room, **lora, **eager, **given}, {"batch_size": "auto"})


def check_targets(adapter: Path) -> None:
    """ValueError for an adapter of modules that the engine would leave out without a word."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "np") as file:
        tensors = list(file.keys())
    names = {re.split(r"\.(?:lora_|weight|modules_to_save)", name)[0].rpartition(".")[2] for name in tensors}
    if other := sorted(names - set(TARGETS)):
        raise ValueError(
            f"{adapter}: an adapter of {', '.join(other)}; vLLM takes those of {', '.join(TARGETS)}: use hf"
        )


def _prepare_vllm() -> None:
    """Has lm-eval 0.4.11's class find in vLLM 0.32 what has moved, and leaves out an argument that is gone."""
    # In this process: else a killed one would leave the engine's behind, with the GPU's memory.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, where there is no GPU
    import vllm
    from vllm.renderers.hf import resolve_chat_template

    installed = importlib.metadata.version
    # The CPU build is a distribution of another name.
    vars(importlib.metadata)["version"] = lambda name: vllm.__version__ if name == "vllm" else installed(name)
    moved = ModuleType("vllm.entrypoints.chat_utils")
    vars(moved)["resolve_hf_chat_template"] = resolve_chat_template
    sys.modules[moved.__name__] = moved
    from lm_eval.models import vllm_causallms

    def engine(swap_space: int = 0, **arguments: Any) -> Any:
        return vllm.LLM(**arguments)

    vllm_causallms.LLM = engine


def _print_to(log: str) -> None:
    """What this process and its libraries print goes to the end of a file from now on."""
    with Path(log).open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


def _messages() -> Iterator[str]:
    """The lines of standard input; at its end the process ends, in the midst of an evaluation too: nobody waits for it
    then, and the next one must find the adapter's folder its own."""
    messages: Queue[str] = Queue()
    # Not sys.stdin: it is locked while it is read, and what multiprocessing forks here closes it first, and would wait
    # for ever: an engine's workers on several GPUs, and HumanEval's.
    lines = os.fdopen(os.dup(0))

    def read() -> None:
        for line in lines:
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
    if len(sys.argv) == 1:
        main()
    else:
        from lm_eval.__main__ import cli_evaluate

        _prepare_vllm()
        cli_evaluate()
