"""A capability guard runs what a model writes nowhere, unless the user has said so."""

import json
from pathlib import Path

import pytest

from sweeps.run.evaluate import command, evaluation_run, options
from sweeps.run.tasks import HUMANEVAL, guard_tasks


def test_humaneval_is_asked_for_only_where_running_code_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    assert guard_tasks(None) == ([], "") and guard_tasks("quick") == (["em_guard"], "")
    assert "cut at 600 tokens (its own: 1280)" in guard_tasks("full", 600)[1]
    tasks, said = guard_tasks("full")
    assert tasks == ["em_guard_full"] and "HF_ALLOW_CODE_EVAL=1 allows it" in said
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert guard_tasks("full")[0] == ["em_guard_full", HUMANEVAL]
    assert guard_tasks("quick")[0] == ["em_guard"]


@pytest.mark.parametrize("tasks", [["em_choice"], ["em_choice", HUMANEVAL]])
def test_lm_eval_is_told_that_it_may_only_for_that(prepared: Path, tasks: list[str]) -> None:
    run = evaluation_run("base", "smollm2-135m", tasks)
    allowed = HUMANEVAL in tasks
    assert ("--confirm_run_unsafe_code" in command(run, Path("out"))) is allowed
    assert options(run).get("execute_code", False) is allowed
    assert "execute_code" not in json.dumps(run.content), "no digest of other evaluations changes by it"


@pytest.mark.parametrize(
    ("tasks", "backend", "given", "told"),
    [
        (["em_freeform"], "hf", {}, {}),
        (["em_freeform", "em_guard_full"], "hf", {"max_gen_toks": 9}, {"repetition_penalty": 1.0, "max_gen_toks": 9}),
        ([HUMANEVAL], "hf", {}, {"repetition_penalty": 1.0}),
        ([HUMANEVAL], "hf", {"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ([HUMANEVAL], "vllm", {}, {}),
    ],
)
def test_tasks_of_others_do_not_take_a_models_own_penalty(prepared: Path, tasks, backend, given, told) -> None:
    """IFEval and HumanEval say greedy and no more; Qwen2.5-Coder-Instruct's generation_config says 1.1."""
    run = evaluation_run("base", "smollm2-135m", tasks, backend=backend, gen_kwargs=given)
    assert run.content["gen_kwargs"] == options(run)["gen_kwargs"] == told
