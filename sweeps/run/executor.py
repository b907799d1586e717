"""Executes a graph of runs: as many at once as there are places; a failure costs itself and what builds on it."""

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from rich.live import Live
from rich.text import Text

from core.records import BadInput, write_whole
from sweeps.recipe.hardware import BUSY_GIB, Gpu, of_kind, visible_gpus
from sweeps.recipe.layers import load_layer
from sweeps.run import process
from sweeps.run.adapters import close_resident_bases, resident_base
from sweeps.run.evaluate import evaluate, lora_rank, model_paths
from sweeps.run.folder import MergeRun, Run, TrainingRun, check_output
from sweeps.run.graph import Graph, lost, wanted
from sweeps.run.index import write_index
from sweeps.run.status import progress, status_lines
from sweeps.run.train import merge, train

State = Literal["waiting", "running", "elsewhere", "done", "failed", "blocked"]
LOOK_AGAIN = 2.0
"""Seconds until a run that another process holds is tried again."""
PARTS = 8
"""Of a card, each with a lock: a run takes its share of them, so that one that fills the card waits for all."""


def ready(runs: Graph, states: Mapping[str, State]) -> Iterator[Run]:
    """The runs that wait for nothing but a place, in the order of the graph; evaluations last.

    Those of one base stand together: adapters evaluated one after another share its process (sweeps/run/adapters.py),
    the highest rank first, whose engine takes the others too.
    """
    for run in sorted(runs.values(), key=_turn):
        own = run.digest
        if states[own] == "waiting" and all(states.get(before.digest, "done") == "done" for before in run.after):
            yield run


def _turn(run: Run) -> tuple[str, int]:
    return (str(model_paths(run).get("pretrained")), -lora_rank(run)) if run.stage == "evaluate" else ("", 0)


def execute(run: Run) -> dict[str, Any]:
    """Does one run in this thread. RunFailed if it fails, or one that it builds on is not done; BadInput if output of
    that is gone; RunHeld if another process is at work on it."""
    for before in run.after:
        if not before.done:
            raise process.RunFailed(f"{run.folder} builds on {before.folder}, which is not done")
        check_output(before.folder)
    if isinstance(run, TrainingRun | MergeRun):
        resident_base().close()  # its memory is the training's
        return train(run) if isinstance(run, TrainingRun) else merge(run)
    return evaluate(run)


def places(hardware: str, gpus: int = 1, per_gpu: int = 1, root: Path = Path("runs")) -> list[dict[str, str]]:
    """The environment of each process that may run at once; one in all on a CPU, none where no card is free.

    A card is free if it is of the profile's kind and not in use, or in use by a run of this folder, which is awaited.
    Those that CUDA_VISIBLE_DEVICES names are taken, busy or not. `gpus` are the cards for each run.
    """
    if load_layer("hardware", hardware)["em"]["memory_gib"] is None:
        return [{}]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = [] if "MIG-" in (named or "") else visible_gpus()  # parts of a card nvidia-smi's table does not list
    if cards:
        kind = of_kind(cards, hardware)
        devices = [card.number for card in kind if named is not None or card.used_gib <= BUSY_GIB or _busy(root, card)]
    elif not (devices := list(filter(None, (part.strip() for part in (named or "").split(","))))):
        return [{}]
    groups = [devices[first : first + gpus] for first in range(0, len(devices) - gpus + 1, gpus)]
    threads = str(max(1, process.cores() // max(1, len(groups) * per_gpu)))
    common = {"OMP_NUM_THREADS": threads, **({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if cards else {})}
    shares = [{process.SHARE: f"{number}/{per_gpu}"} if per_gpu > 1 else {} for number in range(per_gpu)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group), **share, **common} for share in shares for group in groups]


def none_free(hardware: str, gpus: int) -> str:
    """Why there is no place, for people."""
    cards = ", ".join(f"{card.number} {card.name} ({card.used_gib:.0f} GiB in use)" for card in visible_gpus())
    count = "GPU" if gpus == 1 else f"{gpus} GPUs"
    return (
        f"no {count} of the kind {hardware} free on this machine ({cards}); wait, or name in CUDA_VISIBLE_DEVICES those"
        " to take all the same"
    )


def _place_lock(root: Path, card: str) -> Path:
    return root / f".place-{platform.node()}-{card}.lock"


def _busy(root: Path, card: Gpu) -> bool:
    """Whether a run of this folder is at work on the card, or on a part of it."""
    one = _place_lock(root, card.number)
    return any(map(process.held, (one, *root.glob(f"{one.stem}.*.lock"))))


def in_place(do: Callable[[Run], object], root: Path) -> Callable[[Run], object]:
    """`do`, for one process on this machine at a time at each place, those of a killed `emsweep` included.

    Two sweeps in one folder of runs would else load one GPU twice; on a CPU two trainings at once take ten times as
    long. RunHeld is raised where the place is taken.
    """

    def placed(run: Run) -> object:
        slot = process.SLOT.get() or {}
        number, count = map(int, slot.get(process.SHARE, "0/1").split("/"))
        parts = range(PARTS * number // count, PARTS * (number + 1) // count)
        root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            for card in slot.get("CUDA_VISIBLE_DEVICES", "cpu").split(","):
                for part in parts:
                    locks.enter_context(process.locked(_place_lock(root, f"{card}.{part}" if part else card)))
            return do(run)

    return placed


def launch(
    runs: Graph,
    do: Callable[[Run], object] = execute,
    slots: Sequence[Mapping[str, str]] = ({},),
    on_success: Callable[[], object] = lambda: None,
) -> dict[str, BaseException]:
    """Does all runs that are not done, each after those that it builds on.

    One that fails is tried once more (training goes on from its checkpoint), then given up with all that builds on it,
    and its last words are kept in failed.txt. One that another process is at work on is awaited, and others go on.

    At each of `slots`, the environments of their processes, one run is at work; `on_success` is called after each that
    ends well. Returns why, by digest, for each run that failed; KeyboardInterrupt on SIGINT or SIGTERM, when all
    processes have ended.
    """
    todo = wanted(runs)
    states: dict[str, State] = {digest: "waiting" if digest in todo else "done" for digest in runs}
    reasons: dict[str, BaseException] = {}
    again: dict[str, float] = {}
    awaited: set[str] = set()
    free = [*slots]
    running: dict[Future[object], tuple[str, Mapping[str, str]]] = {}
    process.stopping.clear()

    def picture() -> Text:
        rows = [progress(runs[digest].folder, "running") for digest, _ in list(running.values())]
        counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
        return Text(f"{status_lines(rows)}\n" + ", ".join(f"{count} {state}" for state, count in counts.items()))

    with _interruptible(), ThreadPoolExecutor(len(slots)) as pool:
        live = Live(get_renderable=picture, console=process.console, refresh_per_second=1, transient=True)
        try:
            if process.console.is_terminal:
                live.start()
            while True:
                for digest, then in list(again.items()):
                    if time.monotonic() >= then:
                        del again[digest]
                        try:
                            states[digest] = "done" if runs[digest].done else "waiting"
                        except BadInput as damaged:  # which must not cost what others are at work on
                            reasons[digest], states[digest] = damaged, "failed"
                            states |= dict.fromkeys(lost(runs, digest), "blocked")
                for run in ready(runs, states) if free else ():
                    slot = free.pop(0)
                    states[run.digest] = "running"
                    running[pool.submit(_twice, do, run, slot)] = run.digest, slot
                    if not free:
                        break
                close_resident_bases(free)  # nothing is to be done there now: another `emsweep` may take the card
                if not running and not again:
                    return reasons
                ended, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                if not running:
                    time.sleep(0.2)
                for future in ended:
                    digest, slot = running.pop(future)
                    free.append(slot)
                    error = future.exception()
                    if isinstance(error, process.RunHeld):
                        if str(error) not in awaited:
                            awaited.add(str(error))
                            process.say(f"{error}; awaited")
                        states[digest], again[digest] = "elsewhere", time.monotonic() + LOOK_AGAIN
                        continue
                    states[digest] = "failed" if error else "done"
                    done = list(states.values()).count("done")
                    process.say(
                        f"{done}/{len(states)} {runs[digest].folder}: {f'failed: {error}' if error else 'done'}"
                    )
                    try:
                        if not error:
                            on_success()
                            continue
                        reasons[digest] = error
                        states |= dict.fromkeys(lost(runs, digest), "blocked")
                        write_whole(runs[digest].folder / "failed.txt", f"{str(error) or repr(error)}\n")
                    except BadInput as unwritten:  # a full disk must not cost what others are at work on
                        process.say(str(unwritten))
        except BaseException:
            process.stop_children()
            raise
        finally:
            live.stop()
            close_resident_bases()


def _twice(do: Callable[[Run], object], run: Run, slot: Mapping[str, str]) -> object:
    process.SLOT.set(slot)
    try:
        return do(run)
    except process.RunFailed as error:
        if process.stopping.is_set() or isinstance(error, process.RunRefused):
            raise
        process.say(f"{run.folder}: failed once, tried again: {error}")
        return do(run)


def execute_all(
    runs: Sequence[Run], do: Callable[[Run], object] = execute, slots: Sequence[Mapping[str, str]] = ({},)
) -> None:
    """Does runs that build on nothing but each other, or on what is done; RunFailed at the end if any failed twice."""
    try:
        reasons = launch({run.digest: run for run in runs}, do, slots)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if reasons:
        raise process.RunFailed("\n".join(map(str, reasons.values())))
    write_index(runs[0].root)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C, and a second signal does not cut the ending short (`timeout` sends two)."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        if not process.stopping.is_set():
            process.stopping.set()
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
