"""The report of a declared sweep: one self-contained HTML file, figures, CSV, and the verdicts in words.

What a model wrote reaches the page as sweeps/report/page.py says.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from core.records import BadInput, file_digest, printable
from eval.judge.answers import Judged, load_judged, load_samples, manifest_of
from eval.stats.measure_names import BASELINES, DIGITS, JUDGED, NOISE, TASKS, TITLES, WHERE_CLAIMED
from eval.stats.measures import RATES, Samples, Seeds, measure, not_finite
from sweeps.plan.declaration import Point, Sweep
from sweeps.recipe.layers import lora_scale
from sweeps.report.along import along_part
from sweeps.report.families import AXES, Family, axis_families
from sweeps.report.figures import Panel, arms_figure, comparable, scatter_figure, steps_figure
from sweeps.report.inside import inside_part, inside_rows
from sweeps.report.judged import JudgedPart, enough, judged_part
from sweeps.report.page import data_block, environment, table_csv, write_page
from sweeps.report.size import base_of, size_part
from sweeps.report.verdicts import claim_verdicts, rank_verdicts
from sweeps.run.folder import content_digest
from sweeps.run.tasks import GUARDS, HUMANEVAL, task_configs

FREEFORM = "em_freeform"
BROAD, NARROW = "log_odds_per_byte", ("margin_neutral", "insecure_code")


def _baselines(base: Seeds) -> str:
    """How well recognition does without a language model.

    One that there is not is not said: the patterns know code alone, and TF-IDF wants the training programs.
    """
    said = []
    for name, words in BASELINES.items():
        own, left_out = (measure(each, base).estimate for each in (name, f"{name}_left_out"))
        if not math.isnan(own.value):
            said.append(f"{words} {own.words()}" + f" ({left_out.words()})" * (not math.isnan(left_out.value)))
    return "; ".join(said)


def _logged(folder: Path, task: str) -> bool:
    return (folder / "samples" / f"{task}.jsonl").is_file()


def once(points: Sequence[Point]) -> list[Point]:
    """One point for an arm that is the same run at several seeds: of none of them, and paired with each."""
    places: dict[tuple[str, Path], list[Point]] = {}
    for point in points:
        places.setdefault((point.arm, point.evaluation.folder), []).append(point)
    return [own[0] if len(own) == 1 else replace(own[0], seed=None) for own in places.values()]


def collect(points: Sequence[Point], judged: Mapping[Path, list[Judged]]) -> dict[str, dict[int | None, Samples]]:
    """What every arm logged, by seed: documents by task, and the judged answers of an evaluation's folder."""
    samples: dict[str, dict[int | None, Samples]] = {}
    for point in points:
        folder = point.evaluation.folder
        own: dict[str, Any] = {t: load_samples(folder, t) for t in set(TASKS.values()) if _logged(folder, t)}
        samples.setdefault(point.arm, {})[point.seed] = own | ({JUDGED: judged[folder]} if folder in judged else {})
    return samples


def _model(arm: str, seed: int | None) -> str:
    return arm if seed is None else f"{arm}, seed {seed}"


def nan_words(samples: Mapping[str, Seeds], at: tuple[int, int] | None = None) -> list[str]:
    """Which models of an arm have likelihoods that are no finite numbers, of how many documents."""
    return [
        f"{_model(arm, seed)}{' at {} of {}'.format(*at) if at else ''}: {number} of {task}"
        for arm, seeds in samples.items()
        for seed, own in seeds.items()
        for task, number in not_finite(own).items()
        if number
    ]


def uneven(samples: Mapping[str, Seeds]) -> list[str]:
    """Which models of an arm have fewer documents of a task than others; a measure that one lacks is of none."""
    every = [(arm, seed, own) for arm, seeds in samples.items() for seed, own in seeds.items()]
    most = {task: max(len(own.get(task, ())) for *_, own in every) for task in {*TASKS.values()} - {JUDGED}}
    return [
        f"{_model(arm, seed)}: {most[task] - len(own.get(task, ()))} of {most[task]} documents of {task}"
        for arm, seed, own in every
        for task in most
        if len(own.get(task, ())) < most[task]
    ]


def measures_of(samples: Mapping[str, Seeds], sweep: Sweep) -> list[str]:
    """The measures that every arm has; rates of judged answers stand with their judge."""
    tasks = set.intersection(*(set(seed) for seeds in samples.values() for seed in seeds.values()))
    left_out = set(WHERE_CLAIMED) - {claim.measure for claim in sweep.claims}
    return [name for name in TITLES if TASKS[name] in tasks - {JUDGED} and name not in left_out]


def arm_rows(points: Sequence[Point], samples: Mapping[str, Seeds], measures: Sequence[str]) -> list[dict[str, Any]]:
    """One row per arm: what was trained, and every measure with its interval."""
    rows = []
    for arm, seeds in samples.items():
        runs = [p.training for p in points if p.arm == arm and p.training]
        records = [run.record() for run in runs]
        for run, record in zip(runs, records, strict=True):
            if not {"trained_parameters", "wall_seconds"} <= record.keys():
                raise BadInput(f"{run.folder / 'run.json'}: not the record of a training; delete the folder")
        resumed = any(record.get("resumed_from") for record in records)  # of which only the last attempt is known
        row = {
            "arm": arm,
            "seeds": len(seeds),
            "rank": runs[0].recipe.config["lora_r"] if runs else None,
            "scale": lora_scale(runs[0].recipe.config) if runs else None,
            "trained_parameters": records[0]["trained_parameters"] if records else 0,
            "minutes": None if resumed else round(sum(record["wall_seconds"] for record in records) / 60, 1),
            "measures": {name: measure(name, seeds) for name in measures},
        }
        rows.append(row)
    return rows


def results_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line per arm and measure, with interval, number of clusters, and the value of each seed."""
    return table_csv(
        {key: row[key] for key in ("arm", "seeds", "rank", "scale", "trained_parameters")}
        | {"measure": name, **asdict(m.estimate), "per_seed": m.per_seed}
        for row in rows
        for name, m in row["measures"].items()
    )


def sweep_figures(
    rows: Sequence[dict[str, Any]],
    points: Sequence[Point],
    samples: Mapping[str, Seeds],
    families: Sequence[Family],
    rates: Sequence[Panel],
    sweep: Sweep,
) -> dict[str, Figure]:
    """`arms`, which leads; narrow against broad effects; training losses."""
    measures, by_arm = list(rows[0]["measures"]), [(row["arm"], row["measures"]) for row in rows]
    panels = [
        Panel(TITLES[name], {arm: (own[name].estimate, own[name].per_seed) for arm, own in by_arm}, name in RATES)
        for name in measures
    ]
    over = f"over {AXES[curves[0].axis]}s" if (curves := comparable(families)) else "by arm"
    figures = {
        "arms": arms_figure(f"Every measure {over}: mean, 95 % interval, each seed", [*rates, *panels], families)
    }
    bases = {arm: base_of(sweep, arm) for arm in samples}
    trained = {arm: seeds for arm, seeds in samples.items() if bases[arm] != arm and bases[arm] in samples}
    for narrow in (name for name in NARROW if trained and {name, BROAD} <= set(measures)):
        effects = {}
        for arm, seeds in trained.items():
            of_narrow, of_broad = (measure(name, seeds, samples[bases[arm]]).estimate for name in (narrow, BROAD))
            effects[arm] = of_narrow.value, of_broad
        title = "Breadth: narrow against broad effect, less the base model"
        figures[f"breadth-{narrow}"] = scatter_figure(title, TITLES[narrow], TITLES[BROAD], effects)
    losses: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point in points:
        if point.training and (steps := point.training.record().get("losses")):
            losses.setdefault(point.training.stage, {})[point.name] = steps
    for stage, runs in losses.items():
        figures[f"training-{stage}"] = steps_figure(f"Training loss, {stage}", "loss", runs)
    return figures


def guard_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A row per arm: of each standard task of `--guard` the first metric, its mean over seeds; no rows without a guard.

    Under `TASK METRIC ±` half the 95 % interval over documents, which more seeds do not narrow: they are the same.
    """
    standard = task_configs([*GUARDS.values()])[1] | {HUMANEVAL}
    found: dict[str, dict[str, list[float]]] = {}
    for point in points:
        results: dict[str, dict[str, Any]] = point.evaluation.record().get("results", {})
        for task in sorted(standard & results.keys()):
            # By METRIC,FILTER, each followed by its standard error.
            scores = results[task]
            if key := next((key for key in scores if "," in key and "_stderr," not in key), None):
                metric, _, answers = key.partition(",")
                own, column = found.setdefault(point.arm, {}), f"{task} {metric}"
                own.setdefault(column, []).append(float(scores[key]))
                if isinstance(error := scores.get(f"{metric}_stderr,{answers}"), float):
                    own.setdefault(f"{column} ±", []).append(1.96 * error)
    return [{"arm": arm, **{name: mean(own) for name, own in scores.items()}} for arm, scores in found.items()]


def scored_files(points: Sequence[Point]) -> tuple[dict[str, dict[Path, list[Judged]]], list[str]]:
    """By judge, the files with scores of all answers of an evaluation (`emsweep judge`), most files first.

    Beside them, in words, the points that no rate of a judge is of, as where the money ended. BadInput if such a file
    or its manifest cannot be read.
    """
    found: dict[str, dict[Path, list[Judged]]] = {}
    for point in points:
        for file in sorted(point.evaluation.folder.glob("judged-*.jsonl")):
            if told := manifest_of(file):  # it is written last: without it the file is not whole, or a journal
                own = found.setdefault(printable(told["judge"]), {})
                own |= {file: rows} if enough(rows := load_judged(file)) else {}
    answered = [point for point in points if _logged(point.evaluation.folder, FREEFORM)]
    words = []
    for judge, files in found.items():
        folders = {file.parent for file in files}
        if without := [point.name for point in answered if point.evaluation.folder not in folders]:
            words.append(f"without scores of two questions by {judge}: {' and '.join(without)}")
    most_first = sorted(found.items(), key=lambda item: -len(item[1]))
    return {judge: files for judge, files in most_first if files}, words


def judged_parts(
    points: Sequence[Point], families: Sequence[Family], scored: Mapping[str, Mapping[Path, list[Judged]]]
) -> list[JudgedPart]:
    parts = []
    for place, (judge, files) in enumerate(scored.items(), 1):
        rows = {file.parent: rows for file, rows in files.items()}
        models: dict[str, list[list[Judged]]] = {point.arm: [] for point in points}
        for point in points:
            if point.evaluation.folder in rows:
                models[point.arm].append(rows[point.evaluation.folder])
        models = {arm: own for arm, own in models.items() if own}
        there = [
            replace(family, members={at: arm for at, arm in family.members.items() if arm in models})
            for family in families
        ]
        curves = [family for family in there if len(family.members) > 1]
        parts.append(judged_part(models, judge, curves, f"judge{place}-"))
    return parts


def read_answers(points: Sequence[Point], scored: Mapping[Path, list[Judged]]) -> Iterator[tuple[str, Judged]]:
    """The sampled answers for the reader, with scores where there are some (`scored`: by folder of the evaluation)."""
    # The base model's last: it stands beside all others anyhow.
    for point in sorted(points, key=lambda point: point.training is None):
        folder = point.evaluation.folder
        unscored = load_samples(folder, FREEFORM) if folder not in scored and _logged(folder, FREEFORM) else []
        yield from ((point.name, answer) for answer in scored.get(folder, ()))
        for s in unscored:
            answer = printable(s["filtered_resps"][0])
            yield point.name, Judged(question_id=s["doc"]["id"], question=s["doc"]["question"], answer=answer)


def write_report(
    sweep: Sweep,
    points: Sequence[Point],
    out: Path,
    full: bool,
    command: str = "make demo",
    missing: Sequence[str] = (),
    title: str | None = None,
    looked: Path | None = None,
) -> Path:
    """Writes report.html with its figures, results.csv and table.md to `out`, prints the table and the verdicts.

    Args:
        points: all done, the base model's first.
        missing: names of the points that are not done.
        looked: the file of `emsweep inside`, if it stands elsewhere than in `out`.
    """
    ends = [point for point in points if point.along is None]
    whole, points = once(points), once(ends)
    scored, unscored = scored_files(points)
    judge = next(iter(scored), "")
    judged = {file.parent: rows for file, rows in scored.get(judge, {}).items()}
    samples = collect(points, judged)
    measures = measures_of(samples, sweep)
    between = {}
    for at in sorted({point.along for point in whole if point.along}):
        there = [point for point in whole if point.along == at]
        rows_of = scored_files(there)[0].get(judge, {})  # one judge for a whole curve
        between[at] = collect(there, {file.parent: rows for file, rows in rows_of.items()})
    steps = {p.arm: int(p.training.record()["steps"]) for p in whole if p.along and p.training}
    nans = nan_words(samples) + [words for at, arms in between.items() for words in nan_words(arms, at)]
    along, size = along_part(sweep, samples, between, measures, steps), size_part(sweep, points, samples)
    rows = arm_rows(points, samples, measures)
    guard = guard_rows(points)
    families = [family for axis in AXES for family in axis_families(points, axis, sweep.tuned)]
    ranks = [family for family in families if family.axis == "rank"]
    rounded = any(p.evaluation.content.get("model_args", {}).get("dtype") != "float32" for p in points)
    parts = judged_parts(points, families, scored)
    figures = sweep_figures(rows, points, samples, families, parts[0].panels if parts else [], sweep)
    own_figures = list(figures)
    inside = inside_part(looked or out / "inside.json", sweep, ends, families)
    for section in (inside, along, size):
        figures |= section.figures if section else {}
    for place, part in enumerate(parts, 1):
        figures |= part.figures
        if place > 1:  # the first judge's rates stand in the figure that leads
            figures[f"judge{place}-rates"] = arms_figure(f"Rates of judge {part.judge}", part.panels, families)
    context = {
        "title": title or "What was and was not shown",
        "sweep": sweep,
        "full": full,
        "columns": {name: TITLES[name] for name in measures},
        "digits": DIGITS.__getitem__,
        "noise": {
            name: [f"{NOISE[name] / n**0.5:.2g}" for n in (1, rows[0]["measures"][name].estimate.clusters)]
            for name in measures
            if rounded and name in NOISE and rows[0]["measures"][name].estimate.clusters
        },
        "rows": rows,
        "verdicts": claim_verdicts(sweep, samples, rounded, judge),
        "rank_verdicts": rank_verdicts(ranks, samples, measures, rounded),
        "no_curves": [family.refusal for family in families if family.axis == "lr" and family.differ],
        "baselines": _baselines(samples["base"]) if "recognition" in measures else "",
        "parts": parts,
        "inside": inside,
        "along": along,
        "size": size,
        "guard": guard,
        "guard_columns": list(dict.fromkeys(name for row in guard for name in row if not name.endswith(" ±"))),
        "judged_files": [
            (file, file_digest(file), len(rows)) for files in scored.values() for file, rows in files.items()
        ],
        "missing": [*missing, *unscored, *uneven(samples)],
        "nans": nans,
        "runs": [p for p in points if p.training],
        "evaluations": [(p.evaluation.folder, p.evaluation.record()) for p in points],
        "recipe_digest": content_digest,
        "alpha": sorted({"{policy} = {value}".format(**p.training.recipe.em["alpha"]) for p in points if p.training}),
        "questions": rows[0]["measures"][BROAD].estimate.clusters if BROAD in measures else 0,
        "command": command,
        "own_figures": own_figures,
        "answers": data_block(read_answers(points, judged), "base"),
    }
    tables = {name: text for part in parts for name, text in part.tables.items()}
    tables |= {"inside.csv": table_csv(inside_rows(inside))} if inside else {}
    tables |= {"guard.csv": table_csv(guard)} if guard else {}
    table = environment().get_template("table.md").render(**context)
    page = write_page(
        out, "report.html", context, figures, {"results.csv": results_csv(rows), "table.md": table, **tables}
    )
    # A table that is cut cannot be read; a terminal wraps it.
    Console(width=max(Console().width, 200)).print(Markdown(table))
    if nans:
        print(f"Likelihoods that are no finite numbers are left out, or the whole measure is: {'; '.join(nans)}.")
    if not parts:
        print("No rate of misaligned free-form answers: no judge was asked. Read them in the report.")
    return page
