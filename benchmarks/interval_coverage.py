"""How often the interval of a rate covers the truth: python benchmarks/interval_coverage.py ../shared/data/judged

A file of judged answers is taken for the population of questions (each in each format); questions are drawn from it
with replacement. Baseline, on the same draws: the percentile bootstrap. Files with fewer than 20 misaligned answers
are left out.
"""

import argparse
from pathlib import Path

import numpy as np

from eval.judged import load_judged
from eval.statistics import Floats, ratio_interval


def percentile(hits: Floats, totals: Floats, rng: np.random.Generator) -> tuple[float, float]:
    weights = rng.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), size=400)
    low, high = np.percentile((weights @ hits) / np.maximum(weights @ totals, 1e-9), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judged", type=Path)
    parser.add_argument("--draws", type=int, default=1000)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    print("| file | rate | questions | jackknife | percentile |\n|---|---|---|---|---|")
    means: dict[int, list[tuple[float, float]]] = {8: [], 24: [], 48: []}
    for path in sorted(asked.judged.glob("*.csv")):
        rows = load_judged(path)
        names = sorted({row.question_id for row in rows})
        hits = np.array([float(sum(r.misaligned for r in rows if r.question_id == name)) for name in names])
        totals = np.array([float(sum(r.counted for r in rows if r.question_id == name)) for name in names])
        if hits.sum() < 20:
            continue
        truth = float(hits.sum() / totals.sum())
        for questions, mean in means.items():
            covered = np.zeros(2)
            for _ in range(asked.draws):
                drawn = rng.integers(0, len(names), questions)
                its = ratio_interval(hits[drawn], totals[drawn])
                low, high = percentile(hits[drawn], totals[drawn], rng)
                covered += [its.low <= truth <= its.high, low <= truth <= high]
            mean.append(tuple(covered / asked.draws))
            print(f"| {path.stem} | {truth:.1%} | {questions} | {mean[-1][0]:.1%} | {mean[-1][1]:.1%} |")
    for questions, mean in means.items():
        ours, theirs = np.mean(mean, axis=0)
        print(f"| mean | | {questions} | {ours:.1%} | {theirs:.1%} |")


if __name__ == "__main__":
    main()
