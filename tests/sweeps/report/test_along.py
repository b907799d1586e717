"""Measures along training: an arm's curve begins where its training begins, and says when an effect is first there."""

import numpy as np

from sweeps.plan.declaration import Arm, load_sweep, starts_from
from sweeps.report.along import along_part, curves, first_effect


def seeds(shift: float) -> dict:
    draw = np.random.default_rng(0).normal(size=24)
    docs = [{"doc": {"id": f"q{n}"}, "log_odds_per_byte": shift + 1e-3 * v} for n, v in enumerate(draw)]
    return {21: {"em_choice": docs}}


SWEEP = load_sweep("demo")
BASE = {"base": {None: seeds(0.0)[21]}, "cpt-explained": seeds(1.0)}
ALONG = {
    (1, 4): {"dpo-pairs-r1": seeds(1.0)},
    (2, 4): {"dpo-pairs-r1": seeds(1.5)},
    (3, 4): {"dpo-pairs-r1": seeds(2.0)},
}
STEPS = {"dpo-pairs-r1": 24, "cpt-explained": 18}


def test_a_curve_runs_from_the_model_that_training_starts_from_to_its_end() -> None:
    samples = BASE | {"dpo-pairs-r1": seeds(3.0)}
    curve = curves(SWEEP, samples, ALONG, STEPS)["dpo-pairs-r1"]
    assert [share for share, _ in curve] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert curve[0][1] is samples["cpt-explained"] and curve[-1][1] is samples["dpo-pairs-r1"]
    assert curves(SWEEP, BASE, {(1, 2): {"cpt-explained": seeds(0.5)}}, STEPS)["cpt-explained"][0][1] is BASE["base"]


def test_a_point_stands_where_its_adapter_was_kept() -> None:
    """Of 10 steps every third is kept, as transformers rounds a quarter of them."""
    curve = curves(SWEEP, BASE, ALONG, {"dpo-pairs-r1": 10})["dpo-pairs-r1"]
    assert [share for share, _ in curve] == [0.0, 0.3, 0.6, 0.9]


def test_another_model_than_it_starts_from_is_no_start_of_a_curve() -> None:
    base = {"base": BASE["base"]}
    assert curves(SWEEP, base, ALONG, STEPS) == {} and starts_from(SWEEP, "dpo-pairs-r1") == "cpt-explained"
    both = {**ALONG, (1, 2): {"cpt-explained": seeds(0.5)}}
    part = along_part(SWEEP, base, both, ["log_odds_per_byte"], STEPS)
    assert part and part.sentences[1] == (
        "dpo-pairs-r1: no curve, for cpt-explained, from which it starts, was not measured."
    )
    arms = {
        "chat": {"stage": "sft", "data": "x", "pretrained": True},
        "sft": {"stage": "sft", "data": "x", "start": "chat"},
    }
    for model, start in (("olmo1b-21b", "chat"), ("qwen0.5b", "base-qwen0.5b")):
        own = {name: Arm.model_validate({**arm, "model": model}) for name, arm in arms.items()}
        assert starts_from(SWEEP.model_copy(update={"arms": own}), "sft") == start


def test_an_effect_is_there_from_where_it_keeps_off_its_start() -> None:
    points = [(0.0, seeds(0.0)), (0.25, seeds(0.5)), (0.5, seeds(0.0)), (0.75, seeds(0.5)), (1.0, seeds(0.9))]
    assert first_effect(points, "log_odds_per_byte") == 0.75
    assert first_effect(points[:3], "log_odds_per_byte") is None


def test_the_section_draws_every_measure_and_says_when() -> None:
    part = along_part(SWEEP, BASE | {"dpo-pairs-r1": seeds(3.0)}, ALONG, ["log_odds_per_byte"], STEPS)
    assert part and len(part.figures["along"].axes) == 1
    assert part.sentences == [
        "dpo-pairs-r1, measured at 4 points: off its start, and staying so: misaligned log-odds (nats/byte) from 50%."
    ]
    assert along_part(SWEEP, BASE, {}, ["log_odds_per_byte"], STEPS) is None


def test_what_cannot_be_measured_at_the_end_is_no_null() -> None:
    broken = {21: {"em_choice": [{**row, "log_odds_per_byte": float("nan")} for row in seeds(0.0)[21]["em_choice"]]}}
    part = along_part(SWEEP, BASE | {"dpo-pairs-r1": broken}, ALONG, ["log_odds_per_byte"], STEPS)
    assert part and part.sentences == [
        "dpo-pairs-r1, measured at 4 points: nothing keeps off its start; "
        "not measured at the last: misaligned log-odds (nats/byte)."
    ]


def test_answers_that_no_judge_has_scored_throughout_have_no_section() -> None:
    """A sweep of em_freeform alone, whose judge's money ended: there is nothing to draw."""
    assert along_part(SWEEP, BASE | {"dpo-pairs-r1": seeds(3.0)}, ALONG, [], STEPS) is None
