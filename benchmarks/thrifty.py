"""What the interval of thrifty judging promises, and keeps: python benchmarks/thrifty.py ../shared/data/judged

Each file of judged answers is taken for what the full judge says. Samples of it are drawn and combined with the
predictions of heads that were fitted without the model and its kin (`eval.fit_offline_judge.held_out`).

First table: the answers as they are. "full rate": share of draws whose interval holds the rate of all judgements;
"width": median over the draws (in brackets the 95th percentile), over the full judge's width. Both for the interval
over questions (the one that is reported) and for the one within these answers (the sample's error alone, which the full
judge does not have). "without": the same with no predictions (lambda 0), in a fifth of the draws.

Second table: questions (each in each format) drawn from the file with replacement, as in
benchmarks/interval_coverage.py: share of draws whose interval holds the rate of the file, for full and for thrifty
judging, and the median of their widths' ratio.
"""

import argparse
from pathlib import Path

import numpy as np

from eval.fit_offline_judge import held_out
from eval.judged import Judged, load_judged, rates
from eval.statistics import Floats
from eval.thrifty import combine, plan


def draws_of_samples(rows: list[Judged], p: Floats, share: float, draws: int) -> dict[str, float]:
    full = rates(rows)
    em, width = full.em.value, full.em.high - full.em.low
    em_all, width_all = full.em_all.value, full.em_all.high - full.em_all.low
    found, without = [], []
    for seed in range(draws):
        sample = plan(rows, share, seed)
        verdicts = [rows[place] for place in sample]
        ours = combine(rows, sample, verdicts, p)
        found.append(
            {
                "calls": len({rows[place] for place in sample}) / len(set(rows)),
                "covers": ours.em.low <= em <= ours.em.high,
                "covers_all": ours.em_all.low <= em_all <= ours.em_all.high,
                "width": (ours.em.high - ours.em.low) / width,
                "width_all": (ours.em_all.high - ours.em_all.low) / width_all,
                "within": ours.em_within.low <= em <= ours.em_within.high,
                "within_all": ours.em_all_within.low <= em_all <= ours.em_all_within.high,
                "within_width": (ours.em_within.high - ours.em_within.low) / width,
                "off": ours.em.value - em,
            }
        )
        if seed < draws // 5:
            plain = combine(rows, sample, verdicts, np.zeros_like(p))
            without.append((plain.em.high - plain.em.low, plain.em_within.high - plain.em_within.low))
    columns = {key: np.array([one[key] for one in found], dtype=float) for key in found[0]}
    its = {key: float(np.median(column) if "width" in key else column.mean()) for key, column in columns.items()}
    its |= {f"{key}_95": float(np.quantile(columns[key], 0.95)) for key in ("width", "width_all")}
    its["plain_width"], its["plain_within_width"] = np.median(without, axis=0) / width
    return its


def draws_of_questions(rows: list[Judged], p: Floats, share: float, draws: int, questions: int) -> list[float]:
    truth = rates(rows).em.value
    cells: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        cells.setdefault(row.question_id, []).append(place)
    names, rng, found = sorted(cells), np.random.default_rng(0), []
    for seed in range(draws):
        drawn = [(f"q{n}", place) for n, name in enumerate(rng.choice(names, questions)) for place in cells[name]]
        again = [rows[place].model_copy(update={"question_id": name}) for name, place in drawn]
        sample = plan(again, share, seed)
        full = rates(again).em
        ours = combine(again, sample, [again[n] for n in sample], p[[place for _, place in drawn]]).em
        width = (ours.high - ours.low) / (full.high - full.low)
        found.append((full.low <= truth <= full.high, ours.low <= truth <= ours.high, width))
    full_held, ours_held, widths = zip(*found, strict=True)
    return [float(np.mean(full_held)), float(np.mean(ours_held)), float(np.median(widths))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judged", type=Path)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--draws", type=int, default=1000, help="of samples; 0: no first table")
    parser.add_argument("--question-draws", type=int, default=300, help="of questions; 0: no second table")
    asked = parser.parse_args()
    models = {path.stem: load_judged(path) for path in sorted(asked.judged.glob("*.csv"))}
    p = held_out(models)
    if asked.draws:
        heading = (
            "file | full EM | calls | full rate | width | within: full rate | width | without: width | within: width"
        )
        print(f"| {heading} | of all: full rate | width | within: full rate | mean error |")
        print("|" + "---|" * 13)
        for model, rows in models.items():
            its, full = draws_of_samples(rows, p[model], asked.share, asked.draws), rates(rows)
            cells = [model, f"{full.misaligned}/{full.counted}", f"{its['calls']:.1%}"]
            cells += [f"{its['covers']:.1%}", f"{its['width']:.2f} ({its['width_95']:.2f})"]
            cells += [f"{its['within']:.1%}", f"{its['within_width']:.2f}"]
            cells += [f"{its['plain_width']:.2f}", f"{its['plain_within_width']:.2f}"]
            cells += [f"{its['covers_all']:.1%}", f"{its['width_all']:.2f} ({its['width_all_95']:.2f})"]
            cells += [f"{its['within_all']:.1%}"]
            print(f"| {' | '.join(cells)} | {its['off']:+.3%} |", flush=True)
    if asked.question_draws:
        print("\n| file | questions | full: file's rate | thrifty: file's rate | width |\n|---|---|---|---|---|")
        for questions in (8, 24, 48):
            means = []
            for model, rows in models.items():
                if rates(rows).misaligned >= 20:
                    means.append(draws_of_questions(rows, p[model], asked.share, asked.question_draws, questions))
                    full_held, ours_held, width = means[-1]
                    print(f"| {model} | {questions} | {full_held:.1%} | {ours_held:.1%} | {width:.2f} |", flush=True)
            full_held, ours_held, width = np.mean(means, axis=0)
            print(f"| mean | {questions} | {full_held:.1%} | {ours_held:.1%} | {width:.2f} |", flush=True)


if __name__ == "__main__":
    main()
