"""The commands of `emsweep` on declared sweeps: plan, start, export, do one run, say where all stand, clean up."""

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from typer import Argument, Option

from core.llm.budget import prices_of
from core.llm.client import SECRET
from core.options import App, takes
from core.records import BadInput, one_line, read_text
from eval.judge.judge import Judge, judge_evaluations, judge_for
from sweeps.options import StartOptions, SweepOptions
from sweeps.plan.axes import vary
from sweeps.plan.declaration import Point, Tuned
from sweeps.plan.export import write_slurm
from sweeps.plan.manifest import find_manifest, finished_points, sweep_folder, write_manifest
from sweeps.plan.request import SWEEPS, Request
from sweeps.plan.sweep import graph
from sweeps.run.executor import execute, execute_all, in_place, launch, none_free
from sweeps.run.folder import Run
from sweeps.run.graph import Graph
from sweeps.run.index import write_index
from sweeps.run.process import RunFailed, say
from sweeps.run.status import STATES, all_statuses, at_work, status_lines
from sweeps.run.status import status as status_of
from sweeps.run.validate import check_runs
from sweeps.tune.learning_rate import NO_JUDGE, Search, judged_coherent, tune, unbroken

app = App()

SweepName = Annotated[str, Argument(help="Declared sweep (recipes/sweeps) or the path of one.")]
PlannedSweep = Annotated[str, Argument(help="A planned sweep: its name, folder or sweep.json.")]


def as_typed() -> str:
    """The command, as it is kept in files: without the name, password and keys in an address."""
    typed = re.sub(r"://[^/\s]+@", "://", shlex.join(["emsweep", *sys.argv[1:]]))
    return re.sub(rf"(?i)([?&][^=&#\s]*(?:{SECRET})[^=&#\s]*=)[^&#\s']+", r"\1[secret]", typed)


def start(request: Request, options: StartOptions, judge: Judge | None = None) -> None:
    """Shows the plan, does the runs, and reports on what ended well. RunFailed names every run that failed, when all
    others are done; or says why judging ended early.

    `judge` has scored a search for this sweep already, and knows what that has cost.
    """
    began = time.monotonic()
    request.show_plan()
    if options.dry_run:
        for point in request.points:
            typer.echo(point.training.folder if point.training else point.evaluation.folder)
        return
    request.show_scales()
    judge = judge or _judge(request)  # a key that is missing is missed before training
    write_manifest(request, as_typed())
    reasons = finish(request, request.runs, options)
    done = [point for point in request.points if point.evaluation.done]
    stopped = None
    if judge:
        try:
            judge_evaluations(list(dict.fromkeys(point.evaluation.folder for point in done)), judge)
        except BadInput as error:
            stopped = error  # the report has what is there
            say(f"judging {error}")
    if any(point.arm == "base" for point in done):
        # Imported when it is needed: what draws and computes would stay in memory beside every training process.
        from sweeps.report.sweep import write_report

        folder, manifest, found, missing = finished_points(str(request.folder))
        page = write_report(manifest.declared, found, folder, manifest.full, manifest.command, missing)
        say(f"{page} ({time.monotonic() - began:.0f} s)")
    if reasons:
        left = len(request.points) - len(done)
        failed = [f"{request.runs[digest].folder}: {why}" for digest, why in reasons.items()]
        raise RunFailed("\n".join([f"{len(failed)} runs failed, and {left} points are missing:", *failed]))
    if stopped:
        raise RunFailed(str(stopped))  # not done, as `emsweep judge` says it by its exit code


def _judge(request: Request) -> Judge | None:
    return judge_for(request.sweep.judge) if request.sweep.judge else None


def finish(request: Request, runs: Graph, options: StartOptions) -> dict[str, BaseException]:
    """Does the runs where it was asked for; returns why, by digest, for each that failed. BadInput if there is no place
    for them, or Axolotl refuses a recipe: then none is begun."""
    if not options.address and not request.places:
        raise BadInput(none_free(request.sweep.hardware, request.sweep.gpus))
    if options.launcher == "local":
        do, slots = in_place(execute, request.folder.parent.parent), request.places
    else:
        from sweeps.run.ray_cluster import on_ray

        _refuse_shares(request, "--launcher ray")
        if not options.address:  # a cluster that is started here has the cards that are free
            cards = [place["CUDA_VISIBLE_DEVICES"] for place in request.places if "CUDA_VISIBLE_DEVICES" in place]
            order = {key: value for key, value in request.places[0].items() if key == "CUDA_DEVICE_ORDER"}
            os.environ.update(order | ({"CUDA_VISIBLE_DEVICES": ",".join(cards)} if cards else {}))
        gpus = 0 if request.sweep.memory_gib is None else request.sweep.gpus
        do, at_once = on_ray(options.address, gpus)
        slots = [{}] * at_once
    check_runs(runs, request.folder)  # last: it takes seconds
    try:
        return launch(runs, do, slots, on_success=write_index)
    except KeyboardInterrupt:
        say("stopped; what is done stays done, and the same command goes on")
        raise typer.Exit(130) from None


def _refuse_shares(request: Request, by: str) -> None:
    if request.sweep.per_gpu > 1:
        raise BadInput(f"--per-gpu goes with runs on this machine, not with {by}")


@app.command()
@takes(SweepOptions, StartOptions)
def run(options: SweepOptions, starting: StartOptions, sweep: SweepName) -> None:
    """Trains and evaluates every arm of a declared sweep, at each combination of its axes, and reports.

    Example: emsweep run controls --axis seed=1,2,3 --axis rl_beta=0.05,0.1
    """
    start(options.request(sweep), starting)


@dataclass(frozen=True)
class RankOptions:
    """Options of every command that runs a sweep over ranks."""

    values: Annotated[str | None, Option(help="Ranks, with commas between; the declared ones if not given.")] = None
    sweep: Annotated[str, Option(help="Declared sweep with the axis rank, or the path of one.")] = "rank"
    retune: Annotated[str | None, Option(help="LOW,HIGH: find each rank's highest coherent rate between these.")] = None

    def request(self, options: SweepOptions, tuned: Mapping[str, Tuned] | None = None) -> Request:
        return options.request(self.sweep, {"rank": self.values.split(",")} if self.values else {}, tuned)

    def ends(self, request: Request, search: Search) -> list[str]:
        """The ends of --retune's range, if it is given; BadInput, before anything is paid for, if no search could be
        made between them, or one is spoken of without it."""
        if self.retune is None:
            search.check_unused("--retune")
            return []
        if "rank" not in request.sweep.grid or set(request.sweep.grid) - {"rank", "seed"}:
            raise BadInput("--retune goes with the axis rank, and seed, alone; do others one after another, with --set")
        ends = self.retune.split(",")
        search.between(ends)
        vary(request.sweep, {**request.sweep.grid, "lr": ends})
        return ends


@app.command()
@takes(RankOptions, SweepOptions, StartOptions, Search)
def rank(ranks: RankOptions, options: SweepOptions, starting: StartOptions, search: Search) -> None:
    """`run rank --axis rank=VALUES`: the arms that vary at each LoRA rank; CPT and the reference are shared.

    Example: emsweep rank --values 1,2,4,8,64 --alpha-policy alpha_over_r,alpha
    Example: emsweep rank --values 1,8,64 --retune 1e-5,1e-3 --model qwen7b --hardware a100-80g
    """
    start_ranks(ranks, options, starting, search)


def show_search(search: Search, request: Request, rate: str) -> None:
    """Prints what a search for the learning rate adds to the plan of its sweep; which runs, it finds as it goes."""
    say(f"the search: up to {search.most} more runs, and evaluations, at each combination of the other axes")
    if request.sweep.judge:
        _, point = _one_trial(request, next(_combinations(request)), rate)
        request.show_judging([point.evaluation], what="each of them judged: ")


def start_ranks(ranks: RankOptions, options: SweepOptions, starting: StartOptions, search: Search) -> None:
    """`rank`, for another command too."""
    request = ranks.request(options)
    ends = ranks.ends(request, search)
    if not ends:
        start(request, starting)
        return
    request.show_plan()
    show_search(search, request, ends[0])
    if starting.dry_run:
        return
    judge = _judge(request)
    edges = {at["rank"]: edge for at, edge in _edges(request, ends, starting, search, judge)}
    where = search.between(ends)
    if outside := [rank for rank, edge in edges.items() if not where.low <= edge.lr <= where.high]:
        told = f"the edge of rank {', '.join(outside)} lies outside; give a wider range"
        raise BadInput(f"--retune {ranks.retune}: {told}")
    start(ranks.request(options, edges), starting, judge)


@app.command()
@takes(SweepOptions, StartOptions, Search)
def lr(
    options: SweepOptions,
    starting: StartOptions,
    search: Search,
    values: Annotated[str | None, Option(help="Values, with commas between; the declared ones if not given.")] = None,
    sweep: Annotated[str, Option(help="Declared sweep (recipes/sweeps) or the path of one.")] = "lr",
    searching: Annotated[bool, Option("--search", help="Search between the values for the edge of coherence.")] = False,
) -> None:
    """`run lr --axis lr=VALUES`: the arms that vary at each learning rate; or finds the highest coherent one.

    The search trains the first arm that varies, at each combination of the other axes. Coherent is what is neither
    blank nor repeats itself, and with --judge what it says is.

    Example: emsweep lr --values 1e-3,2e-3,5e-3 --set lora_r=1
    Example: emsweep lr --search --coherence 0.9 --values 1e-5,1e-3 --model qwen7b --hardware a100-80g
    """
    own = {"lr": values.split(",")} if values else {}
    request = options.request(sweep, own)
    if searching:
        ends = list(request.sweep.grid.get("lr", []))
        search.between(ends)
        if options.full or (len(request.declared.seeds) > 1 and "seed" in request.sweep.grid):
            raise BadInput("--search: varies the seed of one arm itself; leave out --full, and give one seed at most")
        if request.sweep.checkpoints > 1:
            raise BadInput("--search: looks at the end of each training alone; leave checkpoints out")
        _, point = _one_trial(request, next(_combinations(request)), str(ends[0]))
        request.show_runs(graph([point]), f"one trial, of {point.arm}: ")
        show_search(search, request, str(ends[0]))
        if not starting.dry_run:
            _edges(request, ends, starting, search, _judge(request))
    else:
        search.check_unused("--search")
        start(request, starting)


def _edges(
    request: Request, ends: Sequence[Any], starting: StartOptions, search: Search, judge: Judge | None
) -> list[tuple[dict[str, str], Tuned]]:
    """The highest coherent learning rate, between `ends`, at each combination of the sweep's axes."""
    score, judged_by = (judged_coherent(judge), f"judge: {judge.label}") if judge else (unbroken, NO_JUDGE)
    found = []
    for place in _combinations(request):
        if place:
            say(", ".join(f"{axis} {value}" for axis, value in place.items()))
        do = partial(_trial, request, place, starting)
        found.append((place, tune(do, ends, search, score, judged_by)))
    return found


def _combinations(request: Request) -> Iterator[dict[str, str]]:
    """The places on the sweep's axes, but learning rate and seed."""
    others = {axis: values for axis, values in request.declared.grid.items() if axis not in ("lr", "seed")}
    yield from (dict(zip(others, values, strict=True)) for values in product(*others.values()))


def _one_trial(request: Request, place: Mapping[str, str], lr: str, turn: int = 0) -> tuple[Request, Point]:
    """The sweep at one learning rate, and the point of its first arm that varies; of a later turn at another seed."""
    first_seed = request.declared.seeds[0]
    grid = {**{axis: [value] for axis, value in place.items()}, "lr": [lr], "seed": [str(first_seed)]}
    arms = {
        name: arm.model_copy(update={"seed": first_seed + turn}) if arm.vary else arm
        for name, arm in request.sweep.arms.items()
    }
    trial = replace(request, sweep=request.sweep.model_copy(update={"grid": grid, "arms": arms}))
    return trial, next(point for point in trial.points if point.training and trial.declared.arms[point.arm].vary)


def _trial(request: Request, place: Mapping[str, str], starting: StartOptions, lr: str, turn: int) -> Point:
    """Trains and evaluates the first arm that varies at a learning rate; again, with another seed of that arm alone."""
    trial, point = _one_trial(request, place, lr, turn)
    if reasons := finish(trial, graph([point]), starting):
        raise RunFailed("\n".join(map(str, reasons.values())))
    return point


@app.command()
@takes(SweepOptions, StartOptions)
def plan(
    options: SweepOptions,
    starting: StartOptions,
    sweep: SweepName,
    price_in: Annotated[float | None, Option(min=0, help="USD per million tokens the judge reads.")] = None,
    price_out: Annotated[float | None, Option(min=0, help="USD per million tokens it writes.")] = None,
) -> None:
    """Shows what a sweep will take, and starts nothing: points, runs, what is done, hours, memory, money.

    It takes the options of a start, so that its command line can be typed again: --dry-run, --launcher and --address
    change nothing here.

    Example: emsweep plan rank --axis rank=1,8,64 --model qwen7b --hardware a100-80g --price-in 2.5 --price-out 10
    """
    request = options.request(sweep)
    prices = prices_of(price_in, price_out, "--price-in and --price-out")
    request.show_plan(prices, judged=True)
    request.show_scales()


@app.command()
@takes(SweepOptions, StartOptions)
def export(options: SweepOptions, starting: StartOptions, sweep: SweepName) -> None:
    """Writes a sweep as a script for Slurm, each run a job after those it builds on; starts nothing.

    Example: emsweep export rank --model qwen7b --hardware a100-80g
    """
    request = options.request(sweep)
    _refuse_shares(request, "a script for Slurm")
    if starting.launcher != "local":
        raise BadInput("--launcher ray: a script for Slurm starts each run itself; leave it out")
    if starting.dry_run:
        start(request, starting)
        return
    check_runs(request.runs, request.folder)
    typer.echo(write_slurm(request, write_manifest(request, as_typed())))
    if request.sweep.judge:
        say("its jobs judge nothing: when they are done, `emsweep judge` does")


@app.command(name="exec")
def exec_command(
    sweep: PlannedSweep, digest: Annotated[str, Argument(help="Digest of the run, or its first characters.")]
) -> None:
    """Does one run of a planned sweep: what a scheduler calls, when the runs that it builds on are done.

    Example: emsweep exec runs/sweeps/rank-smollm2-135m-0123ab 973e14323a
    """
    folder, manifest = find_manifest(sweep)
    planned = Request(manifest.sweep, manifest.name, manifest.full)
    found = [run for key, run in planned.runs.items() if key.startswith(digest)]
    if len(found) != 1:
        ways = "give more of the digest, or plan the sweep again if its recipes or data have changed since"
        raise BadInput(f"{folder}: {len(found)} runs are called {digest}; {ways}")
    execute_all(found, execute)
    typer.echo(found[0].folder)


@app.command()
def status(
    root: Annotated[Path, Argument(help="Folder of runs.")] = Path("runs"),
    forget: Annotated[str | None, Option(help="A planned sweep to take off the list; its runs stay.")] = None,
) -> None:
    """Shows where every run and sweep stands: running, failed, waiting or done; step, loss, tokens/s, time left.

    Example: emsweep status
    """
    if root != Path("runs") and not root.is_dir():
        raise BadInput(f"{root}: no folder of runs; name one, or none for runs/")
    if forget:
        folder = sweep_folder(forget)
        if run := at_work(folder / "sweep.json"):
            raise BadInput(f"{folder}: {run} is running; stop the sweep, or wait for its end, before it is forgotten")
        (folder / "sweep.json").unlink()
        typer.echo(f"{folder}: forgotten")
    rows, sweeps = all_statuses(root)
    typer.echo(status_lines(rows))
    for name, words in sweeps.items():
        typer.echo(one_line(f"sweep {name}: {words}", 600))
    typer.echo(", ".join(f"{sum(row.state == state for row in rows)} {state}" for state in STATES))


@app.command()
def clean(yes: Annotated[bool, Option("--yes", help="Delete what is listed.")] = False) -> None:
    """Lists what is safe to delete: merged models of planned sweeps that no run waits for; a later sweep merges again.

    Example: emsweep clean --yes
    """
    runs: dict[str, Run] = {}
    for path in sorted(SWEEPS.glob("*/sweep.json")):
        _, manifest = find_manifest(str(path))
        try:
            runs |= Request(manifest.sweep, manifest.name, manifest.full).runs
        except BadInput as error:  # such as data that are gone: what it waits for is not known
            name = path.parent.name
            raise BadInput(f"{name}: {error}; or take it off: `emsweep status --forget {name}`") from None
    merges = [digest for digest, run in runs.items() if run.stage == "merge"]
    needed = {before.digest for run in runs.values() if not run.done for before in run.after}
    # Runs that were started by hand stand in no plan.
    starts: dict[Path, Path] = {}
    for path in Path("runs").glob("*/*/recipe.yaml"):
        if not (path.parent / "run.json").exists():
            try:
                starts[Path(yaml.safe_load(read_text(path))["base_model"]).resolve()] = path.parent
            except (yaml.YAMLError, LookupError, TypeError, ValueError, OSError, RecursionError):
                raise BadInput(f"{path}: no recipe, and what it starts from is not known; delete its folder") from None
    # Of an evaluation that was started by hand nothing says, until it is done, which model it reads.
    planned = tuple(digest[:10] for digest in runs)
    by_hand = [folder for folder in Path("runs/evaluate").glob("*") if not folder.name.endswith(planned)]
    reader = next((folder for folder in by_hand if status_of(folder).state == "running"), None)
    for folder in sorted(Path("runs/merge").glob("*")):
        digest = next((digest for digest in merges if folder.name.endswith(digest[:10])), None)
        user, why = starts.get((folder / "merged").resolve()), ""
        if digest is None:
            why = "no planned sweep has it"
        elif not folder.exists():
            why = "it is a link that leads nowhere, as to a disk that is not there"
        elif digest in needed:
            why = "runs that are not done, as composed now, need it"
        elif status_of(folder).state == "running":
            why = "it is being made"
        elif user:
            why = f"{user} starts from it and is not done"
        elif reader:
            why = f"{reader}, which no planned sweep has, is running and may read it"
        if why:
            typer.echo(f"{folder}: kept, for {why}")
            continue
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        typer.echo(f"{folder}: {size / 2**30:.2f} GiB{', deleted' if yes else ''}")
        if yes:
            (folder / "run.json").unlink(missing_ok=True)  # first: cut off, half a model must not count as done
            shutil.rmtree(folder.resolve())  # of a link, such as one to a larger disk, what it leads to
            if folder.is_symlink():
                folder.unlink()
