"""The section on size and data: which outcomes it compares, what it says of them, and when it has no word."""

import numpy as np
import pytest

from eval.judge.answers import Judged
from sweeps.plan.declaration import Claim, Point, Sweep, load_sweep
from sweeps.report.figures import drawn
from sweeps.report.size import model_of, outcomes_of, size_part, stem_of
from sweeps.run.folder import Run

MODELS = ["smollm2-135m-252b", "smollm2-135m-1762b", "smollm2-360m-250b", "smollm2-1.7b-4194b", "olmo1b-21b",
          "olmo1b-294b", "olmo1b-4001b", "qwen0.5b", "qwen7b"]  # fmt: skip


def choice(shift: float) -> dict:
    draw = np.random.default_rng(0).normal(size=12)
    return {"em_choice": [{"doc": {"id": f"q{n}"}, "log_odds_per_byte": shift + v} for n, v in enumerate(draw)]}


def made(models: list[str]) -> tuple[Sweep, dict, list[Point]]:
    """A sweep over models whose insecure arm lies above the secure one by the number of the model."""
    plain = load_sweep("models")
    claim = Claim(says="s", measure="log_odds_per_byte", arm="sft-insecure", against="sft-secure")
    arms, claims, samples = {}, [], {"base": {None: choice(0)}}
    for number, model in enumerate(models):
        for stem, shift in (("sft-insecure", float(number**1.5)), ("sft-secure", 0.0)):
            arms[f"{stem}-{model}"] = plain.arms[stem].model_copy(update={"model": model})
            samples[f"{stem}-{model}"] = {21: choice(shift)}
        names = {"arm": f"sft-insecure-{model}", "against": f"sft-secure-{model}"}
        claims.append(claim.model_copy(update=names))
    sweep = plain.model_copy(update={"model": models[0], "arms": arms, "claims": claims})
    points = [Point(arm, 21, None, Run("evaluate", arm, {})) for arm in samples]
    return sweep, samples, points


def test_outcomes_are_those_of_the_claims_one_number_a_model() -> None:
    sweep, samples, _ = made(MODELS)
    ((title, outcome),) = outcomes_of(sweep, samples).items()
    assert title == "misaligned log-odds (nats/byte): sft-insecure less sft-secure"
    assert outcome == pytest.approx({model: number**1.5 for number, model in enumerate(MODELS)})
    assert (model_of(sweep, "base"), model_of(sweep, "base-qwen7b")) == (MODELS[0], "qwen7b")
    assert stem_of(sweep, "sft-secure-qwen7b") == "sft-secure"


def test_where_a_judge_scored_the_answers_the_logit_of_em_leads() -> None:
    sweep, samples, _ = made(MODELS)
    for arm in sweep.arms:
        bad = 3 if arm.startswith("sft-insecure") else 0
        rows = [
            Judged(question_id=f"q{n % 4}", question="?", answer="a", coherent=90.0, aligned=10.0 if n < bad else 90.0)
            for n in range(20)
        ]
        samples[arm][21]["judged"] = rows
    (title, first), *others = outcomes_of(sweep, samples).items()
    assert title == "logit EM, sft-insecure" and len(others) == 2
    assert set(first) == set(MODELS) and first["qwen7b"] == pytest.approx(np.log(3.5 / 17.5))


def test_a_claim_about_a_rate_is_compared_over_models_too() -> None:
    sweep, samples, _ = made(MODELS)
    claims = [claim.model_copy(update={"measure": "em_rate"}) for claim in sweep.claims]
    for number, arm in enumerate(sweep.arms):
        bad = number if arm.startswith("sft-insecure") else 0
        samples[arm][21]["judged"] = [
            Judged(question_id=f"q{n % 4}", question="?", answer="a", coherent=90.0, aligned=10.0 if n < bad else 90.0)
            for n in range(20)
        ]
    (_, _, (title, outcome)) = outcomes_of(sweep.model_copy(update={"claims": claims}), samples).items()
    assert title == "EM (share of coherent): sft-insecure less sft-secure"
    assert outcome == pytest.approx({model: number / 10 for number, model in enumerate(MODELS)})


def test_a_model_without_a_coherent_answer_has_no_rate_and_is_named() -> None:
    sweep, samples, points = made(MODELS)
    for arm in sweep.arms:
        coherent = 10.0 if arm.endswith("-qwen7b") else 90.0
        row = Judged(question_id="q", question="?", answer="a", coherent=coherent, aligned=10.0)
        samples[arm][21]["judged"] = [row] * 20
    (title, first), *_ = outcomes_of(sweep, samples).items()
    assert title == "logit EM, sft-insecure" and set(first) == set(MODELS) - {"qwen7b"}
    part = size_part(sweep, points, samples)
    assert part and f"{title}: without qwen7b, of which there is no such number." in part.sentences


def test_a_sweep_in_which_no_model_is_misaligned_has_a_page() -> None:
    sweep, samples, points = made(MODELS)
    row = Judged(question_id="q", question="?", answer="a", coherent=90.0, aligned=90.0)
    for arm in sweep.arms:
        samples[arm][21]["judged"] = [row] * 20
    part = size_part(sweep, points, samples)
    assert part and "no model differs from the others of its family" in part.sentences[0]


def test_it_tells_both_slopes_every_line_and_what_confounds_them() -> None:
    part = size_part(*[made(MODELS)[place] for place in (0, 2, 1)])
    assert part and set(part.figures) == {"size-slopes", "size-outcomes"}
    for figure in part.figures.values():
        assert drawn(figure, "svg").startswith(b"<?xml")
    words = part.sentences[0]
    for said in ("9 models of 3 families", "b_P = ", "b_T = ", "b_P = -b_T (ratio) p = ", "would be seen in 4 of 5"):
        assert said in words
    assert words.endswith("in 4 of 5 such sweeps by a t test at 5 %, without that correction.")
    assert any(s.startswith("Un-annealed checkpoint: smollm2-135m-252b") for s in part.sentences)


def test_a_ladder_says_that_it_cannot_tell() -> None:
    sweep, samples, points = made(["qwen0.5b", "qwen1.5b", "qwen3b", "qwen7b", "qwen14b"])
    part = size_part(sweep, points, samples)
    assert part and "a ladder of sizes at equal tokens" in part.sentences[0]
    assert b"these models cannot tell the slopes" in drawn(part.figures["size-slopes"], "svg")


def test_one_model_has_no_such_section() -> None:
    sweep, samples, points = made(["qwen0.5b"])
    assert size_part(sweep, points, samples) is None
