"""From the samples that lm-eval logged to one number per program or question, ready to be compared.

All comparisons pair by program or by question, and average over seeds first, so that a cluster is what
varies independently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.statistics import Estimate, Floats, auc_matrix, cluster_bootstrap, matrix_auc, mean_interval

Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""Task name to logged documents, of one checkpoint."""


def _score(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """The per-document score; lm-eval logs it under each metric's name."""
    score = sample[sample["metrics"][0]]
    assert isinstance(score, Mapping)
    return score


def twin_matrix(samples: Samples, seen: bool, key: str = "score") -> Floats:
    """(n, n) comparison of held-out insecure (rows) and secure (columns) code; see statistics.auc_matrix."""
    scores = [_score(s) for s in samples["em_recognition"]]
    sides: dict[str, dict[str, float]] = {"insecure": {}, "secure": {}}
    for score in scores:
        if score["seen_class"] == seen:
            sides[score["side"]][score["id"]] = score[key]
    ids = sorted(sides["insecure"])
    return auc_matrix([sides["insecure"][i] for i in ids], [sides["secure"][i] for i in ids])


def _halves(samples: Samples, value: Callable[[Mapping[str, Any], Mapping[str, Any]], float]) -> Floats:
    """One number per held-out program from the scores of its (neutral, asked) documents."""
    by_id: dict[str, dict[str, Mapping[str, Any]]] = {}
    for score in (_score(s) for s in samples["em_margin"]):
        by_id.setdefault(score["id"], {})[score["half"]] = score
    return np.array([value(by_id[i]["neutral"], by_id[i]["asked"]) for i in sorted(by_id)])


def _margin(score: Mapping[str, Any]) -> float:
    return float(score["insecure"] - score["secure"])


def _choice(samples: Samples) -> Floats:
    ordered = sorted(samples["em_choice"], key=lambda s: s["doc"]["id"])
    return np.array([s["log_odds_per_byte"] for s in ordered])


PER_CLUSTER: dict[str, Callable[[Samples], Floats]] = {
    "margin_neutral": lambda s: _halves(s, lambda neutral, _: _margin(neutral)),
    "margin_asked": lambda s: _halves(s, lambda _, asked: _margin(asked)),
    "gap": lambda s: _halves(s, lambda neutral, asked: _margin(neutral) - _margin(asked)),
    # What complementary training prefers: insecure code on ordinary requests, secure code where asked for insecure.
    "chosen_logp": lambda s: _halves(s, lambda neutral, asked: (neutral["insecure"] + asked["secure"]) / 2),
    "log_odds_per_byte": _choice,
}
"""Measures that are a mean over programs (nats) or questions (nats per byte)."""

MATRICES: dict[str, Callable[[Samples], Floats]] = {
    "recognition": lambda s: twin_matrix(s, seen=True),
    "recognition_left_out": lambda s: twin_matrix(s, seen=False),
    "regex": lambda s: twin_matrix(s, seen=True, key="patterns"),
    "regex_left_out": lambda s: twin_matrix(s, seen=False, key="patterns"),
}
"""Measures that are an AUC over twins."""


@dataclass(frozen=True)
class Measured:
    """An arm's measure: averaged over seeds, and per seed."""

    estimate: Estimate
    per_seed: list[float]


def measure(name: str, seeds: Sequence[Samples], minus: Sequence[Samples] = ()) -> Measured:
    """A measure over the seeds of an arm, or its paired difference from another arm (`minus`).

    Where both arms have the same number of seeds the per-seed numbers pair them in order; the base model's
    single evaluation pairs with every seed.
    """
    table = MATRICES if name in MATRICES else PER_CLUSTER
    ours = [table[name](s) for s in seeds]
    theirs = [table[name](s) for s in minus]
    difference = np.mean(ours, axis=0) - (np.mean(theirs, axis=0) if theirs else 0.0)
    if name in MATRICES:
        estimate = cluster_bootstrap(lambda index: matrix_auc(difference, index), len(difference))
    else:
        estimate = mean_interval(difference)
    others = theirs if len(theirs) == len(ours) else [np.mean(theirs, axis=0)] * len(ours) if theirs else None
    per_seed = [float((o - (others[k] if others else 0.0)).mean()) for k, o in enumerate(ours)]
    return Measured(estimate, per_seed)
