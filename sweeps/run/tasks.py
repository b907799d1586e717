"""The tasks of eval/tasks as an evaluation's digest needs them: the files of those that are named, by what they say."""

import json
import os
import re
from collections.abc import Sequence
from fnmatch import filter as matching
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from core.records import BadInput, file_digest
from sweeps.run.source import definitions, definitions_behind

TASKS = Path(str(resources.files("eval"))) / "tasks"


GUARDS = {"quick": "em_guard", "full": "em_guard_full"}
HUMANEVAL = "humaneval_instruct"
IFEVAL_TOKENS = 1280


def guard_tasks(guard: str | None, longest: int | None = None) -> tuple[list[str], str]:
    """The tasks of a capability guard, and what is to be said of it; none for None.

    HumanEval runs what a model writes: it belongs to the full guard where the user has allowed that, by the variable
    that lm-eval's own metric asks for. `longest` is the evaluation's max_gen_toks, which lm-eval puts in place of every
    task's own. BadInput for an unknown guard.
    """
    if guard is None:
        return [], ""
    if guard not in GUARDS:
        raise BadInput(f"--guard {guard}: give {' or '.join(GUARDS)}")
    if guard != "full":
        return [GUARDS[guard]], ""
    cut = f"; IFEval's answers are cut at {longest} tokens (its own: {IFEVAL_TOKENS})" if longest else ""
    if os.environ.get("HF_ALLOW_CODE_EVAL") == "1":
        return [GUARDS[guard], HUMANEVAL], f"HumanEval runs what the model writes, as HF_ALLOW_CODE_EVAL=1 allows{cut}"
    return [GUARDS[guard]], f"without HumanEval, which runs what the model writes: HF_ALLOW_CODE_EVAL=1 allows it{cut}"


class _Loader(yaml.SafeLoader):
    """Reads `!function functions.NAME` as text."""


_Loader.add_multi_constructor("!", lambda loader, tag, node: f"!{tag} {loader.construct_scalar(node)}")


def task_configs(tasks: Sequence[str], includes: bool = True) -> tuple[dict[str, Any], set[str]]:
    """(configurations by file, names that are not ours) of tasks and groups, members and includes among them."""
    files = {path.stem: path for path in sorted(TASKS.rglob("*.yaml"))}
    configs: dict[str, Any] = {}
    others: set[str] = set()
    todo = list(tasks)
    while todo:
        name = todo.pop()
        found = matching(files, name)
        others |= set() if found else {name}
        for own in sorted(set(found) - configs.keys()):
            configs[own] = config = yaml.load(files[own].read_text(encoding="utf-8"), _Loader)
            members = config["task"] if isinstance(config.get("task"), list) else []
            todo += [member["task"] if isinstance(member, dict) else member for member in members]
            todo += [Path(config["include"]).stem] if includes and "include" in config else []
    return configs, others


def check_sampled(option: str, tasks: Sequence[str]) -> None:
    """Refuses an option of sampled answers that no task takes up; tasks of others may."""
    configs, others = task_configs(tasks)
    taken = {name for name, config in configs.items() if config.get("output_type") == "generate_until"}
    if option == "--questions":
        taken = {"em_freeform", "em_freeform_base"} & task_configs(tasks, includes=False)[0].keys()
    if not taken and not others:
        raise BadInput(f"{option}: none of {', '.join(tasks)} takes it up; add em_freeform, or leave it out")


def task_source(tasks: Sequence[str]) -> dict[str, Any]:
    """What decides the documents and scores of tasks: their configuration, the functions and the data behind them."""
    configs, _ = task_configs(tasks)
    behind: dict[str, Any] = {}
    files = list(TASKS.rglob("*.py"))
    for name in set(re.findall(r"!function functions\.(\w+)", json.dumps(configs))):
        for file in files:
            behind |= definitions_behind(file, [name] if name in definitions(file) else [])
    text = str(behind)
    data = {path.name: file_digest(path) for path in TASKS.rglob("*.jsonl") if f"value='{path.name}'" in text}
    return {"configs": configs, "functions": behind, "data": data}
