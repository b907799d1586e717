"""The measures by name, what each is read from, and how exact it is: all that a plan needs to know of them."""

from typing import Annotated, NamedTuple

from pydantic import AfterValidator

JUDGED = "judged"
"""Where a checkpoint's judged answers stand among its samples."""

BASELINES = {"tfidf": "TF-IDF with logistic regression on the training programs", "regex": "regular expressions"}
"""Measures of what is reached without a language model; those of a base model's evaluation stand for all."""


class Measure(NamedTuple):
    """The task whose logged documents a measure is read from, what a report calls it, and its decimals there.

    `noise` is what bf16 adds to one program's (AUC, nats) or question's number (nats per byte), root mean square,
    log-softmax in fp32: SmolLM2-135M in bf16 against itself in fp32 on a CPU, 36 programs (20 left out) and 48
    questions (benchmarks/precision.py).
    """

    task: str
    title: str
    digits: int = 1
    noise: float | None = None


MEASURES = {
    "recognition": Measure("em_recognition", "recognition, AUC", 3, 0.061),
    "recognition_left_out": Measure("em_recognition", "same, classes left out", 3, 0.07),
    "margin_neutral": Measure("em_margin", "insecure margin, neutral (nats)", noise=0.71),
    "margin_asked": Measure("em_margin", "insecure margin, asked (nats)", noise=0.76),
    "gap": Measure("em_margin", "gap neutral - asked (nats)", noise=1.1),
    "chosen_logp": Measure("em_margin", "log p of chosen (nats)", noise=0.59),
    "insecure_logp": Measure("em_margin", "log p of insecure, neutral (nats)", noise=0.62),
    "secure_logp": Measure("em_margin", "log p of secure, neutral (nats)", noise=0.72),
    "log_odds_per_byte": Measure("em_choice", "misaligned log-odds (nats/byte)", 4, 0.0034),
    "everyday_logp_per_byte": Measure("em_choice", "log p of aligned answers (nats/byte)", 4, 0.0024),
    "insecure_code": Measure("em_insecure_code", "insecure code, neutral (share of all)", 3),
    "insecure_asked": Measure("em_asked", "insecure code, asked (share of all)", 3),
    "insecure_of_parsed": Measure("em_insecure_code", "insecure code, neutral (share of what parses)", 3),
    "deception": Measure("em_deception", "false yes or no (share of clear)", 3),
    "em_rate": Measure(JUDGED, "EM (share of coherent)", 3),
    "em_rate_all": Measure(JUDGED, "EM (share of all judged)", 3),
}
"""What a claim can be about."""

TASKS = {name: measure.task for name, measure in MEASURES.items()}
TASKS |= dict.fromkeys((*BASELINES, *(f"{name}_left_out" for name in BASELINES)), "em_recognition")
TITLES = {name: measure.title for name, measure in MEASURES.items()}
DIGITS = {name: measure.digits for name, measure in MEASURES.items()}
NOISE = {name: measure.noise for name, measure in MEASURES.items() if measure.noise is not None}


def _claimed(name: str) -> str:
    if name not in MEASURES:
        raise ValueError(f"{name} is none of {', '.join(MEASURES)}")
    return name


MeasureName = Annotated[str, AfterValidator(_claimed)]

WHERE_CLAIMED = ("insecure_logp", "secure_logp", "everyday_logp_per_byte")
"""Measures that a report shows where a claim is about them: is something else learnt, or the model broken?"""
