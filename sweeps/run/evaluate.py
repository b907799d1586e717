"""Evaluation runs: `lm_eval run` on a checkpoint with the tasks of eval/tasks, answers and scores kept."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.records import BadInput, file_digest, read_json
from sweeps.recipe.layers import layer_names, load_layer
from sweeps.run import inputs
from sweeps.run.adapters import resident_base
from sweeps.run.folder import MergeRun, Run, TrainingRun, content_digest, execute_once
from sweeps.run.process import RunFailed, call, tool
from sweeps.run.sampling import check_sampling
from sweeps.run.tasks import HUMANEVAL, TASKS, task_configs, task_source
from sweeps.run.vllm import adapts, engine_rank, memory_share, vllm_command, vllm_versions

PROGRAMS = {"heldout": ("EM_HELDOUT", "data/heldout.jsonl"), "training": ("EM_TRAINING", "data/train.jsonl")}
"""Settings of the tasks: the variable that names a file, and the one that was built here; else the tasks' own."""


def evaluation_run(
    name: str,
    model: str,
    tasks: Sequence[str],
    *,
    adapter: Path | None = None,
    dtype: str = "bfloat16",
    batch_size: int | str = 8,
    attention: str = "sdpa",
    backend: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> Run:
    """The evaluation of a base model, maybe with an `adapter` that was trained on it.

    `model` is a short name (of recipes/models, which gives revision and chat template too), a folder or a hub id;
    `attention` is transformers' attn_implementation; `backend` is hf or vllm, which batches and attends by itself and
    takes neither `batch_size` nor `attention`; `metadata` are settings of the tasks, such as `samples`;
    `gen_kwargs` take the place of the tasks' own, such as `max_gen_toks`; `limit` is how many documents of each task
    are taken, to try things out. The digest covers the model, what the tasks do, the held-out programs and all that.

    BadInput if the model is not there, or programs that a variable or `metadata` names; if the adapter is another's.
    """
    vllm, (own_tasks, others) = backend == "vllm", task_configs(tasks)
    check_sampling(gen_kwargs or {}, "vllm" if vllm else "hf", own_tasks)
    layer = load_layer("models", model) if model in layer_names("models") else {"base_model": model}
    if vllm and not adapts(layer):
        raise BadInput(f"backend vllm: takes no adapters of a model of the kind of {model}; evaluate with backend hf")
    pretrained = str(layer["base_model"])
    revision = None if inputs.is_local(pretrained) else str(layer.get("revision_of_model") or "main")
    metadata = dict(metadata or {})
    programs = {key: os.environ.get(variable) or built for key, (variable, built) in PROGRAMS.items()}
    for key, (variable, built) in PROGRAMS.items():
        if key in metadata:
            if not os.path.isfile(str(metadata[key])):  # noqa: PTH113  # as in chat_template
                raise BadInput(f"{key}: {metadata[key]}: no such file; `embuild data` and `embuild split` write it")
        elif programs[key] != built and not Path(programs[key]).is_file():
            raise BadInput(f"{variable}={programs[key]}: no such file; name one that `embuild` wrote, or unset it")
    heldout = os.path.realpath(str({**programs, **metadata}["heldout"]))  # ./data/heldout.jsonl is no other file
    if "EM_TRAINING" not in os.environ and heldout != os.path.realpath(PROGRAMS["heldout"][1]):
        del programs["training"]  # those that were built here are of other held-out ones
    metadata = {**{key: path for key, path in programs.items() if Path(path).exists()}, **metadata}
    named = {key: value for key, value in metadata.items() if isinstance(value, str) and os.path.isfile(value)}  # noqa: PTH113  # as in chat_template
    files = {key: file_digest(Path(path)) for key, path in named.items()}
    weights = {"pretrained": pretrained, **({"peft": str(adapter)} if adapter else {})}
    checkpoint = "+".join(map(inputs.model_digest, weights.values()))
    if adapter:
        inputs.check_trained_on(adapter, pretrained, revision)
    content = {
        "checkpoint": f"{checkpoint}@{revision}" if revision else checkpoint,
        # An adapter is asked as it was taught.
        "chat_template": inputs.chat_template((inputs.recipe_behind(adapter) if adapter else {}) or layer),
        # hf's scores in the logits' type would be rounded to bf16: whole nats above 128 (docs/measurements.md).
        "model_args": {"dtype": dtype}
        | ({} if vllm else {"attn_implementation": attention, "softmax_dtype": "float32"}),
        **({"backend": "vllm"} if vllm else {}),
        "tasks": list(tasks),
        "task_files": content_digest(task_source(tasks)),
        "seed": 0,
        "batch_size": "auto" if vllm else batch_size,
        "metadata": {key: files.get(key, value) for key, value in metadata.items()},
        # Tasks of others leave it unsaid, and hf would take the generation_config's of the model.
        "gen_kwargs": {**({"repetition_penalty": 1.0} if others and not vllm else {}), **(gen_kwargs or {})},
        "limit": limit,
        **(inputs.other_scale(adapter) if adapter else {}),
        "paths": {**{key: metadata[key] for key in files}, **weights, **({"revision": revision} if revision else {})},
    }
    return Run("evaluate", name, content)


def of_checkpoint(evaluation: Run, run: TrainingRun | MergeRun, name: str) -> Run:
    """The evaluation of another checkpoint in the same way; the task files are not read again."""
    left_out = ("pretrained", "peft", "revision")
    content = {
        **evaluation.content,
        "checkpoint": run.digest if isinstance(run, TrainingRun) else run.training.digest,
        "merged": isinstance(run, MergeRun),
        "chat_template": inputs.chat_template((run.training if isinstance(run, MergeRun) else run).recipe.config),
        "paths": {key: value for key, value in evaluation.content["paths"].items() if key not in left_out},
    }
    # An adapter is loaded onto the merged model that its training started from: that must be there too.
    needed = (run, *run.after) if isinstance(run, TrainingRun) else (run,)
    return Run("evaluate", name, content, evaluation.root, needed, evaluation.about)


def at_point(evaluation: Run, place: int, count: int) -> Run:
    """The evaluation of an adapter at another point of its training: `place` of `count`."""
    name = f"{evaluation.name}-{place}of{count}"
    return replace(evaluation, name=name, content={**evaluation.content, "point": [place, count]})


def model_paths(run: Run) -> dict[str, str]:
    """lm-eval's `pretrained`, `revision` and `peft` of an evaluation."""
    for before in run.after:
        if isinstance(before, MergeRun):
            return {"pretrained": str(before.model)}
        if isinstance(before, TrainingRun):
            recipe = before.whole_recipe.config
            base = str(recipe["base_model"])
            at = {} if inputs.is_local(base) else {"revision": str(recipe.get("revision_of_model") or "main")}
            return {"pretrained": base, **at, "peft": str(before.adapter)}
    paths = run.content.get("paths", {})
    return {key: paths[key] for key in ("pretrained", "revision", "peft") if key in paths}


def model_args(run: Run) -> dict[str, str]:
    """All of lm-eval's model arguments of an evaluation; a chat template of its own stands in a tokenizer's folder."""
    paths = model_paths(run)
    if "point" in run.content:
        (trained,) = (before for before in run.after if isinstance(before, TrainingRun))
        paths["peft"] = str(trained.checkpoint(*run.content["point"]))
    tokenizer = {}
    if template := run.content.get("chat_template"):
        folder = inputs.tokenizer_folder(run.root, paths["pretrained"], paths.get("revision"), template)
        tokenizer = {"tokenizer": str(folder)}
    return {**paths, **tokenizer, **run.content["model_args"]}


def lora_rank(run: Run) -> int:
    """The rank of the adapter that is evaluated; 0 for a model without one."""
    if (before := next(iter(run.after), None)) is not None:
        return int(before.recipe.config["lora_r"]) if isinstance(before, TrainingRun) else 0
    adapter = model_paths(run).get("peft")
    return inputs.adapter_rank(Path(adapter)) if adapter else 0


def evaluate(run: Run) -> dict[str, Any]:
    """Executes an evaluation run, once; one of an adapter in the process that keeps its base.

    The folder then holds results.json (lm-eval's rates) and samples/TASK.jsonl (each document with its scores).
    RunFailed if lm-eval fails or leaves a task without samples.
    """
    return execute_once(run, lambda: _evaluate(run))


def options(run: Run) -> dict[str, Any]:
    """What lm-eval is told about an evaluation, the adapter aside (the fields of eval.adapters.Base)."""
    content, cards = run.content, int(run.about.get("gpus", 1))
    metadata = {key: content["paths"].get(key, value) for key, value in content["metadata"].items()}
    arguments: dict[str, Any] = {key: value for key, value in model_args(run).items() if key != "peft"}
    if vllm := content.get("backend") == "vllm":
        arguments |= {"seed": content["seed"], "gpu_memory_utilization": memory_share(), "load_format": "safetensors"}
    else:
        arguments["use_safetensors"] = True  # no pickle of the hub
    if cards > 1:
        arguments |= {"tensor_parallel_size": cards} if vllm else {"parallelize": True}
    return {
        **({"backend": "vllm", "lora_rank": engine_rank(lora_rank(run))} if vllm else {}),
        "model_args": arguments,
        **{key: content[key] for key in ("tasks", "batch_size", "seed", "gen_kwargs", "limit")},
        "metadata": metadata,
        **({"execute_code": True} if HUMANEVAL in content["tasks"] else {}),
    }


def command(run: Run, out: Path) -> list[str]:
    """The lm_eval command of an evaluation run; by hand it gives the same likelihoods and greedy answers.

    Sampled answers are drawn anew where the run shared its base model's process (sweeps/run/adapters.py). Arguments
    are JSON, in which a path may hold anything; `out` takes a file's name, for lm-eval would else name a folder by the
    model's path, which may be too long for one.
    """
    told, adapter = options(run), model_args(run).get("peft")
    backend, lora = told.get("backend"), dict[str, Any]()
    if adapter:
        lora = {"lora_local_path": adapter, "max_lora_rank": told["lora_rank"]} if backend else {"peft": adapter}
    return [
        *(vllm_command() if backend else [tool("lm_eval")]),
        *("run", "--model", backend or "hf"),
        *("--model_args", json.dumps({**told["model_args"], **lora})),
        *("--include_path", str(TASKS)),
        *("--tasks", ",".join(told["tasks"])),
        "--apply_chat_template",
        *("--batch_size", str(told["batch_size"])),
        *("--seed", str(told["seed"])),
        *(("--metadata", json.dumps(told["metadata"])) if told["metadata"] else ()),
        *(("--gen_kwargs", json.dumps(told["gen_kwargs"])) if told["gen_kwargs"] else ()),
        *(("--limit", str(told["limit"])) if told["limit"] else ()),
        *(("--confirm_run_unsafe_code",) if told.get("execute_code") else ()),
        *("--output_path", str(out / "lm-eval.json")),
        "--log_samples",
    ]


def _evaluate(run: Run) -> dict[str, Any]:
    paths, metadata = run.content["paths"], run.content["metadata"]
    inputs.check_unchanged({paths[key]: metadata[key] for key in metadata if key in paths})
    raw = run.folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    told = model_args(run)
    model, revision = told["pretrained"], told.get("revision")
    # Data of tasks that are not ours come from the hub, though the model may be local.
    title, log, offline = f"evaluate {run.name}", run.folder / "evaluate.log", inputs.is_local(model)
    offline = offline and not task_configs(run.content["tasks"])[1]
    if "tokenizer" in told:
        inputs.write_tokenizer(Path(told["tokenizer"]), model, revision, run.content["chat_template"])
    vllm, resident = run.content.get("backend") == "vllm", resident_base()
    # Where the batch is to be found a base alone too: lm-eval's own command tries rows of the model's length.
    if run.content["batch_size"] == "auto" or "peft" in told:
        resident.evaluate(title, options(run), told.get("peft"), raw, log, offline)
    else:
        resident.close()  # a GPU may not hold both: torch keeps what its largest batch took
        call(title, command(run, raw), log, offline)
    results = sorted(raw.rglob("*.json"))
    if not results:
        raise RunFailed(f"{title}: lm-eval left no results; see {log}")
    samples = run.folder / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    samples.mkdir()
    for path in raw.rglob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        shutil.move(path, samples / f"{task}.jsonl")
    shutil.move(results[-1], run.folder / "results.json")
    shutil.rmtree(raw)
    left = read_json(run.folder / "results.json")
    for task, count in left.get("n-samples", {}).items():
        path, documents = samples / f"{task}.jsonl", count["effective"]
        lines = path.read_bytes().count(b"\n") if path.is_file() else 0
        if lines < documents or lines % max(1, documents):  # of a full disk lm-eval warns, and ends well; filters recur
            raise RunFailed(f"{title}: {path} has {lines} lines for {documents} documents; is the disk full? See {log}")
    commits = {} if inputs.is_local(model) else {"hub_commits": {model: inputs.hub_commit(model, revision)}}
    engine = {"vllm": vllm_versions()} if vllm else {}
    files = sorted(f"samples/{path.name}" for path in samples.iterdir())
    return {"results": left["results"], "files": files, "command": command(run, Path("OUT"))[1:], **commits, **engine}
