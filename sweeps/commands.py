"""The commands of `emsweep` on declared sweeps: plan, start, do one run, say where all runs stand."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from pydantic import ValidationError

from data_builders.records import BadInput, first_fault, write_whole
from sweeps.arms import Point, Sweep, load_sweep, plan
from sweeps.axes import vary
from sweeps.finished import remember
from sweeps.graph import graph
from sweeps.index import write_index
from sweeps.launch import execute, launch, places
from sweeps.outlook import judging, plan_table
from sweeps.recipe import load_layer
from sweeps.runs import Run, RunFailed, console, content_digest
from sweeps.status import STATES, all_statuses, status_lines

app = typer.Typer()

SweepName = Annotated[str, typer.Argument(help="Declared sweep (recipes/sweeps) or the path of one.")]
SweepOption = Annotated[str, typer.Option("--sweep", help="Declared sweep (recipes/sweeps) or the path of one.")]
Values = Annotated[str | None, typer.Option(help="Values, with commas between; the declared ones if not given.")]
Model = Annotated[str | None, typer.Option(help="Model layer; the sweep's if not given.")]
Hardware = Annotated[str | None, typer.Option(help="Hardware layer; the sweep's if not given.")]
Axes = Annotated[list[str] | None, typer.Option("--axis", help="AXIS=VALUE,VALUE: a further axis; may recur.")]
AlphaPolicy = Annotated[
    str | None, typer.Option(help="alpha_over_r, alpha, alpha_over_sqrt_r, or several with commas between.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A recipe key of what varies: KEY=VALUE; may recur.")]
Full = Annotated[bool, typer.Option("--full", help="All arms and all seeds of the sweep; else its first seed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the folders of the points and stop.")]


@dataclass(frozen=True)
class Asked:
    """A declared sweep with what the options changed of it."""

    sweep: Sweep
    name: str
    full: bool

    @classmethod
    def read(cls, path: Path) -> Asked:
        """From the plan.json that `write` left.

        Raises:
            BadInput: if it is missing or is none.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(Sweep.model_validate(found["sweep"]), path.parent.name, bool(found["full"]))
        except ValidationError as error:
            raise BadInput(f"{path}: {first_fault(error)}; plan the sweep again") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise BadInput(
                f"{path}: no plan of a sweep; `emsweep export` and every start of a sweep write one"
            ) from None

    @cached_property
    def declared(self) -> Sweep:
        return vary(self.sweep, self.sweep.grid)

    @cached_property
    def points(self) -> list[Point]:
        return plan(self.declared, self.full)

    @cached_property
    def runs(self) -> dict[str, Run]:
        return graph(self.points)

    @property
    def hardware(self) -> dict[str, Any]:
        """What is known of its hardware layer beyond Axolotl's keys."""
        return cast("dict[str, Any]", load_layer("hardware", self.sweep.hardware)["em"])

    @cached_property
    def places(self) -> list[dict[str, str]]:
        return places(self.hardware["memory_gib"])

    @property
    def folder(self) -> Path:
        return Path("runs") / self.name

    def write(self) -> Path:
        """Writes runs/NAME/plan.json: all that it takes to do any one run, and the runs for `emsweep status`."""
        runs = [
            {"digest": digest, "folder": str(run.folder), "after": [before.digest for before in run.after]}
            for digest, run in self.runs.items()
        ]
        plan = {"sweep": self.sweep.model_dump(), "full": self.full, "runs": runs}
        write_whole(self.folder / "plan.json", json.dumps(plan) + "\n")
        return self.folder / "plan.json"

    def outlook(self) -> None:
        """Prints what the sweep will take."""
        table, words = plan_table(self.runs, write_index(), len(self.places))
        console.print(table)
        console.print(f"{len(self.points)} points, {words}", highlight=False, soft_wrap=True)


Ask = Callable[..., Asked]


def sweep_options(
    model: Model = None,
    hardware: Hardware = None,
    alpha_policy: AlphaPolicy = None,
    axis: Axes = None,
    settings: Settings = None,
    full: Full = False,
) -> Ask:
    """Options of every command that takes a sweep; they make the function that reads it."""

    def ask(name: str, own: Mapping[str, Sequence[str]] | None = None) -> Asked:
        grid = dict(own or {})
        for text in [*([f"alpha={alpha_policy}"] if alpha_policy else []), *(axis or [])]:
            key, separator, values = text.partition("=")
            if not separator or not key:
                raise BadInput(f"--axis {text!r} is not AXIS=VALUE,VALUE; write for example --axis seed=1,2,3")
            grid[key] = values.split(",")
        sweep = load_sweep(name)
        update = {
            "model": model or sweep.model,
            "hardware": hardware or sweep.hardware,
            "grid": {**sweep.grid, **grid},
            "settings": [*sweep.settings, *(settings or [])],
        }
        changed = sweep.model_copy(update=update)
        stem = Path(name).stem
        # A report for each set of points; runs are shared anyhow.
        digest = content_digest(changed.model_dump())[:6]
        plain = changed == sweep and not sweep.grid
        return Asked(changed, stem if plain else "-".join([stem, changed.model, digest]), full)

    return ask


@dataclass(frozen=True)
class Start:
    dry_run: bool
    launcher: str
    address: str | None


def start_options(
    dry_run: DryRun = False,
    launcher: Annotated[str, typer.Option(help="local: this machine; ray: a Ray cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; without it one is started here.")] = None,
) -> Start:
    """Options of every command that starts a sweep."""
    if launcher not in ("local", "ray"):
        raise BadInput(f"unknown launcher {launcher!r} (there are: local, ray)")
    if address and launcher != "ray":
        raise BadInput("--address goes with --launcher ray")
    return Start(dry_run, launcher, address)


def takes(*groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of each group, and what the groups make of them as its first arguments."""

    def give(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(groups) :]
        theirs = [inspect.signature(group, eval_str=True).parameters for group in groups]

        @wraps(command)
        def whole(**given: Any) -> None:
            made = [group(**{k: given.pop(k) for k in names}) for group, names in zip(groups, theirs, strict=True)]
            command(*made, **given)

        parameters = [*own, *(parameter for names in theirs for parameter in names.values())]
        whole.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        whole.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return whole

    return give


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
    do: Callable[[Run], object] = execute
    slots = it.places
    if how.launcher == "ray":
        from sweeps.on_ray import on_ray

        do, at_once = on_ray(how.address, int(it.hardware["memory_gib"] is not None))
        slots = [{}] * at_once
    it.write()
    named = shlex.join(["emsweep", *sys.argv[1:]])
    remember(it.folder, named, it.declared, it.points, it.full)
    try:
        reasons = launch(it.runs, do, slots, finished=write_index)
    except KeyboardInterrupt:
        console.print("stopped; what is done stays done, and the same command goes on", highlight=False)
        raise typer.Exit(130) from None
    done = [point for point in it.points if point.evaluation.done]
    if any(point.arm == "base" for point in done):
        # Imported when it is needed: what draws and computes would stay in memory beside every training process.
        from sweeps.report import write_report
        from sweeps.sweep_plots import names

        missing = names([point for point in it.points if not point.evaluation.done])
        out = write_report(it.declared, done, it.folder, it.full, named, missing)
        console.print(f"{out} ({time.monotonic() - began:.0f} s)", highlight=False)
    if reasons:
        lines = [f"{it.runs[digest].folder}: {why}" for digest, why in reasons.items()]
        left = len(it.points) - len(done)
        raise RunFailed("\n".join([f"{len(lines)} runs failed, and {left} points are missing:", *lines]))


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
@takes(sweep_options, start_options)
def rank(ask: Ask, how: Start, values: Values = None, sweep: SweepOption = "rank") -> None:
    """Trains the arms that vary at each LoRA rank, evaluates, and reports; CPT and the reference are shared.

    Example: emsweep rank --values 1,2,4,8,64 --alpha-policy alpha_over_r,alpha
    """
    start(ask(sweep, {"rank": values.split(",")} if values else {}), how)


@app.command()
@takes(sweep_options, start_options)
def lr(ask: Ask, how: Start, values: Values = None, sweep: SweepOption = "lr") -> None:
    """Trains the arms that vary at each learning rate, evaluates, and reports.

    Example: emsweep lr --values 1e-3,2e-3,5e-3 --set lora_r=1
    """
    start(ask(sweep, {"lr": values.split(",")} if values else {}), how)


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
    from data_builders.money import prices_of

    it = ask(sweep)
    prices = prices_of(price_in, price_out, "--price-in and --price-out")
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
    from sweeps.export import export

    kinds = [kind for kind, on in {"sh": sh, "slurm": slurm, "skypilot": skypilot}.items() if on]
    if len(kinds) != 1:
        raise BadInput("give one of --sh, --slurm and --skypilot")
    it = ask(sweep)
    typer.echo(export(kinds[0], it, it.hardware, bucket or f"em-runs-{content_digest(list(it.runs))[:8]}"))


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


def now(runs: Sequence[Run]) -> None:
    """Does runs that build on nothing that is to be done.

    Raises:
        RunFailed: if one fails twice, or builds on one that is not done; the others are done then.
    """
    try:
        reasons = launch({run.digest: run for run in runs})
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if reasons:
        raise RunFailed("\n".join(reasons.values()))
    write_index(runs[0].root)


@app.command()
def status(root: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs")) -> None:
    """Shows where every run stands: running, failed, waiting or done; step, loss, tokens/s, time left.

    Example: emsweep status
    """
    rows = all_statuses(root)
    typer.echo(status_lines(rows))
    typer.echo(", ".join(f"{sum(row.state == state for row in rows)} {state}" for state in STATES))
