"""What the interval of thrifty judging promises, and keeps: python benchmarks/thrifty.py ../shared/data/judged

Each file of judged answers is taken for what the full judge says. Samples of it are drawn and combined with the
predictions of heads that were fitted without the model and its kin (`eval.fit_offline_judge.held_out`).
"full rate": share of draws whose interval holds the rate of all judgements; "width": median over the draws, over the
full judge's width; both for the interval over questions (the one that is reported) and for the one within these answers
(the sample's error alone, which the full judge does not have). "without": the same with no predictions (lambda 0).
"truth" is measured as in benchmarks/interval_coverage.py: 24 questions drawn from the file with replacement.
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
    found = []
    for seed in range(draws):
        sample = plan(rows, share, seed)
        verdicts = [rows[place] for place in sample]
        ours, plain = combine(rows, sample, verdicts, p), combine(rows, sample, verdicts, np.zeros_like(p))
        found.append(
            {
                "calls": len({rows[place] for place in sample}) / len(set(rows)),
                "covers": ours.em.low <= em <= ours.em.high,
                "covers_all": ours.em_all.low <= full.em_all.value <= ours.em_all.high,
                "width": (ours.em.high - ours.em.low) / width,
                "width_all": (ours.em_all.high - ours.em_all.low) / (full.em_all.high - full.em_all.low),
                "within": ours.em_within.low <= em <= ours.em_within.high,
                "within_all": ours.em_all_within.low <= full.em_all.value <= ours.em_all_within.high,
                "within_width": (ours.em_within.high - ours.em_within.low) / width,
                "plain_width": (plain.em.high - plain.em.low) / width,
                "plain_within_width": (plain.em_within.high - plain.em_within.low) / width,
                "off": ours.em.value - em,
            }
        )
    middle = {"width", "width_all", "within_width", "plain_width", "plain_within_width"}
    return {
        key: float((np.median if key in middle else np.mean)([one[key] for one in found]))  # type: ignore[operator]
        for key in found[0]
    }


def draws_of_questions(rows: list[Judged], p: Floats, share: float, draws: int, questions: int = 24) -> float:
    """How often the interval over questions holds the rate of the file, if its questions are drawn anew."""
    truth = rates(rows).em.value
    cells = {
        name: [n for n, row in enumerate(rows) if row.question_id == name] for name in {r.question_id for r in rows}
    }
    names, rng, held = sorted(cells), np.random.default_rng(0), 0
    for seed in range(draws):
        drawn = [(f"q{n}", place) for n, name in enumerate(rng.choice(names, questions)) for place in cells[name]]
        again = [rows[place].model_copy(update={"question_id": name}) for name, place in drawn]
        sample = plan(again, share, seed)
        its = combine(again, sample, [again[n] for n in sample], p[[place for _, place in drawn]]).em
        held += its.low <= truth <= its.high
    return held / draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judged", type=Path)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--question-draws", type=int, default=200)
    asked = parser.parse_args()
    models = {path.stem: load_judged(path) for path in sorted(asked.judged.glob("*.csv"))}
    p = held_out(models)
    heading = "file | full EM | calls | full rate | width | within: full rate | width | without: width | within: width"
    print(f"| {heading} | of all: full rate | width | within: full rate | mean error | truth |")
    print("|" + "---|" * 14)
    for model, rows in models.items():
        its = draws_of_samples(rows, p[model], asked.share, asked.draws)
        full = rates(rows)
        cells = [model, f"{full.misaligned}/{full.counted}", f"{its['calls']:.1%}"]
        cells += [f"{its['covers']:.1%}", f"{its['width']:.2f}", f"{its['within']:.1%}", f"{its['within_width']:.2f}"]
        cells += [f"{its['plain_width']:.2f}", f"{its['plain_within_width']:.2f}"]
        cells += [f"{its['covers_all']:.1%}", f"{its['width_all']:.2f}", f"{its['within_all']:.1%}"]
        cells += [f"{its['off']:+.3%}"]
        if asked.question_draws and full.misaligned >= 20:
            cells += [f"{draws_of_questions(rows, p[model], asked.share, asked.question_draws):.1%}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
