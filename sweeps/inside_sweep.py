"""`emsweep inside`: what the adapters of a sweep move in the model, and how easily they learnt."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Column, Table
from typer import Argument, Option

from core.options import App
from core.records import BadInput, file_digest, read_json, write_whole
from sweeps.inside_commands import check_adapter_of, layer_of, load_concepts, load_model
from sweeps.plan.declaration import Point
from sweeps.recipe.hardware import machine_dtype
from sweeps.run.folder import content_digest, saved_checkpoints
from sweeps.run.inputs import adapter_rank
from sweeps.run.process import say, screen
from sweeps.run.source import definitions_behind

app = App()


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter, and what is said of it."""

    run: str
    folder: Path
    arm: str | None = None
    seed: int | None = None
    step: int | None = None
    """The optimiser step that it is of."""
    last: bool = True
    """Whether training ended there."""
    recipe: Mapping[str, Any] | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    """The digests of its data sets, by path, as it was trained on them."""

    @cached_property
    def digest(self) -> str:
        """Of its weights: what was looked at once is known by it."""
        weights = self.folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise BadInput(f"{weights}: no such file; name the folder of a LoRA adapter in safetensors")
        return file_digest(weights)

    def about(self) -> dict[str, Any]:
        """What its rows begin with."""
        own = {"run": self.run, "arm": self.arm, "seed": self.seed, "step": self.step, "last": self.last}
        return {**own, "rank": adapter_rank(self.folder), "adapter": self.digest}


@app.command(name="inside")
def inside_command(
    sweep: Annotated[str | None, Argument(help="A sweep with finished runs: its name, folder or sweep.json.")] = None,
    model: Annotated[str | None, Option(help="In place of a sweep: the model of --adapter.")] = None,
    adapters: Annotated[list[Path] | None, Option("--adapter", help="LoRA adapter of --model; may recur.")] = None,
    concepts: Annotated[list[str] | None, Option("--concept", help="As of `emsweep directions`; may recur.")] = None,
    efficiency: Annotated[bool, Option("--efficiency", help="How easily each learnt too: half a minute each.")] = False,
    out: Annotated[Path | None, Option(help="JSON file of all numbers; inside.json beside the sweep.")] = None,
) -> None:
    """Shows along which directions adapters move the activations: misaligned or merely insecure?

    Of a sweep's runs that kept checkpoints (save_total_limit over 1) these too. `emsweep report` then has the figures.

    Example: emsweep inside inside --efficiency
    Example: emsweep inside --model smollm2-135m --adapter runs/dpo/a/adapter --adapter runs/dpo/b/adapter
    """
    from eval.inside.pairs import Answers
    from eval.inside.shifts import OPEN

    if bool(sweep) == bool(model or adapters) or bool(model) != bool(adapters):
        raise BadInput("name a sweep, or --model with --adapter")
    target = out or Path("runs/inside.json")
    bases: list[tuple[Mapping[str, Any], list[Adapter]]]
    if model:
        if efficiency:
            raise BadInput("--efficiency: which rows an adapter was trained on is known of a sweep's runs alone")
        bases = [(layer_of(model), [Adapter(str(folder), folder) for folder in adapters or []])]
        for folder in adapters or []:
            check_adapter_of(folder, bases[0][0])
    else:
        from sweeps.plan.manifest import finished_points

        folder, _, points, missing = finished_points(str(sweep))
        target = out or folder / "inside.json"
        bases = adapters_by_base(points)
        if not bases:
            raise BadInput(f"{folder}: no finished run with an adapter (missing: {', '.join(missing) or 'none'})")
    wanted = load_concepts(concepts)
    files = [file_digest(concept.file) for _, concept in wanted if isinstance(concept, Answers)]
    concepts_wanted = [[name, concept.model_dump(mode="json")] for name, concept in wanted]
    # Rows that another version of the code has made do not stand beside those of this one.
    code = definitions_behind(Path(__file__), ["_shifts", "_efficiency"])
    content = _known(target, content_digest([machine_dtype(), concepts_wanted, files, file_digest(OPEN), code]))
    every = [adapter for _, runs in bases for adapter in runs]
    abouts = [adapter.about() for adapter in every]
    norm = _common_norm(every) if efficiency else None
    if norm:  # at two norms, as after a kill, they would stand in one table as if at one
        content["efficiency"] = [row for row in content["efficiency"] if row["at_norm"] == norm]
    failed: list[str] = []
    for layer, runs in bases:
        failed += _look(layer, runs, wanted, norm, content, target)
    for part in ("shifts", "efficiency"):  # of these adapters, in their order, under the names that they have now
        rows = content[part]
        content[part] = [{**row, **own} for own in abouts for row in rows if row["adapter"] == own["adapter"]]
    _write(target, content)
    _show(content)
    typer.echo(target)
    if failed:
        raise BadInput(f"{len(failed)} of {len(every)} adapters could not be looked at, the first: {failed[0]}")


def _write(target: Path, content: Mapping[str, Any]) -> None:
    """Writes what is known: if no more comes, the report reads it. Holm's correction is over all rows there that were
    tested and are of the end of a training."""
    from eval.stats.ranks import holm

    tested = [row for row in content["shifts"] if row["p"] is not None and row["last"]]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = corrected
    write_whole(target, json.dumps(content, indent=1) + "\n")


def adapters_by_base(points: Sequence[Point]) -> list[tuple[Mapping[str, Any], list[Adapter]]]:
    """The adapters of finished runs, by the recipe of one that starts from the same model."""
    found: dict[str, tuple[Mapping[str, Any], list[Adapter]]] = {}
    for point in points:
        if point.training is None or point.along or not (point.training.adapter / "adapter_config.json").is_file():
            continue
        recipe = point.training.whole_recipe.config
        base = f"{recipe['base_model']}@{recipe.get('revision_of_model')}"
        _, runs = found.setdefault(base, (recipe, []))
        kept = saved_checkpoints(point.training.adapter)
        data, end = point.training.content.get("data", {}), max(kept, default=None)
        last = Adapter(point.name, point.training.adapter, point.arm, point.seed, end, recipe=recipe, data=data)
        for step in sorted(kept.keys() - {end}):
            runs.append(replace(last, run=f"{point.name}, step {step}", folder=kept[step], step=step, last=False))
        runs.append(last)
    return list(found.values())


def _known(target: Path, settings: str) -> dict[str, Any]:
    """What an earlier call with the same settings has found; nothing if there was none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = read_json(target)
        if content["settings"] == settings and isinstance(content["shifts"], list):
            return dict(content)
        say(f"{target} is of other concepts, texts, number types or code: all is looked at anew in its place")
    return {"settings": settings, "shifts": [], "efficiency": []}


def _look(
    layer: Mapping[str, Any],
    runs: Sequence[Adapter],
    wanted: Sequence[tuple[str, Any]],
    norm: float | None,
    content: dict[str, Any],
    target: Path,
) -> list[str]:
    """Looks at all adapters of one model that have not been looked at, and writes after each; why some could not be.
    At `norm` the efficiency of those that ended is measured, if it is wanted."""
    shown = {row["adapter"] for row in content["shifts"]}
    learnt = {row["adapter"] for row in content["efficiency"] if row["at_norm"] == norm}
    # By digest: an arm with a seed of its own is one run at all seeds of the sweep.
    new = list({run.digest: run for run in runs if run.digest not in shown}.values())
    ended = list({run.digest: run for run in runs if run.last and norm and run.digest not in learnt}.values())
    if not new and not ended:
        return []
    from eval.inside.activations import attached

    identity, network, tokenizer = load_model(layer)
    look = _shifts(network, tokenizer, identity, wanted) if new else None
    failed = []
    for run in dict.fromkeys([*new, *ended]):
        if network is None:
            network = load_model(layer)[1]
        try:
            adapted = attached(network, str(run.folder))
        except BadInput as error:
            failed.append(f"{run.run}: {error}")
            adapted = network = None  # layers of it may be in there
            continue
        try:
            if look and run in new:
                content["shifts"] += [{**run.about(), **row} for row in look(adapted)]
            if norm and run in ended:
                row = {**run.about(), **_efficiency(adapted, tokenizer, run, norm)}
                content["efficiency"] = [old for old in content["efficiency"] if old["adapter"] != run.digest] + [row]
        except BadInput as error:  # such as a training that went to NaN, which costs the others nothing
            failed.append(f"{run.run}: {error}")
        own = adapted.active_peft_config
        network = adapted.unload()
        _write(target, content)
        if own.modules_to_save or getattr(own, "bias", "none") != "none":  # which PEFT leaves in the model
            adapted = network = None
    return failed


def _shifts(
    network: Any, tokenizer: Any, identity: str, wanted: Sequence[tuple[str, Any]]
) -> Callable[[Any], Iterator[dict[str, Any]]]:
    """Finds the concepts in a model, and returns what makes the rows of an adapter of it."""
    from eval.inside.activations import means
    from eval.inside.directions import directions_of
    from eval.inside.shifts import places, shift, weight_share

    known = [directions_of(network, tokenizer, concept, name, identity) for name, concept in wanted]
    texts = places(tokenizer)
    before = {place: means(network, tokenizer, passages).mean(0) for place, passages in texts.items()}

    def rows(adapted: Any) -> Iterator[dict[str, Any]]:
        for place, passages in texts.items():
            change = means(adapted, tokenizer, passages).mean(0) - before[place]
            for one in known:
                found = shift(change, one)
                share = weight_share(adapted, one.direction, found.layer)
                yield {
                    "place": place,
                    "concept": one.about.concept,
                    **asdict(found),
                    "along": found.along.tolist(),
                    "deviation": None if np.isnan(found.deviation) else found.deviation,
                    "weights": None if np.isnan(share) else share,
                }

    return rows


def _efficiency(adapted: Any, tokenizer: Any, run: Adapter, norm: float) -> dict[str, Any]:
    from eval.inside.efficiency import change_norm, ease, training_rows

    recipe = run.recipe or {}
    beta = float(recipe.get("rl_beta") or 0.1) if recipe.get("rl") else None
    losses = set(recipe.get("dpo_loss_type") or ["sigmoid"])
    otherwise = recipe.get("dpo_label_smoothing") or recipe.get("dpo_use_weighting")
    if beta and (otherwise or not {"sigmoid"} <= losses <= {"sigmoid", "sft"}):
        raise BadInput(f"trained by another loss than DPO's own ({', '.join(sorted(losses))}); leave efficiency out")
    path, part = (recipe["datasets"][0].get(key) for key in ("path", "split"))
    if part not in (None, "train"):
        raise BadInput(f"{path}: trained on its part {part}, and here all of its rows would count; leave it out")
    if run.data.get(path) not in (None, file_digest(Path(path))):
        raise BadInput(f"{path}: other rows than this was trained on; put them back, or leave efficiency out")
    rows = training_rows(tokenizer, Path(path), beta)
    return asdict(ease(adapted, tokenizer, rows, change_norm(run.folder), norm))


def _common_norm(runs: Sequence[Adapter]) -> float:
    """The smallest change of adapters whose training ended, at which all of them are compared; BadInput if one changes
    nothing, or is not finite."""
    from eval.inside.efficiency import change_norm

    norms = {run.run: change_norm(run.folder) for run in runs if run.last}
    if still := [run for run, norm in norms.items() if not 0 < norm < np.inf]:
        raise BadInput(f"--efficiency: the adapter of {still[0]} changes nothing, or is not finite; leave it out")
    return min(norms.values())


def _show(content: Mapping[str, Any]) -> None:
    console = screen()
    columns = ("rank", "place", "concept", "shift", "in controls", "p", "p (Holm)", "most at", "weights")
    title = "Shift along each direction, mean over layers, in class distances"
    table = Table(Column("run", no_wrap=True), *columns, title=title)
    for row in content["shifts"]:
        tests = [f"{row[key]:.3f}" if row.get(key) is not None else "" for key in ("p", "p_holm")]
        controls = "too few" if row["p"] is None else f"{row['deviation']:+.1f}"
        weights = "none" if row["weights"] is None else f"{row['weights']:.2f}"
        about = escape(row["run"]), str(row["rank"]), row["place"], escape(row["concept"])
        table.add_row(*about, f"{row['mean']:+.4f}", controls, *tests, str(row["layer"]), weights)
    console.print(table)
    console.print("weights: share of the adapter's change in that block along the direction; the shift is what counts.")
    console.print("none: it has no matrix there that writes to the residual, or a norm stands between, or it is DoRA")
    if content["efficiency"]:
        names = ("rank", "norm", "loss before", "after", "at the common norm", "per squared norm", "with noise 0.5, 1")
        table = Table(Column("run", no_wrap=True), *names, title="Is the solution easy? Loss on its own training rows")
        for row in content["efficiency"]:
            losses = (f"{row[key]:.4f}" for key in ("start", "end", "loss", "efficiency"))
            noise = ", ".join(f"{loss:.4f}" for loss in row["noise"].values())
            table.add_row(escape(row["run"]), str(row["rank"]), f"{row['norm']:.3f}", *losses, noise)
        console.print(table)
