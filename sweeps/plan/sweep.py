"""The runs that a declared sweep stands for."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from core.records import BadInput
from sweeps.plan.declaration import Arm, Point, Sweep, declared_keys, left_out
from sweeps.recipe.compose import compose, in_folder
from sweeps.recipe.layers import Recipe, layer_names, learns_preferences, load_layer
from sweeps.recipe.memory import GIB, Shape, evaluation_batch
from sweeps.recipe.precision import cpu_dtype
from sweeps.recipe.refusals import of_dpo
from sweeps.recipe.settings import given_settings
from sweeps.run.evaluate import PROGRAMS, at_point, evaluation_run, of_checkpoint
from sweeps.run.folder import MergeRun, Run, TrainingRun, merge_run, save_step
from sweeps.run.graph import with_all_before
from sweeps.run.train import training_run
from sweeps.run.vllm import adapts
from sweeps.run.workload import steps_of

ROOM = 1.25
"""Memory over that of the weights with which a model is evaluated."""
QLORA = ["adapter=qlora", "load_in_4bit=true"]
FITTING = {"adapter", "load_in_4bit", "sequence_len", "em.memory_gib"}
"""Recipe keys that `--set` sets in every arm, not only in those that vary: what a refusal names as its remedy."""


def _settings_for(sweep: Sweep, arm: Arm) -> list[str]:
    """The sweep's settings that concern an arm: none of DPO alone where it trains otherwise."""
    chosen = [setting for setting in sweep.settings if arm.vary or given_settings([setting]).keys() <= FITTING]
    return [setting for setting in chosen if learns_preferences(arm.stage) or not of_dpo(setting)]


def graph(points: Iterable[Point]) -> dict[str, Run]:
    """The runs of all points, by digest, in an order in which they can be executed."""
    return with_all_before(run for point in points for run in (point.training, point.evaluation) if run)


def plan(sweep: Sweep, full: bool) -> list[Point]:
    """All points of a sweep, the base models first, in an order in which they can be executed.

    What has the same content is the same run, whatever its arms are called. A CPT that other arms start from is
    evaluated as the merged model that they start from.
    """
    evaluation_settings = sweep.evaluation.model_dump()
    gib = sweep.memory_gib
    if gib is None:
        evaluation_settings["dtype"] = cpu_dtype()
    if sweep.data:
        named = sweep.evaluation.metadata
        for key, (variable, path) in PROGRAMS.items():
            if (own := os.environ.get(variable)) and str(named.get(key, own)) == own:
                raise BadInput(
                    f"{variable} and the folder of the sets, {sweep.data}, name two of {path}; unset {variable}"
                )
        files = {key: in_folder(str(named.get(key, path)), sweep.data) for key, (_, path) in PROGRAMS.items()}
        evaluation_settings["metadata"] = named | files
    bases: dict[str, Run] = {}
    points: list[Point] = []
    made: dict[str, Any] = {}
    for model in dict.fromkeys([sweep.model, *(arm.model or sweep.model for arm in sweep.arms.values())]):
        cards = _cards(model, sweep)
        _check_room(model, sweep, cards)
        if sweep.evaluation.batch_size is None:
            em, share = load_layer("models", model)["em"], gib and gib / sweep.per_gpu
            evaluation_settings["batch_size"] = evaluation_batch(Shape(**em["shape"]), em["parameters"] // cards, share)
        own_backend = {} if adapts(load_layer("models", model)) else {"backend": "hf"}
        about = {"model": model, "hardware": sweep.hardware, **({"gpus": cards} if cards > 1 else {})}
        run = evaluation_run("base", model, sweep.tasks, **{**evaluation_settings, **own_backend})
        bases[model] = replace(run, about=about)
        points.append(Point("base" if model == sweep.model else f"base-{model}", None, None, bases[model]))
    starts = {arm.start for arm in sweep.arms.values()}
    for seed in sweep.seeds if full or "seed" in sweep.grid else sweep.seeds[:1]:
        merges: dict[str, MergeRun | None] = {}
        for name, arm in sweep.arms.items():
            if arm.full and not full:
                continue
            if left_out(sweep, arm):
                merges[name] = None
                continue
            own_seed = seed + arm.seed_offset if arm.seed is None else arm.seed
            keys = {**declared_keys(sweep, arm), "seed": own_seed, "datasets.0.path": arm.data}
            # Alone a run fills its card, in large batches and without recomputation.
            part = {"em.memory_gib": gib / sweep.per_gpu} if gib and sweep.per_gpu > 1 else {}
            try:
                recipe = arm_recipe(sweep, arm, {**part, **keys})
            except BadInput as error:
                if not part:
                    raise BadInput(f"arm {name}: {error}") from None
                recipe = arm_recipe(sweep, arm, keys)  # Request.places says how many fit
            called = f"{name}-seed{seed}"
            trained = training_run(called, recipe, start=merges[arm.start] if arm.start else None)
            trained = made.setdefault(trained.digest, replace(trained, checkpoints=sweep.checkpoints))
            if name in starts:
                merged = merge_run(trained)
                merges[name] = made.setdefault(merged.digest, merged)
            base, checkpoint_run = bases[arm.model or sweep.model], merges.get(name) or trained
            evaluation = of_checkpoint(base, checkpoint_run, called)
            points.append(Point(name, seed, trained, made.setdefault(evaluation.digest, evaluation)))
            if sweep.checkpoints > 1:
                _check_checkpoints(trained)
            for along in ((place, sweep.checkpoints) for place in range(1, sweep.checkpoints)):
                midway = at_point(of_checkpoint(base, trained, called), *along)
                points.append(Point(name, seed, trained, made.setdefault(midway.digest, midway), along))
    return points


def arm_recipe(sweep: Sweep, arm: Arm, keys: Mapping[str, Any] | None = None, gpus: int | None = None) -> Recipe:
    """The recipe of an arm: with the keys that are declared, if no others are given, on the sweep's cards."""
    return compose(
        arm.stage,
        arm.model or sweep.model,
        sweep.hardware,
        _settings_for(sweep, arm),
        arm.rank,
        extra=declared_keys(sweep, arm) if keys is None else keys,
        engine=arm.engine,
        gpus=gpus or sweep.gpus,
        variant=arm.variant,
        data=sweep.data,
    )


def _check_checkpoints(run: TrainingRun) -> None:
    """Refuses more points of training than it has steps for, and a run that is done and has not kept its adapters."""
    count, known = run.checkpoints, steps_of(run.recipe.config, int(run.recipe.em.get("gpus", 1)))
    if run.done and not all(run.checkpoint(place, count).is_dir() for place in range(1, count)):
        why = f"{run.folder} was trained without keeping them; delete it, and it is trained again"
        raise BadInput(f"checkpoints {count}: {why}")
    if known and save_step(known[0], count) * (count - 1) >= known[0]:
        why = f"{run.stage} {run.name} has {known[0]} steps, too few to part so; take fewer"
        raise BadInput(f"checkpoints {count}: {why}")


def _check_room(model: str, sweep: Sweep, cards: int) -> None:
    """Refuses a model whose weights the cards do not hold in bf16, as it is evaluated; training may take less."""
    gib = sweep.memory_gib
    if not gib or (need := evaluation_gib(model)) <= cards * gib or "em.memory_gib" in given_settings(sweep.settings):
        return
    fitting = (
        " ".join([f"--gpus {n}", *(f"--set {setting}" for setting in more)])
        for more in ([], QLORA, [*QLORA, "sequence_len=512"])
        for n in (2, 4, 8)
        if need <= n * gib and _trains(sweep.model_copy(update={"settings": [*sweep.settings, *more]}), model, n)
    )
    ways = [*islice(fitting, 1)]
    sizes = {name: load_layer("models", name)["em"]["parameters"] for name in layer_names("models")}
    # Half of the memory for the weights leaves room to train at the ranks of a sweep.
    ways += [f"model {max((size, name) for name, size in sizes.items() if 4 * size <= gib * GIB)[1]}"]
    raise BadInput(
        f"{model} does not fit {sweep.hardware} when it is evaluated: its weights take {2 * sizes[model] / GIB:.0f} of"
        f" {gib:g} GiB; what would fit: {', or '.join(ways)} (--set em.memory_gib=null does not ask)"
    )


def _trains(sweep: Sweep, model: str, gpus: int) -> bool:
    """Whether all arms of a model fit so many cards."""
    try:
        for arm in sweep.arms.values():
            if (arm.model or sweep.model) == model:
                arm_recipe(sweep, arm, gpus=gpus)
    except BadInput:
        return False
    return True


def evaluation_gib(model: str) -> float:
    """Memory in which a model, by its short name, is evaluated at least: its weights in bf16, with `ROOM`."""
    return ROOM * 2 * float(load_layer("models", model)["em"]["parameters"]) / GIB


def _cards(model: str, sweep: Sweep) -> int:
    """How many of a run's cards an evaluation needs: one unless the weights, with a quarter more, want several."""
    limit = sweep.memory_gib
    need = evaluation_gib(model)
    return next((n for n in (1, 2, 4) if not limit or (need <= n * limit and n <= sweep.gpus)), sweep.gpus)
