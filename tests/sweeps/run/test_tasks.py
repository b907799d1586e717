"""A capability guard runs what a model writes nowhere, unless the user has said so."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from core.records import BadInput
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


@pytest.mark.parametrize(
    ("backend", "given", "says"),
    [
        ("hf", {"presence_penalty": 0.1}, "presence_penalty: no setting for hf"),
        ("vllm", {"no_repeat_ngram_size": 3}, "no_repeat_ngram_size: no setting for vllm"),
        ("hf", {"temperature": 2}, "temperature=2: give a number of 0 or more, as 0.7 or 2.0"),
        ("hf", {"top_k": -1}, "top_k=-1: give a whole number"),
        ("hf", {"temperature": 0}, "the tasks sample; do_sample: false is greedy"),
        ("hf", {"temperature": 0.0, "do_sample": False, "no_repeat_ngram_size": 3, "top_p": 1, "until": "x"}, ""),
        ("vllm", {"temperature": 0, "top_k": -1, "presence_penalty": 0.1, "min_tokens": 4, "top_p": 0.9}, ""),
    ],
)
def test_settings_of_sampling_that_the_backend_lacks_are_refused_when_planned(prepared, backend, given, says) -> None:
    with pytest.raises(BadInput, match=says) if says else nullcontext():
        evaluation_run("base", "smollm2-135m", ["em_freeform"], backend=backend, gen_kwargs=given)
