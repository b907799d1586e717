"""What the commands on declared sweeps share: their options, and the sweep that comes of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import typer
from pydantic import ValidationError

from core.records import BadInput, first_fault, write_whole
from eval.judge.settings import JudgeSettings
from sweeps.plan.axes import vary
from sweeps.plan.estimate import plan_table
from sweeps.plan.graph import Graph, graph
from sweeps.plan.sweep import Point, Sweep, Tuned, load_sweep, plan
from sweeps.recipe.compose import load_layer
from sweeps.run.evaluate import HELDOUT, named_files
from sweeps.run.executor import execute, in_place, launch, places
from sweeps.run.folder import Run, RunFailed, console, content_digest
from sweeps.run.index import write_index

Model = Annotated[str | None, typer.Option(help="Model layer; the sweep's if not given.")]
Hardware = Annotated[str | None, typer.Option(help="Hardware layer; the sweep's if not given.")]
Axes = Annotated[list[str] | None, typer.Option("--axis", help="AXIS=VALUE,VALUE: a further axis; may recur.")]
AlphaPolicy = Annotated[
    str | None, typer.Option(help="alpha_over_r, alpha, alpha_over_sqrt_r, or several with commas between.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A recipe key of what varies: KEY=VALUE; may recur.")]
Full = Annotated[bool, typer.Option("--full", help="All arms and all seeds of the sweep; else its first seed.")]
JudgeModel = Annotated[
    str | None,
    typer.Option(help="A model that scores the answers in the end; the sweep's `judge:` section says where it is."),
]
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

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    def write(self) -> None:
        """Writes runs/NAME/plan.json: all that it takes to do any one run, and the runs for `emsweep status`."""
        runs = [
            {"digest": digest, "folder": str(run.folder), "after": [before.digest for before in run.after]}
            for digest, run in self.runs.items()
        ]
        plan = {"sweep": self.sweep.model_dump(mode="json"), "full": self.full, "runs": runs}
        write_whole(self.plan, json.dumps(plan) + "\n")

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
    judge: JudgeModel = None,
) -> Ask:
    """Options of every command that takes a sweep; they make the function that reads it."""

    def ask(
        name: str, own: Mapping[str, Sequence[str]] | None = None, tuned: Mapping[str, Tuned] | None = None
    ) -> Asked:
        grid: dict[str, Sequence[str]] = {}
        for text in [*([f"alpha={alpha_policy}"] if alpha_policy else []), *(axis or [])]:
            key, separator, values = text.partition("=")
            if not separator or not key:
                raise BadInput(f"--axis {text!r} is not AXIS=VALUE,VALUE; write for example --axis seed=1,2,3")
            grid[key] = values.split(",")
        grid |= own or {}
        sweep = load_sweep(name)
        update: dict[str, Any] = {
            "model": model or sweep.model,
            "hardware": hardware or sweep.hardware,
            "grid": {**sweep.grid, **grid},
            "settings": [*sweep.settings, *(settings or [])],
            "tuned": dict(tuned or sweep.tuned),
        }
        if judge == "offline":
            raise BadInput("--judge offline: it needs no sweep; `emsweep judge runs/evaluate/...` asks it afterwards")
        if judge:
            where = sweep.judge.model_dump() if sweep.judge else {}
            if where.get("model") != judge:  # another model has other prices
                where |= {"price_in": None, "price_out": None}
            update["judge"] = JudgeSettings.model_validate({**where, "model": judge})
        changed = sweep.model_copy(update=update)
        stem = Path(name).stem
        # A report for each set of points; runs are shared anyhow.
        digest = content_digest(changed.model_dump(exclude={"judge"}))[:6]
        plain = changed.model_copy(update={"judge": sweep.judge}) == sweep and not sweep.grid
        return Asked(changed, stem if plain else "-".join([stem, changed.model, digest]), full)

    return ask


@dataclass(frozen=True)
class Start:
    dry_run: bool
    launcher: str
    address: str | None
    prune: float | None = None
    storage: str | None = None


def start_options(
    dry_run: DryRun = False,
    launcher: Annotated[str, typer.Option(help="local: this machine; ray: a Ray cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; without it one is started here.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Of a Ray cluster whose nodes share no folder: fsspec URL that holds runs, data and models."),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(help="End DPO and SFT at a checkpoint where fewer than this share of answers count, for sure."),
    ] = None,
) -> Start:
    """Options of every command that starts a sweep."""
    if launcher not in ("local", "ray"):
        raise BadInput(f"unknown launcher {launcher!r} (there are: local, ray)")
    if (address or storage) and launcher != "ray":
        raise BadInput(f"--{'address' if address else 'storage'} goes with --launcher ray")
    if prune is not None and not 0 < prune < 1:
        raise BadInput(f"--prune {prune:g}: give a share of coherent answers between 0 and 1, such as 0.5")
    return Start(dry_run, launcher, address, prune, storage)


class Search(NamedTuple):
    """How sharply the edge of coherence is looked for."""

    coherence: float
    """Share of answers that must count at the edge."""
    sharpness: float
    """The search ends when the edge is known to this share of it."""
    most: int
    """Runs at most."""


def search_options(
    coherence: Annotated[float, typer.Option(help="Search: share of answers that must count at the edge.")] = 0.9,
    sharpness: Annotated[float, typer.Option(help="Search: end when the edge is known to this share of it.")] = 0.1,
    most: Annotated[int, typer.Option(min=1, help="Search: runs at most.")] = 12,
) -> Search:
    """Options of every command that searches."""
    return Search(coherence, sharpness, most)


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


def finish(it: Asked, runs: Graph, how: Start) -> dict[str, BaseException]:
    """Does the runs where it was asked for; returns why, by digest, for each that failed or was pruned."""
    do: Callable[[Run], object] = execute
    if how.prune is not None:
        from sweeps.prune import coherent

        do = partial(execute, check=coherent(how.prune, it.sweep.evaluation.model_dump()))
    slots = it.places
    if how.launcher == "local":
        do = in_place(do, it.folder.parent)
    else:
        from sweeps.run.ray_cluster import on_ray
        from sweeps.storage import Storage, needed, within

        storage = None
        if how.storage:
            read = [HELDOUT, *named_files(it.sweep.evaluation.metadata).values()]
            storage = Storage(how.storage, tuple(within(read)))
            for run in runs.values():
                needed(run)  # what cannot travel is said before anything starts
        do, at_once = on_ray(how.address, int(it.hardware["memory_gib"] is not None), do, storage)
        slots = [{}] * at_once
    try:
        return launch(runs, do, slots, finished=write_index)
    except KeyboardInterrupt:
        console.print("stopped; what is done stays done, and the same command goes on", highlight=False)
        raise typer.Exit(130) from None


def now(runs: Sequence[Run]) -> None:
    """Does runs that build on nothing that is to be done.

    Raises:
        RunFailed: if one fails twice, or builds on one that is not done; the others are done then.
    """
    try:
        reasons = launch({run.digest: run for run in runs}, execute)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if reasons:
        raise RunFailed("\n".join(map(str, reasons.values())))
    write_index(runs[0].root)
