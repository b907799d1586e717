"""How often the interval of a rate covers the truth: python benchmarks/interval_coverage.py ../shared/data/judged

A file of judged answers is taken for the population of questions (each in each format); questions are drawn from it
with replacement. Baseline, on the same draws: the percentile bootstrap. Files with fewer than 20 misaligned answers
are left out. Then the same for paired differences of all pairs of these files (a third of the draws), and for the
mean of one number per question: its mean aligned score, Student's t beside the percentile bootstrap.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np

from eval.judge.answers import load_judged
from eval.stats.intervals import Floats, mean_interval, ratio_difference, ratio_interval


def percentile(hits: Floats, totals: Floats, rng: np.random.Generator) -> tuple[float, float]:
    weights = rng.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), size=400)
    low, high = np.percentile((weights @ hits) / np.maximum(weights @ totals, 1e-9), [2.5, 97.5])
    return float(low), float(high)


def percentile_of_difference(hits: Floats, totals: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """hits, totals: (2, questions)."""
    weights = rng.multinomial(hits.shape[1], np.full(hits.shape[1], 1 / hits.shape[1]), size=400)
    rates = (weights @ hits.T) / np.maximum(weights @ totals.T, 1e-9)
    low, high = np.percentile(rates[:, 0] - rates[:, 1], [2.5, 97.5])
    return float(low), float(high)


def differences(files: list[tuple[Floats, Floats]], draws: int, rng: np.random.Generator) -> None:
    for questions in (8, 24, 48):
        covered = []
        for one, other in combinations(files, 2):
            hits, totals = np.stack([one[0], other[0]]), np.stack([one[1], other[1]])
            truth = float(np.subtract(*(hits.sum(axis=1) / totals.sum(axis=1))))
            held = np.zeros(2)
            for _ in range(draws):
                drawn = rng.integers(0, hits.shape[1], questions)
                h, t = hits[:, drawn], totals[:, drawn]
                interval = ratio_difference((h[0], h[1]), (t[0], t[1]))
                low, high = percentile_of_difference(h, t, rng)
                held += [interval.low <= truth <= interval.high, low <= truth <= high]
            covered.append(held / draws)
        (ours, theirs), (worst, _) = np.mean(covered, axis=0), np.min(covered, axis=0)
        print(f"| differences ({len(covered)} pairs; worst {worst:.1%}) | | {questions} | {ours:.1%} | {theirs:.1%} |")


def mean_of_scores(files: list[Floats], draws: int, rng: np.random.Generator) -> None:
    """files: the mean aligned score of each question, one array per file."""
    for questions in (8, 24, 48):
        held = np.zeros(2)
        for scores in files:
            for _ in range(draws):
                drawn = scores[rng.integers(0, len(scores), questions)]
                student = mean_interval(drawn)
                resampled = drawn[rng.integers(0, questions, (400, questions))].mean(axis=1)
                low, high = np.percentile(resampled, [2.5, 97.5])
                held += [student.low <= scores.mean() <= student.high, low <= scores.mean() <= high]
        ours, theirs = held / draws / len(files)
        print(f"| means, Student's t ({len(files)} files) | | {questions} | {ours:.1%} | {theirs:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judged", type=Path)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    print("| file | rate | questions | jackknife | percentile |\n|---|---|---|---|---|")
    files: list[tuple[Floats, Floats]] = []
    aligned: list[Floats] = []
    means: dict[int, list[tuple[float, float]]] = {8: [], 24: [], 48: []}
    for path in sorted(options.judged.glob("*.csv")):
        rows = load_judged(path)
        names = sorted({row.question_id for row in rows})
        hits = np.array([float(sum(r.misaligned for r in rows if r.question_id == name)) for name in names])
        totals = np.array([float(sum(r.counted for r in rows if r.question_id == name)) for name in names])
        if hits.sum() < 20:
            continue
        files.append((hits, totals))
        scored = [[r.aligned for r in rows if r.question_id == name and r.aligned is not None] for name in names]
        aligned.append(np.array([np.mean(scores) for scores in scored if scores]))
        truth = float(hits.sum() / totals.sum())
        for questions, mean in means.items():
            covered = np.zeros(2)
            for _ in range(options.draws):
                drawn = rng.integers(0, len(names), questions)
                interval = ratio_interval(hits[drawn], totals[drawn])
                low, high = percentile(hits[drawn], totals[drawn], rng)
                covered += [interval.low <= truth <= interval.high, low <= truth <= high]
            mean.append(tuple(covered / options.draws))
            print(f"| {path.stem} | {truth:.1%} | {questions} | {mean[-1][0]:.1%} | {mean[-1][1]:.1%} |")
    for questions, mean in means.items():
        ours, theirs = np.mean(mean, axis=0)
        print(f"| mean | | {questions} | {ours:.1%} | {theirs:.1%} |")
    differences(files, options.draws // 3, rng)
    mean_of_scores(aligned, options.draws // 3, rng)


if __name__ == "__main__":
    main()
