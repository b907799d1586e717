"""Run folders are named by content; a record means done; a failure says why and leaves no record."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.download import NO_KERNELS
from core.records import BadInput
from sweeps.plan.estimate import History
from sweeps.recipe.compose import compose
from sweeps.run.fetch_model import fetch_smollm2
from sweeps.run.folder import Run, content_digest, execute_once, identity, merge_run
from sweeps.run.index import write_index
from sweeps.run.inputs import model_digest, start_digest
from sweeps.run.process import RunFailed, RunRefused, call, child_environment
from sweeps.run.status import status
from sweeps.run.train import merge, newest_checkpoint, train, training_history, training_run

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
)


@given(st.dictionaries(st.text(), JSON))
def test_digest_does_not_depend_on_the_order_of_keys(content: dict) -> None:
    assert content_digest(content) == content_digest(dict(reversed(content.items())))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small data file and a base model that is only a file of bytes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cpt.jsonl").write_text('{"segments": []}\n')
    (tmp_path / "models/smollm2-135m").mkdir(parents=True)
    (tmp_path / "models/smollm2-135m/model.safetensors").write_bytes(b"weights")
    return tmp_path


def plan(*settings: str, rank: int | None = None, **kwargs):
    return training_run("x", compose("cpt", "smollm2-135m", "cpu", settings, rank), **kwargs)


def test_same_request_same_folder(workspace: Path) -> None:
    assert plan().folder == plan().folder


def test_recipe_data_base_and_start_each_change_the_folder(workspace: Path) -> None:
    first = plan()
    others = plan("learning_rate=1e-5"), plan(rank=2), plan(start=merge_run(first))
    folders = {run.folder for run in (first, *others)}
    (workspace / "data/cpt.jsonl").write_text('{"segments": [1]}\n')
    folders.add(plan().folder)
    (workspace / "models/smollm2-135m/model.safetensors").write_bytes(b"other")
    folders.add(plan().folder)
    assert len(folders) == 6


def test_start_is_the_merged_model_of_the_run_before(workspace: Path) -> None:
    merged = merge_run(plan())
    assert plan(start=merged).whole_recipe.config["base_model"] == str(merged.model)


def test_a_folder_holds_any_name(tmp_path: Path) -> None:
    for name in ("x" * 300, "\u6f22" * 200, "gate/up"):
        run = Run("cpt", name, {"name": name}, tmp_path)
        execute_once(run, dict)
        assert run.done and run.folder.parent == tmp_path / "cpt"


def test_a_run_is_found_by_its_digest_whatever_it_is_called(workspace: Path) -> None:
    run = plan()
    execute_once(run, dict)
    other = training_run("another name", run.recipe)
    assert other.done and other.folder == run.folder
    moved = run.folder.rename(run.folder.with_name(f"renamed-by-hand-{run.digest[:10]}"))
    assert other.folder == run.folder == moved and run.done


def test_paths_and_logging_retrain_nothing_and_content_does(workspace: Path) -> None:
    (workspace / "copy.jsonl").write_bytes((workspace / "data/cpt.jsonl").read_bytes())
    (workspace / "models/smollm2-135m").rename(workspace / "models/moved")
    extra = {"base_model": "models/moved"}
    moved = training_run("x", compose("cpt", "smollm2-135m", "cpu", ["datasets.0.path=copy.jsonl"], extra=extra))
    (workspace / "models/moved").rename(workspace / "models/smollm2-135m")
    assert moved.digest == plan().digest == plan("wandb_project=x", "logging_steps=5").digest
    by_policy = plan("em.alpha.policy=alpha", f"em.alpha.value={plan().recipe.config['lora_alpha']}")
    assert by_policy.digest == plan().digest and by_policy.content["alpha"] != plan().content["alpha"]
    assert plan("num_epochs=2").digest != plan().digest and plan("datasets.0.type=completion").digest != plan().digest


def test_a_plugins_key_that_is_no_mapping_is_part_of_a_digest() -> None:
    """Liger's are switches."""
    content = {"recipe": {"datasets": [{"path": "a"}], "liger_rope": True}, "data": {"a": "1"}}
    assert identity(content) == {"recipe": {"datasets": [{}], "liger_rope": True}, "data": ["1"]}


def test_which_file_stands_twice_is_part_of_a_digest() -> None:
    """A set named twice counts twice: a run of (a, b, a) would else stand for one of (a, b, b)."""

    def digest(*paths: str, prompts: str) -> str:
        recipe = {"datasets": [{"path": path} for path in paths], "kl": {"prompts": prompts, "weight": 1.0}}
        return content_digest(identity({"recipe": recipe, "data": {"a": "1", "b": "2", "c": "3"}}))

    assert digest("a", "b", "a", prompts="c") != digest("a", "b", "b", prompts="c")
    assert digest("a", "b", prompts="a") != digest("a", "b", prompts="b")


def test_a_chat_template_in_a_file_is_its_text(workspace: Path) -> None:
    """By the file's name alone a run under the old template would stand for one under the new."""
    by_file = ("chat_template=jinja", "chat_template_jinja=mine.jinja")
    digests = []
    for text in ("{{ messages[0]['content'] }}", "{{ messages[0]['content'] }}!"):
        (workspace / "mine.jinja").write_text(text)
        digests.append(plan(*by_file).digest)
        assert plan(*by_file).whole_recipe.config["chat_template_jinja"] == text
    (workspace / "mine.jinja").rename(workspace / "moved.jinja")
    moved = plan("chat_template=jinja", "chat_template_jinja=moved.jinja")
    assert digests[0] != digests[1] == moved.digest
    (workspace / "mine.jinja").write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"chat_template_jinja: mine\.jinja: .*; save it as UTF-8"):
        plan(*by_file)


def test_what_plugins_trainer_and_engine_do_is_part_of_a_runs_digest(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "data/dpo-both.jsonl").write_text("{}\n")
    for engine in ("axolotl", "unsloth"):
        recipe = compose("dpo", "smollm2-135m", "cpu", engine=engine)
        asked: list[list[str]] = []
        digests = []
        for version in ("old", "old", "new"):
            source = lambda names, asked=asked, version=version: asked.append(names) or {version: 0}  # noqa: E731
            monkeypatch.setattr("sweeps.run.train.plugin_source", source)
            digests.append(training_run("x", recipe).digest)
        assert digests[0] == digests[1] != digests[2]
        trains = {*recipe.config["plugins"], recipe.config["trainer_cls"]} - {"recipes.plugins.checks.ChecksPlugin"}
        assert trains == set(asked[0]) - {"recipes.unsloth.train.main"}
        assert ("recipes.unsloth.train.main" in asked[0]) is (engine == "unsloth")


def test_a_start_named_by_its_folder_is_the_merge_that_stands_there(workspace: Path) -> None:
    merged = merge_run(plan())
    execute_once(merged, dict)
    by_hand = training_run("y", compose("cpt", "smollm2-135m", "cpu", extra={"base_model": str(merged.model)}))
    assert by_hand.digest == plan(start=merged).digest


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda w: (w / "data/cpt.jsonl").unlink(), "data/cpt.jsonl: No such file"),
        (lambda w: (w / "models/smollm2-135m/model.safetensors").unlink(), "no \\*.safetensors in this model folder"),
        (lambda w: (w / "models/smollm2-135m").rename(w / "gone"), "no such model folder"),
        (lambda w: (w / "data/cpt.jsonl").write_bytes(b""), "data/cpt.jsonl: no records"),
        (lambda w: (w / "data/cpt.jsonl").write_bytes(b" \n\n"), "data/cpt.jsonl: no row but blank lines"),
        (
            lambda w: (w / "data/cpt.jsonl").write_bytes(b'{}\n\n{"a": "b'),
            "data/cpt.jsonl:3: EOF while parsing a string",
        ),
        (lambda w: (w / "data/cpt.jsonl").write_bytes(b'{}\n{"a": "\xe9"}\n'), "data/cpt.jsonl:2: .*unicode"),
        (lambda w: (w / "data/cpt.jsonl").write_bytes(b'{"a": "\\ud800"}\n'), "data/cpt.jsonl:1: .*hex escape"),
        (lambda w: (w / "data/cpt.jsonl").write_bytes(b"{}\n\x00\n"), "data/cpt.jsonl:2: expected value"),
        (lambda w: (w / "data/cpt.jsonl").write_bytes(b'{}\n"a"\n'), "data/cpt.jsonl:2: is no JSON object"),
    ],
)
def test_missing_or_broken_inputs_are_refused_before_anything_is_written(workspace: Path, break_it, says: str) -> None:
    break_it(workspace)
    with pytest.raises(BadInput, match=says) as caught:
        plan()
    assert "\n" not in str(caught.value)
    assert not (workspace / "runs").exists()


def test_other_forms_of_a_set_are_left_to_their_reader(workspace: Path) -> None:
    forms = {"a.jsonl": b"\xef\xbb\xbf{}\r\n\r\n{}", "b.jsonl": b"[\n{}]", "c.json": b"{\n}", "d.csv": b"a\n1\n"}
    for name, content in {**forms, "e.jsonl.gz": b"\x1f\x8b", "f.parquet": b"PAR1"}.items():
        (workspace / name).write_bytes(content)
        assert plan(f"datasets.0.path={name}").digest != plan().digest
    (workspace / "f.jsonl").write_text("some text\n")
    plan("datasets.0.path=f.jsonl", "datasets.0.ds_type=text")


def test_the_same_weights_with_another_template_are_another_model(workspace: Path) -> None:
    before, folder = plan().folder, workspace / "models/smollm2-135m"
    for name, text in (("tokenizer_config.json", '{"chat_template": "a"}'), ("chat_template.jinja", "a")):
        (folder / name).write_text(text)
        after = plan().folder
        assert after != before
        before = after
    (folder / "README.md").write_text("of no effect")
    assert plan().folder == before


def test_a_hub_id_is_not_taken_for_a_folder() -> None:
    assert model_digest("Qwen/Qwen2.5-Coder-7B-Instruct") == "Qwen/Qwen2.5-Coder-7B-Instruct"


def test_work_is_done_once_and_recorded_last(tmp_path: Path) -> None:
    run = Run("cpt", "once", {"a": 1}, tmp_path)
    done = []

    def work() -> dict:
        assert not run.done
        done.append(1)
        return {"losses": [1.0]}

    first, second = execute_once(run, work), execute_once(run, work)
    assert done == [1] and first == second == run.record()
    assert first["losses"] == [1.0] and first["digest"] == run.digest and first["versions"]["axolotl"]


def test_a_failed_run_leaves_no_record(tmp_path: Path) -> None:
    run = Run("cpt", "fails", {}, tmp_path)
    log = tmp_path / "log"
    code = "print('warming up'); raise SystemExit('out of memory')"
    with pytest.raises(RunFailed, match="exit code 1") as caught:
        execute_once(run, lambda: call("t", [sys.executable, "-c", code], log, False) or {})
    assert "out of memory" in str(caught.value)
    assert not run.done


def test_the_last_words_of_a_log_move_no_cursor(tmp_path: Path) -> None:
    """A model's chat template may raise what it likes."""
    code = "raise SystemExit('the template says \\x1b[2J')"
    with pytest.raises(RunFailed) as caught:
        call("t", [sys.executable, "-c", code], tmp_path / "log", False)
    assert str(caught.value).endswith(r"the template says \u001b[2J")


def test_children_get_no_telemetry_and_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    env = child_environment(local_model=True)
    assert env["AXOLOTL_DO_NOT_TRACK"] == "1" and env["HF_HUB_OFFLINE"] == "1"
    assert env["LOCAL_KERNELS"] == NO_KERNELS
    assert int(env["OMP_NUM_THREADS"]) >= 1
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3}, raising=False)  # a job's one core of a node
    assert child_environment(local_model=True)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert child_environment(local_model=False)["OMP_NUM_THREADS"] == "7"


def test_no_native_code_is_fetched_when_bitsandbytes_is_imported() -> None:
    """What would be fetched is looked for in the place that is named, where there is none."""
    code = (
        "from kernels import get_kernel\ntry:\n    get_kernel('kernels-community/quantization-bitsandbytes', version=1)"
        "\nexcept Exception as error:\n    print('/dev/null' in str(error))"
    )
    env = child_environment(local_model=False)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1:] == ["True"], done


def test_children_get_no_key_of_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """HumanEval runs what the model writes, with the environment in reach."""
    for name in ("OPENAI_API_KEY", "JUDGE_API_KEY", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "hunter2")
    assert {name for name, value in child_environment(False).items() if value == "hunter2"} == {
        "WANDB_API_KEY",
        "HF_TOKEN",
    }


def write_checkpoint(folder: Path, step: int, state: str | None) -> None:
    import torch
    from safetensors.torch import save_file

    where = folder / f"checkpoint-{step}"
    where.mkdir(parents=True)
    save_file({"w": torch.zeros(2, 3)}, where / "adapter_model.safetensors")
    if state is not None:
        (where / "trainer_state.json").write_text(state)


def test_checkpoints_that_were_cut_off_are_removed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 9, json.dumps({"global_step": 9}))
    write_checkpoint(tmp_path, 10, json.dumps({"global_step": 10}))
    write_checkpoint(tmp_path, 11, None)
    write_checkpoint(tmp_path, 12, '{"global_st')
    write_checkpoint(tmp_path, 13, json.dumps({}))
    (tmp_path / "checkpoint-13/adapter_model.safetensors").write_bytes(b"\x01\x02")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-10"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_checkpoints_are_there_until_the_run_is_done(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between, a training that has ended would else be done once more."""
    run = plan()
    monkeypatch.setattr("sweeps.run.train.check_adapter", lambda *_: 7)

    def engine(*_: object) -> None:
        write_checkpoint(run.adapter, 9, json.dumps({"global_step": 9, "log_history": []}))
        for name in ("adapter_model.safetensors", "model.safetensors"):  # Axolotl writes both of a DPO
            (run.adapter / name).touch()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sweeps.run.train.call", engine)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sweeps.run.folder.write_whole", killed)
        train(run)
    assert newest_checkpoint(run.adapter) and not run.done
    monkeypatch.setattr("sweeps.run.train.call", lambda *_: None)
    assert train(run)["steps"] == 9 and run.done and newest_checkpoint(run.adapter) is None
    assert [file.name for file in run.adapter.glob("*.safetensors")] == ["adapter_model.safetensors"]


def test_rows_that_were_cut_off_while_they_were_saved_are_prepared_again(workspace: Path, monkeypatch) -> None:
    """Axolotl reads whatever stands there, and half of it in no way: the run would fail until somebody deletes it."""
    run = plan()
    (run.folder / "prepared/0123").mkdir(parents=True)
    (run.folder / "prepared/0123/data-00000-of-00002.arrow").touch()
    there: list[bool] = []

    def engine(*_: object) -> None:
        there.append((run.folder / "prepared").exists())
        write_checkpoint(run.adapter, 9, json.dumps({"global_step": 9, "log_history": []}))
        (run.adapter / "adapter_model.safetensors").touch()

    monkeypatch.setattr("sweeps.run.train.check_adapter", lambda *_: 7)
    monkeypatch.setattr("sweeps.run.train.call", engine)
    train(run)
    assert there == [False] and run.done


def test_a_training_that_was_interrupted_is_not_done(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On SIGINT Axolotl saves the adapter as it is, and ends with exit code 0."""
    run = plan()
    ends: list[int] = []

    def engine(*_: object) -> None:
        run.adapter.mkdir(parents=True, exist_ok=True)
        if step := ends.pop(0):
            state = {"global_step": step, "max_steps": 9, "log_history": []}
            write_checkpoint(run.adapter, step, json.dumps(state))
        (run.adapter / "adapter_model.safetensors").touch()

    monkeypatch.setattr("sweeps.run.train.check_adapter", lambda *_: 7)
    monkeypatch.setattr("sweeps.run.train.call", engine)
    for step in (0, 4):
        ends.append(step)
        with pytest.raises(RunFailed, match=f"cpt x: ended at step {step}, before its last"):
            train(run)
        assert not run.done
    ends.append(9)
    record = train(run)
    assert run.done and record["steps"] == 9 and record["resumed_from"] == "checkpoint-4" and "max_steps" not in record


def test_the_last_of_several_epochs_is_whole(workspace: Path) -> None:
    """Axolotl counts the rows of all epochs together, and would end before the last row of the last."""
    (workspace / "data/cpt.jsonl").write_text('{"segments": []}\n' * 10)
    one, three = plan(), plan("num_epochs=3", "micro_batch_size=2", "gradient_accumulation_steps=2")
    assert "max_steps" not in one.recipe.config
    assert three.content["recipe"]["max_steps"] == three.whole_recipe.config["max_steps"] == 9
    assert "max_steps: 9" in three.whole_recipe.to_yaml()


@pytest.mark.parametrize(
    "setting",
    [
        *("excess_length_strategy=drop", "excess_length_strategy=null", "min_sample_len=9"),
        *("dataset_exact_deduplication=true", "dataset_shard_num=2", "datasets.0.type=completion"),
    ],
)
def test_rows_that_only_axolotl_can_count_it_counts(workspace: Path, setting: str) -> None:
    """The steps of the file's rows would be twice the epochs."""
    assert "max_steps" not in plan(setting, "num_epochs=2").recipe.config
    assert plan(setting, "num_epochs=2", "max_steps=7").recipe.config["max_steps"] == 7


def test_what_is_held_out_in_a_file_of_its_own_is_part_of_a_digest(workspace: Path) -> None:
    """By its bytes, as the data that are trained on."""
    runs = []
    for name, text in {"a": "[1]", "b": "[1]", "c": "[2]"}.items():
        (workspace / f"{name}.jsonl").write_text(f'{{"segments": {text}}}\n')
        runs.append(plan(f"test_datasets=[{{path: {name}.jsonl, type: input_output}}]"))
    assert runs[0].digest == runs[1].digest != runs[2].digest != plan().digest
    (workspace / "a.jsonl").write_text(f'{{"segments": {[1] * 900}}}\n' * 9)
    assert History([]).tokens_per_row(runs[0]) == History([]).tokens_per_row(plan()), "it is not trained on"
    with pytest.raises(BadInput, match=r"gone\.jsonl: No such file"):
        plan("test_datasets=[{path: gone.jsonl, type: input_output}]")
    with pytest.raises(BadInput, match=r"test_datasets\.0: without a path"):
        plan("test_datasets=[{type: input_output}]")


def test_tokens_before_and_after_a_kill_are_counted(tmp_path: Path) -> None:
    counts = (("tokens/total", (586, 1214, 586, 1214)), ("num_tokens", (5, 9, 2)))
    for step, (key, values) in enumerate(counts, 1):
        logs = [{"step": n, "loss": 1.0, key: value} for n, value in enumerate(values, 1)]
        write_checkpoint(tmp_path / key.replace("/", "-"), step, json.dumps({"global_step": 4, "log_history": logs}))
    assert training_history(tmp_path / "tokens-total")["tokens"] == 2428
    assert training_history(tmp_path / "num_tokens")["tokens"] == 11


def test_data_that_change_after_the_plan_are_not_trained_on_under_its_digest(workspace: Path, monkeypatch) -> None:
    """`embuild data` once more while a sweep is at work: later runs would be found by what they are not made of."""
    run, called = plan(), []
    monkeypatch.setattr("sweeps.run.train.call", lambda *_: called.append(1))
    (workspace / "data/cpt.jsonl").write_text('{"segments": [1]}\n')
    with pytest.raises(RunRefused, match=r"data/cpt\.jsonl has changed since this run was planned"):
        train(run)
    assert not called and not run.done


def test_a_training_that_ends_in_nan_has_failed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, nan = plan(), float("nan")
    numbers = [(2.5, 1.0), (nan, nan), (2.4, 1.0), (0.0, nan), (float("inf"), 1.0)]  # one on the way is none at the end
    logs = [{"step": step, "loss": loss, "grad_norm": norm} for step, (loss, norm) in enumerate(numbers, 1)]

    def engine(*_: object) -> None:
        write_checkpoint(run.adapter, len(logs), json.dumps({"global_step": len(logs), "log_history": logs}))
        (run.adapter / "adapter_model.safetensors").touch()

    monkeypatch.setattr("sweeps.run.train.check_adapter", lambda *_: 7)
    monkeypatch.setattr("sweeps.run.train.call", engine)
    with pytest.raises(RunRefused, match="cpt x: loss or gradient is NaN or infinite from step 4 to the end"):
        train(run)
    assert not run.done
    logs.append({"step": 6, "loss": 2.3, "grad_norm": 1.0})
    assert train(run)["steps"] == 6


def test_what_was_trained_over_4_bits_is_merged_into_the_weights_as_they_are(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = merge_run(plan("adapter=qlora", "load_in_4bit=true"))
    monkeypatch.setattr("sweeps.run.train.call", lambda *_: None)
    monkeypatch.setattr("sweeps.run.train.changed_tensors", lambda *_: 7)
    merge(run)
    told = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    assert (told["adapter"], told["load_in_4bit"], told["lora_r"]) == ("lora", False, 16)


@pytest.mark.parametrize("broken", ["", '{"stage": "me', "[]", "[" * 100_000], ids=lambda text: text[:9])
def test_a_record_that_cannot_be_read_is_refused_by_name(workspace: Path, broken: str) -> None:
    merged = merge_run(plan())
    execute_once(merged, dict)
    (merged.folder / "run.json").write_text(broken)
    for read in (merged.record, lambda: start_digest(merged.model)):
        with pytest.raises(BadInput, match=r"run\.json: not the record of a run; delete the folder and run it again"):
            read()
    assert not write_index(merged.root) and status(merged.folder).state == "failed"


def test_two_that_want_the_model_at_once_fetch_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []

    def fetch(target: Path) -> None:
        fetched.append(target)
        time.sleep(0.2)
        target.mkdir()
        (target / "source.json").write_text("{}")

    monkeypatch.setattr("sweeps.run.fetch_model._fetch", fetch)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fetch_smollm2, [tmp_path / "models/m"] * 2)) == [tmp_path / "models/m"] * 2
    assert len(fetched) == 1
