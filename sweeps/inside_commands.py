"""The commands of `emsweep` that look inside a model: directions of concepts, steering, projections of data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from rich.markup import escape
from rich.table import Column, Table
from typer import Argument, Option

from core.options import App, takes
from core.partial import Partial
from core.records import BadInput, check_apart, file_digest, one_line, printable, write_records, write_whole
from eval.judge.judge import judge_for
from eval.judge.settings import JudgeSettings, Judging
from eval.stats.intervals import Estimate, mean_interval
from sweeps.recipe.hardware import machine_dtype
from sweeps.recipe.layers import layer_names, load_layer
from sweeps.run.folder import content_digest
from sweeps.run.inputs import chat_template, check_trained_on, is_local
from sweeps.run.process import screen
from sweeps.run.source import definitions_behind

app = App()

ModelName = Annotated[str, Argument(help="Short name of a model, folder or hub id.")]
Adapter = Annotated[Path | None, Option(help="Folder of a LoRA adapter of MODEL.")]
DirectionFile = Annotated[Path, Option(help="File of `emsweep directions`, or a published .pt file.")]
LayerNumber = Annotated[int | None, Option(help="Residual behind so many blocks; the file's own if not given.")]


def load_model(layer: Mapping[str, Any], adapter: Path | None = None) -> tuple[str, Any, Any]:
    """(what identifies it, model, tokenizer) of the model of a layer or recipe, with its revision and chat template;
    BadInput if it cannot be loaded, or the adapter is another model's."""
    from eval.inside.activations import load
    from eval.inside.vectors import model_digest

    if adapter:
        check_adapter_of(adapter, layer)
    checkpoint, revision = str(layer["base_model"]), layer.get("revision_of_model")
    model, tokenizer = load(checkpoint, machine_dtype(), str(adapter) if adapter else None, revision)
    tokenizer.chat_template = chat_template(layer) or tokenizer.chat_template
    return model_digest(checkpoint, revision), model, tokenizer


def check_adapter_of(adapter: Path, layer: Mapping[str, Any]) -> None:
    """Refuses an adapter of another model than a layer's.

    PEFT puts it into any model whose shapes agree, as those of a model before and after CPT do.
    """
    base = str(layer["base_model"])
    check_trained_on(adapter, base, None if is_local(base) else str(layer.get("revision_of_model") or "main"))
    if not (adapter / "adapter_model.safetensors").is_file():
        raise BadInput(f"{adapter}: no adapter_model.safetensors; name the folder of a LoRA adapter in safetensors")


def layer_of(name: str) -> Mapping[str, Any]:
    """The model layer of a short name; of a folder or hub id, one that names it alone."""
    return load_layer("models", name) if name in layer_names("models") else {"base_model": name}


def load_concepts(names: Sequence[str] | None) -> list[tuple[str, Any]]:
    """(name, concept) of each that is named, misaligned and insecure if none is; BadInput if there is no such concept,
    or two have one name."""
    from eval.inside.pairs import load_concept

    loaded = [load_concept(name) for name in names or ["misaligned", "insecure"]]
    if len({name for name, _ in loaded}) < len(loaded):
        raise BadInput("--concept: two of one name, which nothing would tell apart; leave one out or rename its file")
    return loaded


def _with_direction(model: str, adapter: Path | None, file: Path, layer: int | None) -> tuple[str, Any, Any, Any, int]:
    """What identifies the model, the model, its tokenizer, the directions of a file, and the index that is meant."""
    from eval.inside.activations import residual_shape
    from eval.inside.vectors import chosen_layer, read_directions

    identity, network, tokenizer = load_model(layer_of(model), adapter)
    known = read_directions(file, residual_shape(network), identity)
    return identity, network, tokenizer, known, chosen_layer(file, known, layer)


def _check_out(out: Path | None, *inputs: Path) -> None:
    """Refuses a folder, or a file that is read, as --out: at the end it would be too late."""
    if out and out.is_dir():
        raise BadInput(f"--out {out}: is a folder; name a file")
    if out:
        check_apart(out, *inputs)


def _so_far(target: Path, settings: str) -> Partial:
    """The results of a file until it is written; another call's, of other settings, stand elsewhere."""
    return Partial(target.with_name(f"{target.name}.{settings[:6]}.part"), settings)


def _adapted(adapter: Path | None) -> dict[str, Any]:
    """The adapter, and the digests of its weights and of what scales them, for a manifest."""
    if adapter is None:
        return {"adapter": None, "adapter_sha256": []}
    names = ("adapter_model.safetensors", "adapter_config.json")
    return {"adapter": str(adapter), "adapter_sha256": [file_digest(adapter / name) for name in names]}


def _interval(estimate: Estimate | None, digits: int = 2) -> str:
    return estimate.words(f"+.{digits}f") if estimate else "not estimable"


@app.command(name="directions")
@takes(Judging)
def directions_command(
    judging: Judging,
    model: ModelName,
    concepts: Annotated[
        list[str] | None, Option("--concept", help="Of eval/inside/concepts, or a YAML or JSON file; may recur.")
    ] = None,
    position: Annotated[str | None, Option(help="Tokens averaged: answer, prompt (its last), changed (lines).")] = None,
    group: Annotated[str | None, Option(help="What is held out together, such as id, cwe or domain.")] = None,
    tokens: Annotated[
        int | None, Option(min=1, help="Tokens of a sampled answer, for traits at `answer` (64).")
    ] = None,
    judge: Annotated[str | None, Option(help="Model that keeps the sampled answers that show their trait.")] = None,
    out: Annotated[Path | None, Option(help="Folder of the files; runs/directions/MODEL if not given.")] = None,
    gguf: Annotated[bool, Option("--gguf", help="Control vectors for llama.cpp too.")] = False,
    neurons: Annotated[bool, Option("--neurons", help="Compare concepts by MLP neurons too: another pass.")] = False,
) -> None:
    """Finds where concepts lie in a model, tests them on groups left out, and compares them.

    Example: emsweep directions smollm2-135m --concept misaligned --concept insecure
    """
    from eval.inside import pairs
    from eval.inside.activations import means
    from eval.inside.directions import FEW, directions, held_out, standardised
    from eval.inside.pairs import Position, Trait, class_texts
    from eval.inside.traits import kept
    from eval.inside.vectors import About, write_directions, write_gguf

    if position and position not in get_args(Position):
        raise BadInput(f"--position {position}: there are {', '.join(get_args(Position))}")
    loaded = load_concepts(concepts)
    sampling = {name: one for name, one in loaded if isinstance(one, Trait) and (position or one.position) == "answer"}
    if not sampling and (tokens or judge):
        option = "--tokens" if tokens else "--judge"
        raise BadInput(f"{option}: nothing is sampled here; it goes with a trait and --position answer")
    chosen = _trait_judge(judge, judging, sampling)
    if neurons and len(loaded) < 2:
        raise BadInput("--neurons: compares concepts; name two or more")
    # The whole path: the folder of a merged model is called `merged`, whatever was merged.
    folder = out or Path("runs/directions") / "-".join(part for part in Path(model).parts if part.strip("./"))
    files = {name: folder / f"{name}.judged.jsonl" for name in sampling if chosen}
    _check_directions(folder, loaded, concepts or [], position, dict.fromkeys(files, chosen.label) if chosen else {})
    if chosen:
        chosen.count(list(files.values()))
    identity, network, tokenizer = load_model(layer_of(model))
    # Kept, for another judge of the same answers; a GPU would not sample them again to the letter.
    code = definitions_behind(Path(str(pairs.__file__)), ["sample_answers"])
    sampled = Partial(folder / "sampled.jsonl", content_digest([identity, machine_dtype(), code])) if sampling else None
    found, by_neuron, summary = [], [], {}
    columns = ("position", "pairs", "groups", "layer", "AUC", "embeddings", "gain (95 %)", "flipped", "p")
    table = Table(Column("concept", no_wrap=True), *columns, title="Held-out AUC")
    for name, concept in loaded:
        place: Any = position or concept.position
        keep = partial(kept, name=name, judge=chosen, out=files[name]) if name in files else list
        texts, made_of = class_texts(network, tokenizer, concept, place, group, tokens or 64, keep, sampled)
        groups = [pair.group for pair in made_of]
        positive, negative = (means(network, tokenizer, side) for side in texts)
        tested = held_out(positive, negative, groups)
        asked = chosen.label if name in files else None
        about = About(model=identity, concept=name, position=place, pairs=len(groups), judge=asked, layer=tested.layer)
        one = directions(positive, negative, groups, about)
        if neurons:
            sides = [means(network, tokenizer, side, neurons=True) for side in texts]
            by_neuron.append(directions(*standardised(*sides), groups, about))
        digests: dict[str, list[str]] = {}
        for pair in made_of:
            digests.setdefault(pair.group, []).extend(pair.digests)
        write_directions(folder / f"{name}.safetensors", replace(one, texts=digests))
        if gguf:
            write_gguf(folder / f"{name}.gguf", one, network.config.model_type)
        found.append(one)
        summary[name] = {**one.about.model_dump(), **asdict(tested), "auc": tested.auc.tolist()}
        counts = str(len(groups)), str(len(one.about.groups)), str(tested.layer)
        areas = f"{tested.auc[tested.layer]:.3f}", f"{tested.auc[0]:.3f}", _interval(tested.gain)
        few = ("too few", f"under {FEW} groups")
        null = few if tested.null is None else (f"{tested.null:.3f}", f"{tested.p:.3f}")
        table.add_row(escape(name), place, *counts, *areas, *null)
    screen().print(table)
    screen().print("layer N is the residual behind N blocks; flipped: median of the highest AUC of any layer")
    content = {
        "concepts": summary,
        "crossover": _crossings(found, "Crossover"),
        "neurons": _crossings(by_neuron, "Crossover of the MLPs' neurons, by standardised differences"),
    }
    write_whole(folder / "directions.json", json.dumps(content, indent=1) + "\n")
    typer.echo(folder)


def _check_directions(
    folder: Path,
    loaded: Sequence[tuple[str, Any]],
    given: Sequence[str],
    position: str | None,
    judges: Mapping[str, str],
) -> None:
    """Refuses, before a model runs, a folder in which directions would replace what is read, or others."""
    from eval.inside.pairs import Answers
    from eval.inside.vectors import about_of

    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--out {folder}: is a file; name a folder")
    read = [*map(Path, given), *(concept.file for _, concept in loaded if isinstance(concept, Answers))]
    check_apart(folder / "directions.json", *read)
    for name, concept in loaded:
        about = about_of(folder / f"{name}.safetensors")
        own = (position or concept.position, judges.get(name))
        if about and (about.position, about.judge) != own:
            made = f"of the position {about.position}{f' by {printable(about.judge)}' if about.judge else ''}"
            raise BadInput(f"{folder / name}.safetensors: is {made}; name another --out")


def _trait_judge(model: str | None, judging: Judging, traits: Mapping[str, Any]) -> Any:
    """Who keeps the sampled answers of traits, if anyone; asked for nothing yet. BadInput if there is no key for it, a
    trait has nothing to be judged by, or an option goes with no judge."""
    if not model:
        if odd := [name for name, value in judging if value != Judging.model_fields[name].default]:
            raise BadInput(f"--{odd[0].replace('_', '-')}: is of the judge; name one with --judge")
        return None
    from eval.inside.traits import trait_judge

    return trait_judge(judge_for(JudgeSettings(model=model, **dict(judging))), traits)


def _crossings(found: Sequence[Any], title: str) -> dict[str, Any]:
    """The crossover of each two concepts at each index, shown at some of them."""
    from eval.inside.directions import crossover

    table = Table("concepts", "layer", "share of signal", "raw cosine", "cosine (95 %)", title=title)
    crossings = {}
    for one, other in combinations(found, 2):
        names = f"{one.about.concept} {other.about.concept}"
        row = [crossover(one, other, n) for n in range(1, len(one.direction))]
        crossings[names] = [asdict(crossing) for crossing in row]
        for crossing in row[:: max(1, len(row) // 6)]:
            shares = " ".join(f"{share:.2f}" for share in crossing.shares)
            raw, cosine = f"{crossing.raw:+.2f}", _interval(crossing.cosine)
            table.add_row(escape(names), str(crossing.layer), shares, raw, cosine)
    if crossings:
        screen().print(table)
    return crossings


@app.command(name="steer")
def steer_command(
    model: ModelName,
    direction: DirectionFile,
    layer: LayerNumber = None,
    doses: Annotated[str, Option(help="Class distances to add, with commas between.")] = "-1,1",
    adapter: Adapter = None,
    concept: Annotated[str, Option(help="Whose answers' preference is measured.")] = "misaligned",
    group: Annotated[str | None, Option(help="What the direction is made without; as of `emsweep directions`.")] = None,
    controls: Annotated[int, Option(min=0, max=100, help="Flipped-label directions to dose beside it.")] = 5,
    limit: Annotated[int | None, Option(min=1, help="Pairs, to try things out.")] = None,
    out: Annotated[Path | None, Option(help="JSON Lines of the doses; beside the direction if not given.")] = None,
) -> None:
    """Adds a direction to the residual and measures which answers the model then prefers. Killed, it goes on.

    Example: emsweep steer smollm2-135m --direction runs/directions/smollm2-135m/misaligned.safetensors --doses -1,1
    """
    import pandas as pd

    from eval.inside import steering
    from eval.inside.directions import FEW, halves
    from eval.inside.pairs import Answers, load_concept, load_pairs
    from eval.tasks.em.scores import rate_values

    try:
        amounts = [float(dose) for dose in doses.split(",")]
    except ValueError:
        raise BadInput(f"--doses {doses}: give numbers with commas between, such as -1,1") from None
    if not np.isfinite(amounts).all():
        raise BadInput(f"--doses {doses}: a dose is a finite number")
    name, wanted = load_concept(concept)
    if not isinstance(wanted, Answers):
        raise BadInput(f"--concept {concept}: a trait has no answers to prefer; take one with answers")
    _check_out(out, direction, wanted.file, Path(concept))
    identity, network, tokenizer, known, at = _with_direction(model, adapter, direction, layer)
    pairs = load_pairs(wanted, tokenizer, group)
    own = known.about.groups
    regrouped = name == known.about.concept and own and not any(pair.group in own for pair in pairs)
    if steering.not_left_out(pairs, known) or (regrouped and not known.texts):
        # Each pair would meet a direction that it is itself part of, and any direction would seem to work.
        raise BadInput(
            f"{direction}: its groups, such as {one_line(next(iter(own)), 60)!r}, are not those of these pairs; give "
            "the --group that `emsweep directions` was given, or pairs that it is not made of"
        )
    pairs = pairs[:: max(1, len(pairs) // limit)][:limit] if limit else pairs
    found = steering.slopes(steering.gradients(network, tokenizer, pairs), pairs, known)
    console = screen()
    table = Table("layer", "slope", "sd of controls", "slope in sd", title="Slope of log odds, nats per byte and dose")
    for number, (slope, deviation) in enumerate(zip(found.direction, found.deviations, strict=True)):
        spread = f"{found.controls[:, number].std(ddof=1):.5f}" if len(found.controls) else "too few groups"
        table.add_row(str(number), f"{slope:+.5f}", spread, f"{deviation:+.1f}")
    console.print(table)
    about = {"model": identity, "direction": file_digest(direction), "layer": at, **_adapted(adapter), "concept": name}
    about |= {"rows": file_digest(wanted.file), "group": group, "pairs": len(pairs), "controls": controls}
    about["doses"] = amounts
    code = definitions_behind(Path(steering.__file__), ["preferences", "response"])
    settings = content_digest([about, [asdict(pair) for pair in pairs], machine_dtype(), code])
    target = out or direction.with_suffix(f".steered-{settings[:6]}.jsonl")
    kept = _so_far(target, settings)
    plain = np.array(kept.of("plain", lambda: steering.preferences(network, tokenizer, pairs).tolist()))
    groups = len(known.about.groups)
    flips = halves(groups, controls if groups >= FEW else 0)
    columns = ("direction", "dose", "change of log odds (95 %)")
    table = Table(*columns, title=f"Doses at layer {at}, over {len(pairs)} pairs")

    def steered(dose: float | None, labels: Any) -> list[float]:
        preferred: list[float] = steering.response(network, tokenizer, pairs, known, at, dose, labels).tolist()
        return preferred

    rows = []
    dosed = [(known.about.concept, None), *((f"flipped {n}", row) for n, row in enumerate(flips, 1))]
    for (title, labels), dose in product(dosed, [*amounts, None]):
        change = np.array(kept.of(f"{title} {dose}", partial(steered, dose, labels))) - plain
        parts = pd.DataFrame({"hits": change, "totals": 1}).groupby([pair.group for pair in pairs]).sum()
        by_group = rate_values(parts)  # their mean is that over the pairs, as the slopes are
        interval = mean_interval(by_group.to_numpy()) if len(by_group) > 1 else None
        table.add_row(escape(title), "taken out" if dose is None else f"{dose:+g}", _interval(interval, 5))
        value = asdict(interval) if interval else {"value": change.mean()}
        rows.append({"direction": title, "dose": dose, **value})
    about |= {"slopes": found.direction.tolist(), "slopes_of_controls": found.controls.tolist()}
    write_records(target, rows, about)
    kept.end()
    console.print(table)
    typer.echo(target)


@app.command(name="project")
def project_command(
    file: Annotated[Path, Argument(help="JSON Lines of chat messages, DPO rows or texts.")],
    direction: DirectionFile,
    model: Annotated[str, Option(help="Short name of a model, folder or hub id.")] = "smollm2-135m",
    layer: LayerNumber = None,
    adapter: Adapter = None,
    out: Annotated[Path | None, Option(help="JSON Lines of the projections; beside FILE if not given.")] = None,
    top: Annotated[int, Option(min=0, help="Rows to print.")] = 10,
) -> None:
    """Projects a data set's answers on a direction, to find the rows that lean to a concept before training on them.

    Example: emsweep project data/sft-insecure.jsonl --direction runs/directions/smollm2-135m/misaligned.safetensors
    """
    from eval.inside import project as projecting

    _check_out(out, direction, file)
    identity, network, tokenizer, known, at = _with_direction(model, adapter, direction, layer)
    adapted = _adapted(adapter)
    behind = [identity, file_digest(direction), at, adapted, file_digest(file), machine_dtype()]
    code = definitions_behind(Path(projecting.__file__), ["project"])
    settings = content_digest([*behind, tokenizer.chat_template, code])
    target = out or file.with_suffix(f".projected-{settings[:6]}.jsonl")
    kept = _so_far(target, settings)
    found = projecting.project(network, tokenizer, file, known, at, kept)
    manifest = {"input": str(file), "direction": known.about.model_dump(), "layer": at, **adapted}
    notes = []
    if known.about.model is None:
        notes.append("a published file has no midpoint: levels mean nothing, differences between rows do")
    if known.about.position == "changed":
        notes.append("the direction is of lines in which twins differ: rows have none, whole answers are projected")
    manifest |= {"read": len(found.projections) + len(found.rejects), "rejects": found.rejects, "notes": notes}
    write_records(target, found.projections, manifest)
    kept.end()
    values = np.array([row["projection"] for row in found.projections])
    console = screen()
    table = Table("line", "projection", "answer", title=f"Highest along {escape(known.about.concept)} at layer {at}")
    for row in sorted(found.projections, key=lambda row: -row["projection"])[:top]:
        start = escape(printable(row["answer"][:80]).replace("\n", " "))
        table.add_row(str(row["line"]), f"{row['projection']:+.2f}", start)
    console.print(table)
    console.print(f"mean {values.mean():+.3f}, sd {values.std():.3f}, {len(found.rejects)} rejects", highlight=False)
    for note in notes:
        console.print(note)
    typer.echo(target)
