"""The executor with stand-in work in real processes: order, places, failures, two at once, signals, kills."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from core.records import BadInput
from sweeps.cli import app
from sweeps.run import train
from sweeps.run.adapters import resident_base
from sweeps.run.executor import execute, in_place, launch, none_free, places
from sweeps.run.folder import Run, check_output, execute_once, saved_checkpoints
from sweeps.run.index import write_index
from sweeps.run.process import SHARE, SLOT, RunFailed, RunHeld, call, end, spawn, stopping
from sweeps.run.status import all_statuses, progress

SCRIPT = Path(__file__).with_name("stand_in.py")
NAMES = ["cpt", *(f"{kind}dpo{number}" for kind in ("", "eval-") for number in range(3))]
"""In the order of work: evaluations come last."""


def begin(root: Path, seconds: float, *more: str, **how) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, SCRIPT, root, str(seconds), *more], stderr=subprocess.PIPE, text=True, **how
    )


def logged(root: Path) -> list[str]:
    path = root / "log"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def done(root: Path) -> set[str]:
    return {json.loads(path.read_text())["name"] for path in root.glob("*/*/run.json")}


def wait_for(what, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def chain(*names: str, root: Path) -> list[Run]:
    runs: list[Run] = []
    for name in names:
        runs.append(Run("t", name, {"name": name}, root, (runs[-1],) if runs else ()))
    return runs


def test_a_failure_is_tried_again_and_costs_its_dependants_alone(tmp_path: Path) -> None:
    (bad, child, grandchild), (good, other) = (
        chain("bad", "child", "grandchild", root=tmp_path),
        chain("good", "other", root=tmp_path),
    )
    tried: list[str] = []

    def do(run: Run) -> None:
        tried.append(run.name)
        if run.name == "bad" or tried.count("good") == 1 == tried.count(run.name):
            raise RunFailed(f"{run.name}: last words")
        execute_once(run, dict)

    runs = {run.digest: run for run in (bad, child, grandchild, good, other)}
    assert {digest: str(why) for digest, why in launch(runs, do).items()} == {bad.digest: "bad: last words"}
    assert Counter(tried) == {"bad": 2, "good": 2, "other": 1}
    assert not child.folder.exists() and other.done
    assert (bad.folder / "failed.txt").read_text() == "bad: last words\n"
    states = {row.folder: row.state for row in all_statuses(tmp_path)[0]}
    assert states == {bad.folder: "failed", good.folder: "done", other.folder: "done"}


def test_what_refuses_itself_is_one_line_and_not_tried_again(tmp_path: Path) -> None:
    (run,) = chain("dpo", root=tmp_path)
    code = "print('x' * 9000, 'refused: in passing'); raise SystemExit('refused: data/x.jsonl, row a7: not whole')"
    tried = []

    def do(run: Run) -> None:
        tried.append(run)
        execute_once(run, lambda: call("dpo x", [sys.executable, "-c", code], run.folder / "train.log", False) or {})

    assert [str(why) for why in launch({run.digest: run}, do).values()] == ["dpo x: data/x.jsonl, row a7: not whole"]
    assert len(tried) == 1 and (run.folder / "failed.txt").read_text().count("\n") == 1


def test_a_fault_of_ours_costs_one_run_too(tmp_path: Path) -> None:
    runs = {run.digest: run for name in ("a", "b") for run in chain(name, root=tmp_path)}

    def do(run: Run) -> None:
        if run.name == "a":
            raise ZeroDivisionError("a fault")
        execute_once(run, dict)

    assert [str(why) for why in launch(runs, do).values()] == ["a fault"]
    assert [run.done for run in runs.values()] == [False, True]


def test_what_cannot_be_noted_costs_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk neither the reason nor the index can be written; whoever is at work goes on."""
    runs = {run.digest: run for name in ("bad", "good", "other") for run in chain(name, root=tmp_path)}
    ended = threading.Event()

    def full(*_: object) -> None:
        ended.set()
        raise BadInput("no space")

    def do(run: Run) -> None:
        if run.name == "bad":
            raise RunFailed("no space")
        assert ended.wait(20)
        execute_once(run, dict)

    monkeypatch.setattr("sweeps.run.executor.write_whole", full)
    assert len(launch(runs, do, [{}, {}], on_success=full)) == 1
    assert [run.done for run in runs.values()] == [False, True, True]


def test_a_damaged_record_of_another_process_costs_its_own_runs_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sweeps.run.executor.LOOK_AGAIN", 0.01)
    runs = {run.digest: run for run in (*chain("held", "after", root=tmp_path), *chain("other", root=tmp_path))}
    held, after, other = runs.values()

    def do(run: Run) -> None:
        if run.name == "other":
            time.sleep(0.5)
        elif run.name == "held":
            held.folder.mkdir(parents=True, exist_ok=True)
            (held.folder / "run.json").write_text("")
            raise RunHeld("another process is at work on it")
        execute_once(run, dict)

    reasons = launch(runs, do, [{}, {}])
    assert list(reasons) == [held.digest] and "not the record of a run" in str(reasons[held.digest])
    assert other.done and not after.done


def test_what_is_awaited_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweeps.run.executor.LOOK_AGAIN", 0.01)
    (run,) = chain("a", root=tmp_path)
    tried: list[Run] = []

    def do(run: Run) -> None:
        tried.append(run)
        if len(tried) < 3:
            raise RunHeld(f"{run.folder}: another process is at work on it")
        execute_once(run, dict)

    assert launch({run.digest: run}, do) == {} and run.done
    assert capsys.readouterr().err.count("another process is at work on it; awaited") == 1


def test_as_many_at_once_as_there_are_places_each_with_its_own_gpu(tmp_path: Path) -> None:
    runs = {run.digest: run for name in "abcdef" for run in chain(name, root=tmp_path)}
    barrier, seen, lock = threading.Barrier(3, timeout=20), [], threading.Lock()

    def do(run: Run) -> None:
        barrier.wait()  # breaks unless three are at work at once
        with lock:
            seen.append((SLOT.get() or {})["CUDA_VISIBLE_DEVICES"])
        barrier.wait()

    assert launch(runs, do, [{"CUDA_VISIBLE_DEVICES": str(n)} for n in range(3)]) == {}
    assert sorted(seen) == ["0", "0", "1", "1", "2", "2"]


def test_a_place_without_work_keeps_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is free: a training of another `emsweep` would not fit beside an engine that only waits."""
    closed = threading.Event()
    monkeypatch.setattr("sweeps.run.adapters._BASES", {})
    monkeypatch.setattr("sweeps.run.adapters.ResidentBase.close", lambda base: closed.set())
    runs = {run.digest: run for name in ("evaluation", "training") for run in chain(name, root=tmp_path)}

    def do(run: Run) -> None:
        if run.name == "evaluation":
            resident_base()
        else:
            assert closed.wait(20)
        execute_once(run, dict)

    assert launch(runs, do, [{"CUDA_VISIBLE_DEVICES": number} for number in "01"]) == {}
    assert all(run.done for run in runs.values())


def visible(slots: list[dict[str, str]]) -> list[str]:
    return [slot["CUDA_VISIBLE_DEVICES"] for slot in slots]


def test_places_are_the_gpus_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert places("cpu") == [{}]
    assert visible(places("a100-80g")) == ["2", "5"]
    assert visible(places("a100-80g", gpus=2)) == ["2,5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-0a,MIG-0b")
    assert visible(places("a100-80g")) == ["MIG-0a", "MIG-0b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert places("a100-80g") == [{}]


A100, RTX4090 = ("NVIDIA A100-SXM4-80GB", 81920), ("NVIDIA GeForce RTX 4090", 24564)


@pytest.fixture
def four_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nvidia-smi: three A100, the second at work and the third with a screen, and a 4090."""
    used = {0: 3, 1: 41_000, 2: 700, 3: 3}
    cards = [A100, A100, A100, RTX4090]
    rows = [f"{n}, GPU-{n}f3a, {name}, {mib}, {used[n]}" for n, (name, mib) in enumerate(cards)]
    script = tmp_path / "bin/nvidia-smi"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(rows) + "\nEND\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "runs"


def test_free_cards_of_the_profiles_kind_are_places(four_cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible(places("a100-80g", root=four_cards)) == ["0", "2"]
    assert visible(places("rtx4090", root=four_cards)) == ["3"]
    assert visible(places("rtx5090", root=four_cards)) == ["0", "2"]  # none is here: what has at least its memory
    assert visible(places("a100-80g", gpus=2, root=four_cards)) == ["0,2"]
    assert places("a100-80g", gpus=4, root=four_cards) == [] == places("h200-141g", root=four_cards)
    assert "1 NVIDIA A100-SXM4-80GB (40 GiB in use)" in none_free("h200-141g", 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")  # the user's word: the busy one too, the other kind not
    assert visible(places("a100-80g", root=four_cards)) == ["1"]


def test_one_stage_is_trained_in_sight_of_one_free_card(
    four_cards: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def do(run: Run) -> dict[str, object]:
        seen.append((SLOT.get() or {})["CUDA_VISIBLE_DEVICES"])
        return {}

    monkeypatch.setattr(train, "_train", do)
    command = ["train", "dpo", "--hardware", "a100-80g", "--start", str(prepared / "models/smollm2-135m")]
    for gpus in ("1", "2"):
        done = CliRunner().invoke(app, [*command, "--gpus", gpus])
        assert done.exit_code == 0, done.exception
    assert seen == ["0", "0,2"]
    refused = CliRunner().invoke(app, [*command, "--gpus", "4"]).exception
    assert isinstance(refused, BadInput) and "no 4 GPUs of the kind a100-80g free" in str(refused)


def test_an_evaluation_by_hand_takes_the_place_of_a_cpu(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []

    def do(run: Run) -> None:
        (place,) = run.root.glob(".place-*-cpu.lock")
        with place.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(True)

    monkeypatch.setattr("sweeps.cli.execute", do)
    monkeypatch.setattr("sweeps.cli.check_runs", lambda *_: None)
    monkeypatch.setattr("sweeps.cli.gpu_here", lambda: False)
    done = CliRunner().invoke(app, ["evaluate", "smollm2-135m", "--tasks", "em_choice"])
    assert done.exit_code == 0 and held == [True], done.exception


def test_a_card_at_work_for_this_folder_is_awaited(four_cards: Path) -> None:
    taken = threading.Event()
    end = threading.Event()
    (run,) = chain("orphan", root=four_cards)

    def do(run: Run) -> None:
        taken.set()
        assert end.wait(20)

    slot = {"CUDA_VISIBLE_DEVICES": "1", SHARE: "1/2"}
    work = threading.Thread(target=launch, args=({run.digest: run}, in_place(do, four_cards), [slot]))
    work.start()
    assert taken.wait(20)
    assert visible(places("a100-80g", root=four_cards)) == ["0", "1", "2"]
    end.set()
    work.join()
    assert visible(places("a100-80g", root=four_cards)) == ["0", "2"]


def test_runs_that_share_a_card_have_places_of_their_own(four_cards: Path) -> None:
    slots = places("a100-80g", per_gpu=2, root=four_cards)
    assert [(slot["CUDA_VISIBLE_DEVICES"], slot[SHARE]) for slot in slots] == [
        *(("0", "0/2"), ("2", "0/2"), ("0", "1/2"), ("2", "1/2")),
    ]
    seen: list[str] = []
    barrier = threading.Barrier(4, timeout=20)

    def do(run: Run) -> None:
        barrier.wait()  # breaks unless four are at work at once
        path = run.folder / "seen"
        code = f"import os; open({str(path)!r}, 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])"
        call(run.name, [sys.executable, "-c", code], run.folder / "log", False)
        seen.append(path.read_text())

    runs = {run.digest: run for name in "abcd" for run in chain(name, root=four_cards)}
    assert launch(runs, in_place(do, four_cards), slots) == {}
    assert sorted(seen) == ["0", "0", "2", "2"]


@pytest.mark.parametrize(
    ("there", "comes", "free"),
    [
        ("0/1", "1/2", False),
        ("1/2", "0/1", False),
        ("1/2", "0/2", True),
        ("0/4", "1/2", True),
        ("1/4", "0/2", False),
        ("2/3", "7/8", False),
    ],
)
def test_a_card_is_not_shared_out_twice(tmp_path: Path, there: str, comes: str, free: bool) -> None:
    """Two sweeps in one folder need not have the same --per-gpu."""
    first, second = (chain(name, root=tmp_path)[0] for name in "ab")
    found: list[bool] = []

    def attempt() -> None:
        SLOT.set({"CUDA_VISIBLE_DEVICES": "0", SHARE: comes})
        try:
            in_place(lambda run: found.append(True), tmp_path)(second)
        except RunHeld:
            found.append(False)

    def do(run: Run) -> None:
        other = threading.Thread(target=attempt)
        other.start()
        other.join()

    slot = {"CUDA_VISIBLE_DEVICES": "0", **({SHARE: there} if there != "0/1" else {})}
    assert launch({first.digest: first}, in_place(do, tmp_path), [slot]) == {}
    assert found == [free]


def test_two_at_once_on_one_folder_share_the_work(tmp_path: Path) -> None:
    both = [begin(tmp_path, 0.3), begin(tmp_path, 0.3)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert Counter(logged(tmp_path)) == dict.fromkeys(NAMES, 1)
    assert done(tmp_path) == set(NAMES)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_too_and_the_rest_is_done_later(tmp_path: Path, number: signal.Signals) -> None:
    process = begin(tmp_path, 30, start_new_session=True)
    wait_for(lambda: list(tmp_path.glob("cpt/*/train.log")))
    time.sleep(0.3)
    (child,) = children(process.pid)
    for _ in range(3):  # to the whole group, as a terminal and `timeout` do
        os.killpg(process.pid, number)
    assert process.wait(20) != 0
    assert not Path(f"/proc/{child}").exists() and not done(tmp_path) and not list(tmp_path.glob("*/*/failed.txt"))
    assert begin(tmp_path, 0).wait(60) == 0
    assert logged(tmp_path) == NAMES


def children(pid: int) -> list[int]:
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def test_an_orphan_of_a_killed_process_is_awaited(tmp_path: Path) -> None:
    process = begin(tmp_path, 3)
    wait_for(lambda: children(process.pid))
    process.kill()
    process.wait()
    (folder,) = tmp_path.glob("cpt/*")
    assert [row.state for row in all_statuses(tmp_path)[0]] == ["running"]
    assert begin(tmp_path, 0).wait(60) == 0
    # The orphan had ended when its run was begun again: never two at work in one folder.
    assert logged(tmp_path) == ["cpt", *NAMES] and (folder / "run.json").exists()


def at_work(root: Path) -> list[tuple[float, float]]:
    """When each process was at work, in order."""
    return sorted(tuple(map(float, line.split())) for line in (root / "log.times").read_text().splitlines())


def test_an_orphan_keeps_its_place(tmp_path: Path) -> None:
    assert begin(tmp_path, 0, "dpo0").wait(60) == 1  # all is done but dpo0 and its evaluation
    for path in tmp_path.glob("evaluate/*/run.json"):
        path.unlink()
    (tmp_path / "log.times").unlink()
    process = begin(tmp_path, 2)
    wait_for(lambda: children(process.pid))
    process.kill()
    process.wait()
    assert begin(tmp_path, 0.2).wait(60) == 0
    times = at_work(tmp_path)
    assert len(times) == 5 and all(end <= began for (_, end), (began, _) in pairwise(times))


def test_killed_at_random_moments_it_ends_with_the_same_table_and_repeats_nothing(tmp_path: Path) -> None:
    moments = random.Random(6)
    for _ in range(5):
        process = begin(tmp_path, 0.4, start_new_session=True)
        time.sleep(moments.uniform(0.5, 1.5))
        finished = done(tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/run.json")}
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert finished <= done(tmp_path)
        assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert begin(tmp_path, 0).wait(60) == 0
    assert done(tmp_path) == set(NAMES)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_a_failed_run_is_named_with_its_last_lines(tmp_path: Path) -> None:
    process = begin(tmp_path, 0, "dpo1")
    _, words = process.communicate(timeout=60)
    assert process.returncode == 1 and words.count("dpo1 ended with exit code 1; its log is") == 2
    assert done(tmp_path) == set(NAMES) - {"dpo1", "eval-dpo1"}
    states = {row.folder.name.rpartition("-")[0]: row.state for row in all_statuses(tmp_path)[0]}
    assert states["dpo1"] == "failed" and "eval-dpo1" not in states


def test_progress_is_read_from_the_end_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(
        "x\n" * 5000
        + " 95%|#| 23/24 [02:19<00:06,  6.00s/it]{'loss': '0.6878', 'grad_norm': '0.1', 'num_tokens': '3.68e+04'}\n"
    )
    seen = progress(tmp_path, "running")
    assert (seen.step, seen.steps, seen.loss, seen.seconds_left) == (23, 24, 0.6878, 6.0)
    assert seen.tokens_per_second == pytest.approx(36800 / 23 / 6)
    assert progress(tmp_path / "nowhere", "waiting").step is None


@pytest.mark.parametrize(
    "cut", ["{'loss': '6.8e-", "{'loss': '0.69', 'num_tokens': '3.68e+\r 9%|#| 3/24 [02:19<00:06,  6.00s/it]"]
)
def test_a_log_may_end_in_the_midst_of_a_number(tmp_path: Path, cut: str) -> None:
    line = "{'loss': '0.6878', 'num_tokens': '3.68e+04'}\n"
    (tmp_path / "train.log").write_text(f" 8%|#| 2/24 [02:19<00:06,  6.00s/it]{line}{cut}")
    assert progress(tmp_path, "running").loss in (0.6878, 0.69)


def test_a_copy_of_a_checkpoint_is_none(tmp_path: Path) -> None:
    (run,) = chain("a", root=tmp_path)
    execute_once(run, dict)
    (run.folder / "run.json").unlink()
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-10 (copy)", "checkpoint-best"):
        (run.folder / "adapter" / name).mkdir(parents=True)
    (row,) = all_statuses(tmp_path)[0]
    assert (row.state, row.step) == ("waiting", 10)
    assert sorted(saved_checkpoints(run.folder / "adapter")) == [9, 10]


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_pipe, _folder, lambda path: path.write_text("{")])
def test_a_damaged_record_is_not_awaited_nor_done_anew(tmp_path: Path, damage) -> None:
    """A pipe is waited for, for ever; and in place of a folder no record can be written when the work is done."""
    (run,) = chain("a", root=tmp_path)
    execute_once(run, dict)
    damage(run.folder / "run.json")
    assert [row.state for row in all_statuses(tmp_path)[0]] == ["failed"]
    with pytest.raises(BadInput, match=r"run\.json: not the record of a run"):
        execute_once(run, pytest.fail)


@pytest.mark.parametrize("files", [["samples/em_margin.jsonl"], []])
def test_an_evaluation_that_lost_its_samples_is_not_done(tmp_path: Path, files: list[str]) -> None:
    """Of records of before, which have no digests, by their results."""
    run = Run("evaluate", "e", {}, tmp_path)
    samples = run.folder / "samples" / "em_margin.jsonl"
    samples.parent.mkdir(parents=True)
    samples.write_text("{}\n" * 2)
    execute_once(run, lambda: {"results": {"em_margin": {}}, "files": files})
    assert run.done and [row.state for row in all_statuses(tmp_path)[0]] == ["done"]
    check_output(run.folder)
    if files:
        samples.write_text("{}\n")
        with pytest.raises(BadInput, match=r"em_margin\.jsonl: lost, or altered, since the run ended; delete"):
            check_output(run.folder)
    samples.unlink()
    assert [row.state for row in all_statuses(tmp_path)[0]] == ["failed"]
    with pytest.raises(BadInput, match=r"em_margin\.jsonl: lost, or altered"):
        assert run.done


def test_what_builds_on_an_adapter_that_is_lost_or_another_says_so(tmp_path: Path) -> None:
    trained, last = chain("a", "b", root=tmp_path)
    weights = trained.folder / "adapter" / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"its own")
    execute_once(trained, lambda: {"trained_parameters": 1, "files": ["adapter/adapter_model.safetensors"]})
    for damage in (lambda: weights.write_bytes(b"another"), weights.unlink):
        damage()
        with pytest.raises(BadInput, match=r"adapter_model\.safetensors: lost, or altered"):
            execute(last)
    assert trained.done, "what was evaluated stays so without it"


def test_of_two_folders_of_one_digest_the_finished_one_counts(tmp_path: Path) -> None:
    (run,) = chain("a", root=tmp_path)
    execute_once(run, dict)
    (run.folder.parent / f"z-{run.digest[:10]}").mkdir()
    assert run.done and run.folder.name.startswith("a-")


def test_an_index_holds_any_name(tmp_path: Path) -> None:
    (run,) = chain("a", root=tmp_path)
    execute_once(run, dict)
    record = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**record, "name": "\ud800\x1b[31m"}))
    write_index(tmp_path)
    assert "\\ud800\\u001b[31m" in (tmp_path / "index.csv").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_runs_that_may_only_be_read_are_shown(tmp_path: Path) -> None:
    (run,) = chain("a", root=tmp_path)
    execute_once(run, dict)
    (run.folder / "run.json").unlink()
    (run.folder / ".lock").chmod(0o444)
    assert [row.state for row in all_statuses(tmp_path)[0]] == ["waiting"]


def test_a_process_is_ended_with_what_it_has_started() -> None:
    """An engine's workers would else keep the memory of the GPU on which a training is to follow."""
    code = "import subprocess as s; print(s.Popen(['sleep', '60'], stdout=s.DEVNULL).pid, flush=True); input()"
    stopping.clear()
    process = spawn("x", [sys.executable, "-c", code], False, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    worker = int(process.stdout.readline())
    end(process)
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE
    assert process.poll() is not None
