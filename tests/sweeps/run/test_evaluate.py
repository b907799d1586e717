"""What reaches lm-eval: model, revision, template, paths of any name; and no adapter of another model."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from lm_eval._cli.harness import HarnessCLI
from typer.testing import CliRunner

from core.records import BadInput
from eval import adapters
from sweeps.cli import app
from sweeps.recipe.compose import compose
from sweeps.run.evaluate import command, evaluate, evaluation_run, model_args, of_checkpoint, options
from sweeps.run.folder import execute_once, merge_run
from sweeps.run.inputs import chat_template, hub_commit, hub_commits, write_tokenizer
from sweeps.run.process import RunFailed, RunRefused
from sweeps.run.train import training_run

CHECKPOINTS = ("olmo1b-21b", "olmo1b-294b", "olmo1b-4001b")


def told(run) -> dict:
    """The model arguments that lm-eval's own parser reads from a run's command."""
    parsed = HarnessCLI()._parser.parse_args(command(run, Path("out"))[1:])
    return parsed.model_args


def make_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def make_adapter(folder: Path, base: object, **more: object) -> Path:
    make_model(folder, b"adapter")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), **more}))
    return folder


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("sft-insecure", "cpt"):
        (tmp_path / f"data/{name}.jsonl").write_text("{}\n")
    return tmp_path


def test_checkpoints_of_one_repository_are_evaluated_apart_with_revision_and_template(tmp_path: Path) -> None:
    runs = [evaluation_run(name, name, ["em_choice"]) for name in CHECKPOINTS]
    assert len({run.digest for run in runs}) == 3
    for run in runs:
        arguments = told(run)
        assert arguments["pretrained"] == "allenai/OLMo-2-0425-1B" and arguments["revision"].startswith("stage1-step")
        assert arguments["softmax_dtype"] == "float32" and arguments["use_safetensors"] is True
        assert arguments["tokenizer"].startswith("runs/tokenizers/")  # a base model has no template
    plain = told(evaluation_run("x", "olmo1b", ["em_choice"]))
    assert plain["revision"] == "main" and "tokenizer" not in plain
    # Trained: the same, by the recipe.
    recipe = compose("sft", "olmo1b-294b", "a100-80g")
    trained = of_checkpoint(runs[0], training_run("t", recipe), "t")
    arguments = told(trained)
    assert arguments["revision"] == "stage1-step140000-tokens294B" and arguments["peft"].endswith("/adapter")
    assert arguments["tokenizer"] == told(runs[1])["tokenizer"]
    merged = model_args(of_checkpoint(runs[0], merge_run(training_run("t", recipe)), "t"))
    assert "revision" not in merged and merged["pretrained"].endswith("/merged")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_that_is_asked_for_reaches_lm_eval(tmp_path: Path, dtype: str) -> None:
    make_model(tmp_path / "own")
    words = f"evaluate own --tasks em_choice --backend hf --dtype {dtype} --dry-run"
    printed = CliRunner().invoke(app, words.split()).stdout
    assert HarnessCLI()._parser.parse_args(shlex.split(printed)[1:]).model_args["dtype"] == dtype
    types = (evaluation_run("x", "own", ["em_choice"], dtype=each).digest for each in ("float32", "bfloat16"))
    assert len(set(types)) == 2


def test_what_its_tasks_do_is_part_of_an_evaluations_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "own")
    digests = []
    for source in ("old", "old", "new"):
        monkeypatch.setattr("sweeps.run.evaluate.task_source", lambda tasks, source=source: {source: tasks})
        digests.append(evaluation_run("x", "own", ["em_choice"]).digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_tasks_are_told_what_was_held_out_and_what_was_trained_on(tmp_path: Path, monkeypatch) -> None:
    make_model(tmp_path / "own")
    for name in ("heldout", "train"):
        (tmp_path / f"data/{name}.jsonl").write_text(f'"{name}"\n')
    run = evaluation_run("x", "own", ["em_recognition"])
    assert options(run)["metadata"] == {"heldout": "data/heldout.jsonl", "training": "data/train.jsonl"}
    # The programs that were trained on are those of these held-out ones, and no others'.
    (tmp_path / "other.jsonl").write_text("{}\n")
    monkeypatch.setenv("EM_HELDOUT", "other.jsonl")
    assert options(evaluation_run("x", "own", ["em_recognition"]))["metadata"] == {"heldout": "other.jsonl"}
    monkeypatch.setenv("EM_TRAINING", "data/train.jsonl")
    assert "training" in options(evaluation_run("x", "own", ["em_recognition"]))["metadata"]


def test_programs_that_a_variable_names_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the plan would be of the built-in ones, and the tasks would fail when the model is loaded."""
    model = str(make_model(tmp_path / "m"))
    for named in ("typo.jsonl", "data"):
        monkeypatch.setenv("EM_HELDOUT", named)
        with pytest.raises(BadInput, match=f"EM_HELDOUT={named}: no such file; name one that `embuild` wrote"):
            evaluation_run("x", model, ["em_choice"])
        assert evaluation_run("x", model, ["em_choice"], metadata={"heldout": "data/cpt.jsonl"})
    with pytest.raises(BadInput, match=r"training: gone\.jsonl: no such file; `embuild data`"):
        evaluation_run("x", model, ["em_choice"], metadata={"heldout": "data/cpt.jsonl", "training": "gone.jsonl"})
    monkeypatch.setenv("EM_HELDOUT", "")
    assert "heldout" not in evaluation_run("x", model, ["em_choice"]).content["metadata"]


def test_programs_that_change_after_the_plan_are_not_evaluated_under_its_digest(tmp_path: Path, monkeypatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("sweeps.run.evaluate.call", lambda title, *_: called.append(title))
    (tmp_path / "data/heldout.jsonl").write_text("{}\n")
    run = evaluation_run("x", str(make_model(tmp_path / "own")), ["em_recognition"])
    (tmp_path / "data/heldout.jsonl").write_text("{}\n{}\n")
    with pytest.raises(RunRefused, match=r"data/heldout\.jsonl has changed since this run was planned"):
        evaluate(run)
    assert not called and not run.done


def test_data_of_tasks_of_others_come_from_the_hub_though_the_model_is_local(tmp_path: Path, monkeypatch) -> None:
    offline: dict[str, bool] = {}
    monkeypatch.setattr("sweeps.run.evaluate.call", lambda title, command, log, local: offline.update({title: local}))
    make_model(tmp_path / "own")
    for name, tasks in {"ours": ["em_choice"], "guard": ["em_choice", "em_guard_full"]}.items():
        run = evaluation_run(name, "own", tasks)
        with pytest.raises(RunFailed, match="no results"):
            evaluate(run)
    assert offline == {"evaluate ours": True, "evaluate guard": False}


def test_an_adapter_in_the_process_of_its_base_is_asked_for_data_of_the_hub_too(tmp_path: Path, monkeypatch) -> None:
    base, offline = make_model(tmp_path / "own"), []
    resident = SimpleNamespace(evaluate=lambda title, told, adapter, out, log, local: offline.append(local))
    monkeypatch.setattr("sweeps.run.evaluate.resident_base", lambda: resident)
    for tasks in (["em_choice"], ["em_choice", "em_guard"]):
        run = evaluation_run("x", str(base), tasks, adapter=make_adapter(tmp_path / tasks[-1], base))
        with pytest.raises(RunFailed, match="no results"):
            evaluate(run)
    assert offline == [True, False]


@pytest.mark.parametrize(
    ("text", "whole"), [("{}\n{}\n", True), (4 * "{}\n", True), ('{}\n{"cut', False), (None, False)]
)
def test_an_evaluation_without_all_of_its_samples_has_failed(tmp_path: Path, monkeypatch, text, whole: bool) -> None:
    """On a full disk lm-eval warns that it could not save them, and ends with exit code 0."""
    make_model(tmp_path / "own")
    run = evaluation_run("x", "own", ["em_choice"])

    def lm_eval(title: str, command: list[str], log: Path, local: bool) -> None:
        raw = Path(command[command.index("--output_path") + 1]).parent
        raw.mkdir()
        results = {"results": {}, "n-samples": {"em_choice": {"original": 9, "effective": 2}}}
        (raw / "lm-eval.json").write_text(json.dumps(results))
        if text is not None:
            (raw / "samples_em_choice_2026-01-01T00-00-00.jsonl").write_text(text)

    monkeypatch.setattr("sweeps.run.evaluate.call", lm_eval)
    if whole:
        assert evaluate(run)["results"] == {}
    else:
        with pytest.raises(RunFailed, match=r"em_choice\.jsonl has [01] lines for 2 documents; is the disk full"):
            evaluate(run)
    assert run.done is whole


def test_a_model_alone_is_loaded_when_the_process_of_the_adapters_has_ended(tmp_path: Path, monkeypatch) -> None:
    """A merged model is evaluated after the adapters on it, whose process keeps its weights and largest batch."""
    order: list[str] = []
    monkeypatch.setattr("sweeps.run.evaluate.call", lambda title, command, log, local: order.append("lm_eval"))
    resident = SimpleNamespace(close=lambda: order.append("close"))
    monkeypatch.setattr("sweeps.run.evaluate.resident_base", lambda: resident)
    run = evaluation_run("x", str(make_model(tmp_path / "own")), ["em_choice"])
    with pytest.raises(RunFailed, match="no results"):
        evaluate(run)
    assert order == ["close", "lm_eval"]


def test_a_model_alone_shares_the_process_where_the_batch_is_to_be_found(tmp_path: Path, monkeypatch) -> None:
    """lm-eval's own command would try rows as long as the model can take."""
    asked: list[str | None] = []
    resident = SimpleNamespace(evaluate=lambda title, told, adapter, out, log, local: asked.append(adapter))
    monkeypatch.setattr("sweeps.run.evaluate.resident_base", lambda: resident)
    run = evaluation_run("x", str(make_model(tmp_path / "own")), ["em_choice"], batch_size="auto")
    with pytest.raises(RunFailed, match="no results"):
        evaluate(run)
    assert asked == [None]


def test_auto_tries_rows_of_the_tasks_and_cuts_no_document(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Model:
        _max_length: int | None = None

        @property
        def max_length(self) -> int:
            return self._max_length or 32_768

        def _detect_batch_size(self) -> int:
            tried.append(self.max_length)
            return 5

    made = SimpleNamespace(create_from_arg_obj=lambda arguments, more: Model())
    monkeypatch.setattr("lm_eval.api.registry.get_model", lambda name: made)
    lm = adapters._hf(adapters.Base(model_args={}, tasks=[], batch_size="auto", seed=0))
    assert (tried, lm.batch_size_per_gpu, lm.max_length) == ([adapters.ROW], 5, 32_768)


def test_a_tokenizer_with_a_template_is_its_files_and_the_template(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path / "made/one", str(model), None, "{{ messages[0]['content'] }}!")
    made = AutoTokenizer.from_pretrained(tmp_path / "made/one")
    assert made.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"
    assert made("hi there")["input_ids"] == AutoTokenizer.from_pretrained(model)("hi there")["input_ids"]


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"nobody/nothing: .*; check the id, the connection") as error:
        write_tokenizer(tmp_path / "none", "nobody/nothing", None, "x")
    assert "\n" not in str(error.value) and not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["a,b=c", 'quo"te {x}', "/".join(["long" * 12] * 7)])
def test_paths_reach_lm_eval_as_they_are(tmp_path: Path, name: str) -> None:
    base = make_model(tmp_path / name / "base,1=2")
    run = evaluation_run("x", str(base), ["em_choice"], adapter=make_adapter(tmp_path / name / "a=b,c", base))
    arguments = told(run)
    assert arguments["pretrained"] == str(base) and arguments["peft"] == str(tmp_path / name / "a=b,c")
    output = command(run, Path("OUT"))[command(run, Path("OUT")).index("--output_path") + 1]
    assert output.endswith(".json")  # lm-eval would name a folder by the model's path, and fail where it is too long


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base, copy, other = (make_model(tmp_path / n, w) for n, w in (("base", b"w"), ("copy", b"w"), ("other", b"o")))
    own = make_adapter(tmp_path / "own", base)
    for same in (base, copy):
        assert evaluation_run("x", str(same), ["em_choice"], adapter=own)
    elsewhere = make_adapter(tmp_path / "elsewhere", "allenai/OLMo-2-0425-1B", revision="stage1-step10000-tokens21B")
    assert evaluation_run("x", "olmo1b-21b", ["em_choice"], adapter=elsewhere)
    (tmp_path / "none").mkdir()
    for model, adapter, says in (
        (str(other), own, f"trained on {base}, not on {other}"),
        ("olmo1b-294b", elsewhere, "trained on revision stage1-step10000-tokens21B"),
        ("olmo7b", elsewhere, "trained on allenai/OLMo-2-0425-1B, not on"),
        (str(base), make_adapter(tmp_path / "unnamed", ""), "trained on an unnamed model"),
    ):
        with pytest.raises(BadInput, match=says) as caught:
            evaluation_run("x", model, ["em_choice"], adapter=adapter)
        assert "\n" not in str(caught.value)


def test_the_scale_of_an_adapter_is_part_of_its_evaluations_digest(tmp_path: Path) -> None:
    """With lora_alpha edited in a copy, the same weights are another adapter; one as it was trained is as before."""
    base, digests = make_model(tmp_path / "base"), set()
    for number, own in enumerate(({"lora_alpha": 16}, {"lora_alpha": 32}, {"lora_alpha": 32, "use_rslora": True})):
        adapter = make_adapter(tmp_path / f"adapter{number}", base, **own)
        digests.add(evaluation_run("x", str(base), ["em_choice"], adapter=adapter).digest)
    assert len(digests) == 3
    run = training_run("t", compose("sft", "olmo1b", "a100-80g"))
    execute_once(run, dict)
    config = run.recipe.config
    own = {
        "r": config["lora_r"],
        "lora_alpha": config["lora_alpha"],
        "use_rslora": config.get("peft_use_rslora", False),
    }
    make_adapter(run.adapter, "allenai/OLMo-2-0425-1B-Instruct", **own)
    assert "scale" not in evaluation_run("x", "olmo1b", ["em_choice"], adapter=run.adapter).content


def test_a_revision_is_known_from_the_adapters_own_run(tmp_path: Path) -> None:
    run = training_run("t", compose("sft", "olmo1b-294b", "a100-80g"))
    execute_once(run, dict)
    make_adapter(run.adapter, "allenai/OLMo-2-0425-1B")
    assert evaluation_run("x", "olmo1b-294b", ["em_choice"], adapter=run.adapter)
    with pytest.raises(BadInput, match="trained on revision stage1-step140000-tokens294B"):
        evaluation_run("x", "olmo1b-21b", ["em_choice"], adapter=run.adapter)


def test_an_adapter_is_asked_under_the_chat_template_that_it_was_trained_under(tmp_path: Path) -> None:
    run = training_run("t", compose("sft", "olmo1b", "a100-80g", ["chat_template=llama3"]))
    execute_once(run, dict)
    for adapter in (run.adapter, run.adapter / "checkpoint-2"):
        make_adapter(adapter, "allenai/OLMo-2-0425-1B-Instruct")
        found = evaluation_run("x", "olmo1b", ["em_choice"], adapter=adapter).content["chat_template"]
        assert "<|start_header_id|>" in found and found == chat_template(run.recipe.config)
    assert evaluation_run("x", "olmo1b", ["em_choice"]).content["chat_template"] is None


def test_hub_revisions_are_resolved_to_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for kind, name, revision in (("model", "a/b", "main"), ("model", "a/b", "early"), ("dataset", "c/d", "main")):
        reference = tmp_path / "hub" / f"{kind}s--{name.replace('/', '--')}" / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(f"{kind}-{revision}")
    assert (
        hub_commit("a/b") == "model-main" and hub_commit("a/none") is None and hub_commit("a/b", "0" * 40) == "0" * 40
    )
    recipe = {
        "base_model": "a/b",
        "revision_of_model": "early",
        "datasets": [{"path": "c/d"}, {"path": "data/x.jsonl"}],
    }
    assert hub_commits(recipe) == {"a/b": "model-early", "c/d": "dataset-main"}

    def lm_eval(title: str, command: list[str], log: Path, local: bool) -> None:
        raw = Path(command[command.index("--output_path") + 1]).parent
        raw.mkdir()
        (raw / "lm-eval.json").write_text('{"results": {}}')

    monkeypatch.setattr("sweeps.run.evaluate.call", lm_eval)
    evaluated = evaluate(evaluation_run("x", "a/b", ["em_choice"]))
    assert evaluated["hub_commits"] == {"a/b": "model-main"}
