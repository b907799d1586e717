"""The report's section on models of different size and training data: the slopes, and what could have been seen."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from eval.stats.measure_names import JUDGED, TASKS, TITLES
from eval.stats.measures import RATES, Seeds, measure
from eval.stats.size import LINES, Models, Outcome, log_odds, not_identified, outcome_slopes
from sweeps.plan.declaration import Point, Sweep
from sweeps.recipe.layers import layer_names, load_layer
from sweeps.report.figures import Model, sizes_figure, slopes_figure
from sweeps.report.page import Section

SAID = {"ratio": "b_P = -b_T (ratio)", "size": "b_T = 0 (size alone)", "data": "b_P = 0 (data alone)"}
CONFOUNDS = (
    "What else differs: families differ in architecture, vocabulary and data, of which only the number of tokens is "
    "known here, not the quality; tokens of an instruction tuning are not counted."
)


def model_of(sweep: Sweep, arm: str) -> str:
    """The short name of the model that an arm, or a base model's point, is of."""
    if arm in sweep.arms:
        return sweep.arms[arm].model or sweep.model
    return arm.removeprefix("base-") if arm.startswith("base-") else sweep.model


def base_of(sweep: Sweep, arm: str) -> str:
    """What the point of the base model of an arm is called; of that point, its own name."""
    return "base" if (model := model_of(sweep, arm)) == sweep.model else f"base-{model}"


def stem_of(sweep: Sweep, arm: str) -> str:
    """An arm's name without its model: the same for the arms that are to be compared over models."""
    return "base" if arm not in sweep.arms else arm.replace(f"-{model_of(sweep, arm)}", "", 1)


def outcomes_of(sweep: Sweep, samples: Mapping[str, Seeds]) -> dict[str, dict[str, float]]:
    """By title the number of each model: judged EM of each trained arm first, then the differences of the claims.

    A rate of an arm is a logit; differences stay in their unit, those of rates too.
    """
    found: dict[str, dict[str, float]] = {}
    trained = [arm for arm in samples if arm in sweep.arms]
    for arm in trained:
        if all(JUDGED in seed for seed in samples[arm].values()):
            tables = [RATES["em_rate"](seed) for seed in samples[arm].values()]
            hits, totals = (sum(float(table[key].sum()) for table in tables) for key in ("hits", "totals"))
            if not totals:  # of no coherent answer there is no rate; half an answer on both sides would make it 50 %
                continue
            title = f"logit EM, {stem_of(sweep, arm)}"
            found.setdefault(title, {})[model_of(sweep, arm)] = log_odds(hits, totals)
    for claim in sweep.claims:
        seeds = [seed for arm in (claim.arm, claim.against) for seed in samples.get(arm, {None: {}}).values()]
        if not all(TASKS[claim.measure] in seed for seed in seeds):
            continue
        title = f"{TITLES[claim.measure]}: {stem_of(sweep, claim.arm)} less {stem_of(sweep, claim.against)}"
        value = measure(claim.measure, samples[claim.arm], samples[claim.against]).estimate.value
        if math.isfinite(value):
            found.setdefault(title, {})[model_of(sweep, claim.arm)] = value
    return {title: values for title, values in found.items() if len(values) > 1}


def models_of(names: Sequence[str]) -> Models:
    """What the tables say of models, by their short names."""
    facts = [load_layer("models", name)["em"] for name in names]
    parameters, tokens = ([float(em[key]) for em in facts] for key in ("non_embedding_parameters", "training_tokens"))
    return Models([str(em["family"]) for em in facts], np.array(parameters), np.array(tokens))


def size_part(sweep: Sweep, points: Sequence[Point], samples: Mapping[str, Seeds]) -> Section | None:
    """The section; None for a sweep of one model, or of models that no table knows, or not by these numbers."""
    names = dict.fromkeys(model_of(sweep, point.arm) for point in points)
    if len(names) < 2 or not set(names) <= set(layer_names("models")):
        return None
    if not all({"non_embedding_parameters", "training_tokens"} <= load_layer("models", n)["em"].keys() for n in names):
        return None
    if not (series := outcomes_of(sweep, samples)):
        return None
    made = {title: (models_of(list(values)), np.array(list(values.values()))) for title, values in series.items()}
    found = outcome_slopes(made)
    lead = next(iter(found or series))
    rows: dict[str, dict[str, list[Model]]] = {}
    for title, (own, ys) in made.items():
        for family, p, t, y in zip(own.families, own.parameters, own.tokens, ys, strict=True):
            rows.setdefault(title, {}).setdefault(family, []).append((p, t, y))
    lines = {SAID[line]: c for line, c in LINES.items()}
    figures = {
        "size-slopes": slopes_figure(lead, found[lead].fit if lead in found else None, lines, rows[lead]),
        "size-outcomes": sizes_figure("By parameters without embeddings, training tokens, and their ratio", rows),
    }
    sentences = [sentence(title, own, found.get(title)) for title, (own, _) in made.items()]
    for title, values in series.items():
        if absent := [name for name in names if name not in values]:
            sentences.append(f"{title}: without {', '.join(absent)}, of which there is no such number.")
    return Section(figures, [*sentences, *confounds(list(names))])


def sentence(title: str, models: Models, outcome: Outcome | None) -> str:
    if outcome is None:
        why = not_identified(models) or "no model differs from the others of its family, as at the floor of a rate"
        return f"{title}: the slopes are not told, for {why}."
    (low_p, high_p), (low_t, high_t) = outcome.fit.interval(0), outcome.fit.interval(1)
    b_p, b_t = outcome.fit.slopes
    lines = [f"{SAID[line]} p = {p:.3f}" for line, p in outcome.p_lines.items()]
    kept = [SAID[line] for line in LINES if not outcome.fit.excludes(line)]
    meets = f"meets {' and '.join(kept)}" if kept else "meets none of the lines"
    least = f"{outcome.fit.smallest(0):.2g} per decade of parameters and {outcome.fit.smallest(1):.2g} of tokens"
    return (
        f"{title}, {len(models.families)} models of {len(set(models.families))} families: b_P = {b_p:.3g} "
        f"[{low_p:.3g}, {high_p:.3g}], b_T = {b_t:.3g} [{low_t:.3g}, {high_t:.3g}] per decade; no effect of either "
        f"p = {outcome.p_none:.3f}, {', '.join(lines)} (permutations within families, after Holm's correction over the "
        f"outcomes). The 95 % region of both slopes {meets}. Slopes of {least} would be seen in 4 of 5 such sweeps by "
        "a t test at 5 %, without that correction."
    )


def confounds(names: Sequence[str]) -> list[str]:
    marked: dict[str, list[str]] = {}
    for name in names:
        for what in load_layer("models", name)["em"].get("confounds", ()):
            marked.setdefault(what, []).append(name)
    return [CONFOUNDS, *(f"{what.capitalize()}: {', '.join(own)}." for what, own in marked.items())]
