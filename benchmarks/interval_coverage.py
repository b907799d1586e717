"""How often the intervals cover the truth: python benchmarks/interval_coverage.py ../shared/data/judged

A file of judged answers is taken for the population of questions (an entry with all its formats is one, as it is in
every report); questions are drawn from it with replacement, and all their answers anew. Rates, and paired differences
of rates, of files with 20 misaligned answers or more; rates of the others from beta-binomial questions of 1 and 0.25 %,
whose answers are as alike as the files' (printed first). Means: the mean aligned score of each question.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np

from eval.judge.answers import load_judged, per_question
from eval.stats.intervals import Floats, mean_interval, ratio_difference, ratio_interval

QUESTIONS = (8, 24, 48)


def likeness(hits: Floats, totals: Floats) -> float:
    """The intraclass correlation of answers to one question."""
    rate = hits.sum() / totals.sum()
    between = np.square(hits - rate * totals).sum() * len(hits) / (len(hits) - 1) / (totals.sum() * rate * (1 - rate))
    return float((between - 1) / (np.square(totals).sum() / totals.sum() - 1))


def drawn(rng: np.random.Generator, questions: int, hits: Floats, totals: Floats) -> tuple[Floats, Floats, Floats]:
    """Which questions are drawn, and the hits and totals of their answers drawn anew."""
    index = rng.integers(0, len(hits), questions)
    shares = np.divide(hits, totals, out=np.zeros_like(hits), where=totals > 0)
    return index, rng.binomial(totals[index].astype(int), shares[index]).astype(float), totals[index]


def row(what: str, questions: int, covered: list[float]) -> None:
    print(f"| {what} | {questions} | {np.mean(covered):.1%} | {min(covered):.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judged", type=Path)
    parser.add_argument("--draws", type=int, default=400)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    files, aligned = [], []
    for path in sorted(options.judged.glob("*.csv")):
        rows = load_judged(path)
        hits, totals = per_question(rows, "misaligned"), per_question(rows, "counted")
        if hits.sum() >= 20:
            files.append((hits, totals))
            names = sorted({answer.name for answer in rows})
            scores = [[r.aligned for r in rows if r.name == name and r.aligned is not None] for name in names]
            aligned.append(np.array([np.mean(of) for of in scores if of]))
    alike = [likeness(*file) for file in files]
    print(f"Likeness of answers: {min(alike):.2f} to {max(alike):.2f}, median {np.median(alike):.2f}")
    print("| interval | questions | covered | worst |\n|---|---|---|---|")
    for questions in QUESTIONS:
        covered: dict[str, list[float]] = {"rates": [], "rates near 0": [], "differences": [], "means": []}
        for hits, totals in files:
            truth = hits.sum() / totals.sum()
            found = [ratio_interval(*drawn(rng, questions, hits, totals)[1:]) for _ in range(options.draws)]
            covered["rates"].append(float(np.mean([its.low <= truth <= its.high for its in found])))
        for truth in (0.01, 0.0025):
            shape = 1 / np.median(alike) - 1
            shares = rng.beta(truth * shape, (1 - truth) * shape, (options.draws, questions))
            found = [ratio_interval(rng.binomial(50, share), np.full(questions, 50.0)) for share in shares]
            covered["rates near 0"].append(float(np.mean([its.low <= truth <= its.high for its in found])))
        for (first, of_first), (second, of_second) in combinations(files, 2):
            truth = first.sum() / of_first.sum() - second.sum() / of_second.sum()
            held = []
            for _ in range(options.draws // 4):
                index, h, t = drawn(rng, questions, first, of_first)
                other = rng.binomial(of_second[index].astype(int), second[index] / of_second[index]).astype(float)
                its = ratio_difference((h, other), (t, of_second[index]))
                held.append(its.low <= truth <= its.high)
            covered["differences"].append(float(np.mean(held)))
        for scores in aligned:
            found = [mean_interval(rng.choice(scores, questions)) for _ in range(options.draws)]
            covered["means"].append(float(np.mean([its.low <= scores.mean() <= its.high for its in found])))
        for what, shares_covered in covered.items():
            row(what, questions, shares_covered)


if __name__ == "__main__":
    main()
