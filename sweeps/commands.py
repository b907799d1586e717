"""The commands of `emsweep` on declared sweeps: plan, start, do one run, say where all runs stand."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.records import BadInput
from sweeps.plan.sweep import Point, Tuned
from sweeps.plan.options import (
    Ask,
    Asked,
    Search,
    Start,
    finish,
    now,
    search_options,
    start_options,
    sweep_options,
    takes,
)
from sweeps.plan.manifest import recall, remember
from sweeps.plan.graph import graph
from sweeps.plan.estimate import judging
from sweeps.run.folder import Pruned, RunFailed, console, content_digest
from sweeps.run.status import STATES, all_statuses, status_lines

if TYPE_CHECKING:
    from eval.judge.judge import Judge
    from sweeps.tune.threshold import Edge

app = typer.Typer()

SweepName = Annotated[str, typer.Argument(help="Declared sweep (recipes/sweeps) or the path of one.")]
SweepOption = Annotated[str, typer.Option("--sweep", help="Declared sweep (recipes/sweeps) or the path of one.")]
Values = Annotated[str | None, typer.Option(help="Values, with commas between; the declared ones if not given.")]


def start(it: Asked, how: Start) -> None:
    """Shows the plan, does the runs, and reports on what ended well.

    Raises:
        RunFailed: naming every run that failed, when all others are done.
    """
    began = time.monotonic()
    it.outlook()
    if how.dry_run:
        for point in it.points:
            typer.echo(point.training.folder if point.training else point.evaluation.folder)
        return
    judge = _judge(it)  # a key that is missing is missed before training
    it.write()
    named = shlex.join(["emsweep", *sys.argv[1:]])
    remember(it.folder, named, it.declared, it.points, it.full)
    reasons = finish(it, it.runs, how)
    done = [point for point in it.points if point.evaluation.done]
    stopped = None
    if judge:
        from eval.judge.judge import judge_evaluations

        try:
            judge_evaluations(list(dict.fromkeys(point.evaluation.folder for point in done)), judge)
        except BadInput as error:
            stopped = error  # the report has what is there
            console.print(f"judging {error}", markup=False, highlight=False, soft_wrap=True)
    if any(point.arm == "base" for point in done):
        # Imported when it is needed: what draws and computes would stay in memory beside every training process.
        from sweeps.report.sweep import write_report

        *_, found, missing = recall(str(it.folder))
        out = write_report(it.declared, found, it.folder, it.full, named, missing)
        console.print(f"{out} ({time.monotonic() - began:.0f} s)", highlight=False)
    failed = [f"{it.runs[digest].folder}: {why}" for digest, why in reasons.items() if not isinstance(why, Pruned)]
    if failed:
        left = len(it.points) - len(done)
        raise RunFailed("\n".join([f"{len(failed)} runs failed, and {left} points are missing:", *failed]))
    if stopped:
        raise stopped


def _judge(it: Asked) -> Judge | None:
    """Who scores a sweep's answers in the end."""
    if it.declared.judge is None:
        return None
    from eval.judge.judge import judge_for

    return judge_for(it.declared.judge)


@app.command()
@takes(sweep_options, start_options)
def demo(ask: Ask, how: Start, sweep: SweepOption = "demo") -> None:
    """Trains and evaluates every arm of a declared sweep, and reports; shares every run that is done.

    Example: emsweep demo --full
    """
    start(ask(sweep), how)


@app.command()
@takes(sweep_options, start_options)
def grid(ask: Ask, how: Start, sweep: SweepName) -> None:
    """Trains the arms that vary at each combination of the sweep's `grid:`, evaluates, and reports.

    Example: emsweep grid controls --axis seed=1,2,3 --axis rl_beta=0.05,0.1
    """
    start(ask(sweep), how)


@app.command()
@takes(sweep_options, start_options, search_options)
def rank(
    ask: Ask,
    how: Start,
    search: Search,
    values: Values = None,
    sweep: SweepOption = "rank",
    retune: Annotated[
        str | None,
        typer.Option(help="LOW,HIGH: search between these for each rank's highest coherent learning rate, and use it."),
    ] = None,
) -> None:
    """Trains the arms that vary at each LoRA rank, evaluates, and reports; CPT and the reference are shared.

    Example: emsweep rank --values 1,2,4,8,64 --alpha-policy alpha_over_r,alpha
    Example: emsweep rank --values 1,8,64 --retune 1e-5,1e-3 --model qwen7b --hardware a100-80g
    """
    own = {"rank": values.split(",")} if values else {}
    if not retune:
        start(ask(sweep, own), how)
        return
    asked = ask(sweep, own)
    if "rank" not in asked.sweep.grid or set(asked.sweep.grid) - {"rank", "seed"}:
        raise BadInput("--retune goes with the axis rank, and seed, alone; do others one after another, with --set")
    _judge(asked)
    ends = retune.split(",")
    edges = {at["rank"]: edge for at, edge in _edges(ask, sweep, own, ends, how, search)}
    low, high = (pick(map(float, ends)) for pick in (min, max))
    if outside := [rank for rank, edge in edges.items() if not low <= edge.lr <= high]:
        raise BadInput(f"--retune {retune}: the edge of rank {', '.join(outside)} lies outside; give a wider range")
    start(ask(sweep, own, {rank: Tuned(**edge._asdict()) for rank, edge in edges.items()}), how)


@app.command()
@takes(sweep_options, start_options, search_options)
def lr(
    ask: Ask,
    how: Start,
    search: Search,
    values: Values = None,
    sweep: SweepOption = "lr",
    searching: Annotated[
        bool,
        typer.Option("--search", help="Search between the lowest and the highest value for the edge of coherence."),
    ] = False,
) -> None:
    """Trains the arms that vary at each learning rate, evaluates, and reports; or finds the highest coherent one.

    The search trains the first arm that varies, at each combination of the other axes.

    Example: emsweep lr --values 1e-3,2e-3,5e-3 --set lora_r=1
    Example: emsweep lr --search --coherence 0.9 --values 1e-5,1e-3 --model qwen7b --hardware a100-80g
    """
    asked = ask(sweep, {"lr": values.split(",")} if values else {})
    if searching:
        if asked.sweep.judge:
            raise BadInput("--search asks the offline judge alone; leave --judge out")
        _edges(ask, sweep, {}, asked.sweep.grid.get("lr", ()), how, search)
    else:
        start(asked, how)


def _edges(
    ask: Ask, sweep: str, own: Mapping[str, Sequence[str]], ends: Sequence[Any], how: Start, search: Search
) -> list[tuple[dict[str, str], Edge]]:
    """The highest coherent learning rate, between `ends`, at each combination of the axes (`own`, and the options')."""
    if how.prune is not None:
        raise BadInput("a search looks for where coherence ends, so that nothing is to be pruned; leave --prune out")
    if how.dry_run:
        raise BadInput("a search decides what to run as it goes, so that there is nothing for --dry-run to show")
    from sweeps.tune.learning_rate import tune

    asked = ask(sweep, own)
    others = {axis: values for axis, values in asked.declared.grid.items() if axis not in ("lr", "seed")}
    found = []
    for combination in product(*others.values()):
        place = dict(zip(others, combination, strict=True))

        def do(at: Mapping[str, Sequence[str]], place: Mapping[str, str] = place) -> Point:
            it = ask(sweep, {**{axis: [value] for axis, value in place.items()}, **at})
            point = next(point for point in it.points if point.training and it.declared.arms[point.arm].vary)
            if reasons := finish(it, graph([point]), how):
                raise RunFailed("\n".join(map(str, reasons.values())))
            return point

        if place:
            console.print(", ".join(f"{axis} {value}" for axis, value in place.items()), highlight=False)
        found.append((place, tune(do, ends, search, asked.declared.seeds[0])))
    return found


@app.command()
@takes(sweep_options, start_options)
def models(ask: Ask, how: Start, values: Values = None, sweep: SweepOption = "models") -> None:
    """Trains every arm on each model, evaluates, and reports: the same recipe over size and training data.

    Example: emsweep models --values qwen0.5b,qwen1.5b,qwen7b --hardware h100-80g
    """
    start(ask(sweep, {"model": values.split(",")} if values else {}), how)


@app.command(name="plan")
@takes(sweep_options)
def plan_command(
    ask: Ask,
    sweep: SweepName,
    price_in: Annotated[float | None, typer.Option(min=0, help="USD per million tokens the judge reads.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="USD per million tokens it writes.")] = None,
) -> None:
    """Shows what a sweep will take, and starts nothing: points, runs, what is done, hours, memory, money.

    Example: emsweep plan rank --model qwen7b --hardware a100-80g --price-in 2.5 --price-out 10
    """
    from core.llm.budget import prices_of

    it = ask(sweep)
    prices = prices_of(price_in, price_out, "--price-in and --price-out")
    if it.declared.judge and not prices:
        prices = prices_of(it.declared.judge.price_in, it.declared.judge.price_out, "judge: price_in and price_out")
    it.outlook()
    if prices:
        answers, usd = judging([run for run in it.runs.values() if run.stage == "evaluate"], prices)
        console.print(f"judging {answers:,} answers once: about {usd:.2f} USD", highlight=False)


@app.command()
@takes(sweep_options)
def export(
    ask: Ask,
    sweep: SweepName,
    sh: Annotated[bool, typer.Option("--sh", help="A shell script, one run after the other.")] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="A script that submits each run, with dependencies.")] = False,
    skypilot: Annotated[bool, typer.Option("--skypilot", help="A pipeline of managed jobs.")] = False,
    bucket: Annotated[str | None, typer.Option(help="SkyPilot: the bucket that holds the run folders.")] = None,
) -> None:
    """Writes a sweep as a script for another scheduler, each run as one command; starts nothing.

    Example: emsweep export rank --model qwen7b --hardware a100-80g --slurm
    """
    from sweeps.plan.export import export

    kinds = [kind for kind, on in {"sh": sh, "slurm": slurm, "skypilot": skypilot}.items() if on]
    if len(kinds) != 1:
        raise BadInput("give one of --sh, --slurm and --skypilot")
    it = ask(sweep)
    typer.echo(export(kinds[0], it, bucket or f"em-runs-{content_digest(list(it.runs))[:8]}"))


@app.command()
def run(
    plan: Annotated[Path, typer.Argument(help="The plan.json of a sweep.")],
    digest: Annotated[str, typer.Argument(help="Digest of the run, or its first characters.")],
) -> None:
    """Does one run of a planned sweep: what a scheduler calls, when the runs that it builds on are done.

    Example: emsweep run runs/rank-smollm2-135m-0123ab/plan.json 973e14323a
    """
    found = [run for key, run in Asked.read(plan).runs.items() if key.startswith(digest)]
    if len(found) != 1:
        raise BadInput(
            f"{plan}: {len(found)} runs are called {digest}; give more of the digest, or plan the sweep again if its"
            " recipes or data have changed since"
        )
    now(found)
    typer.echo(found[0].folder)


@app.command()
def status(root: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs")) -> None:
    """Shows where every run stands: running, failed, pruned, waiting or done; step, loss, tokens/s, time left.

    Example: emsweep status
    """
    rows = all_statuses(root)
    typer.echo(status_lines(rows))
    typer.echo(", ".join(f"{sum(row.state == state for row in rows)} {state}" for state in STATES))
