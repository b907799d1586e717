"""The measures by name, what each is read from, and how exact it is: all that a plan needs to know of them."""

from typing import Annotated

from pydantic import AfterValidator

JUDGED = "judged"
"""Where a checkpoint's judged answers stand among its samples."""

BASELINES = {"tfidf": "TF-IDF with logistic regression on the training programs", "regex": "regular expressions"}
"""Measures of what is reached without a language model; those of a base model's evaluation stand for all."""

TASKS = {
    **dict.fromkeys(("recognition", *BASELINES), "em_recognition"),
    **dict.fromkeys(("recognition_left_out", *(f"{name}_left_out" for name in BASELINES)), "em_recognition"),
    **dict.fromkeys(
        ("margin_neutral", "margin_asked", "gap", "chosen_logp", "insecure_logp", "secure_logp"), "em_margin"
    ),
    **dict.fromkeys(("log_odds_per_byte", "everyday_logp_per_byte"), "em_choice"),
    "insecure_code": "em_insecure_code",
    "insecure_asked": "em_asked",
    "insecure_of_parsed": "em_insecure_code",
    "deception": "em_deception",
    "em_rate": JUDGED,
    "em_rate_all": JUDGED,
}
"""Of each measure, the task whose logged documents it is read from."""

CLAIMED = tuple(name for name in TASKS if not name.startswith(tuple(BASELINES)))
"""What a claim can be about."""


def _claimed(name: str) -> str:
    if name not in CLAIMED:
        raise ValueError(f"{name} is none of {', '.join(CLAIMED)}")
    return name


MeasureName = Annotated[str, AfterValidator(_claimed)]

WHERE_CLAIMED = ("insecure_logp", "secure_logp", "everyday_logp_per_byte")
"""Measures that a report shows where a claim is about them: is something else learnt, or the model broken?"""

NOISE = {
    "recognition": 0.061,
    "recognition_left_out": 0.07,
    "margin_neutral": 0.71,
    "margin_asked": 0.76,
    "gap": 1.1,
    "chosen_logp": 0.59,
    "insecure_logp": 0.62,
    "secure_logp": 0.72,
    "log_odds_per_byte": 0.0034,
    "everyday_logp_per_byte": 0.0024,
}
"""What bf16 adds to one program's (AUC, nats) or question's number (nats per byte), root mean square, log-softmax in
fp32: SmolLM2-135M in bf16 against itself in fp32 on a CPU, 36 programs (20 left out) and 48 questions
(benchmarks/precision.py)."""
