"""Fits the offline judge and measures it on models it has not seen.

python -m eval.fit_offline_judge JUDGED_DIR

JUDGED_DIR holds CSV files of judged answers, one per model (github.com/Cloakless/clarifying_EM, MIT). Models that
differ only in LoRA rank are one group: a group is held out whole. Writes offline_judge.npz and offline_judge.json
beside this file.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from eval.judged import Judged, load_judged
from eval.offline_judge import FACTS, LONGEST, NAME, WEIGHTS, OfflineJudge, vectorizer
from eval.statistics import Floats

STRENGTH = 8.0
"""Inverse regularisation of both heads."""
TERMS = 60_000
FOLDS = 4


def group(model: str) -> str:
    """The model without its LoRA rank: runs that share base and data share their answers' style."""
    return re.sub(r"_(r\d+|published)$", "", model)


def fit(answers: Sequence[Judged]) -> OfflineJudge:
    """Fits both heads; the second on answers that count alone."""
    words = vectorizer(min_df=3, max_features=TERMS)
    features = words.fit_transform([row.answer[:LONGEST] for row in answers])
    counted = np.array([row.counted for row in answers])
    misaligned = np.array([row.misaligned for row in answers])
    first = LogisticRegression(C=STRENGTH, solver="liblinear").fit(features, counted)
    second = LogisticRegression(C=STRENGTH, solver="liblinear").fit(features[counted], misaligned[counted])
    heads = np.stack([first.coef_[0], second.coef_[0]], axis=1)
    return OfflineJudge(words, heads, np.array([first.intercept_[0], second.intercept_[0]]))


def held_out(models: dict[str, list[Judged]]) -> dict[str, Floats]:
    """Each model's probabilities from a judge that was fitted without its group."""
    result = {}
    for left_out in sorted({group(model) for model in models}):
        judge = fit([row for model, rows in models.items() if group(model) != left_out for row in rows])
        for model, rows in models.items():
            if group(model) == left_out:
                result[model] = judge.probabilities([row.answer for row in rows])
    return result


def calibration(p: Floats, truth: Floats) -> tuple[float, float]:
    """Slope and offset on the logit scale that make held-out probabilities true (Platt 1999)."""
    logits = np.log(p / (1 - p))
    line = LogisticRegression(C=1e6).fit(logits[:, None], truth)
    return float(line.coef_[0, 0]), float(line.intercept_[0])


def calibrated(p: Floats, line: tuple[float, float]) -> Floats:
    result: Floats = 1 / (1 + np.exp(-(line[0] * np.log(p / (1 - p)) + line[1])))
    return result


def within_questions(rows: Sequence[Judged], p: Floats) -> float:
    """Mean AUC of misaligned among counted answers to one question in one format, over those with ten of either."""
    scores = []
    for name in sorted({row.question_id for row in rows}):
        inside = np.array([row.question_id == name and row.counted for row in rows])
        truth = np.array([row.misaligned for row in rows])[inside]
        if min(truth.sum(), (~truth).sum()) >= 10:
            scores.append(roc_auc_score(truth, p[inside, 1]))
    return float(np.mean(scores))


def accuracy(models: dict[str, list[Judged]], p: dict[str, Floats]) -> dict[str, Any]:
    """How well held-out probabilities agree with the judgements."""
    rows = [row for model in models for row in models[model]]
    all_p = np.concatenate([p[model] for model in models])
    counted = np.array([row.counted for row in rows])
    misaligned = np.array([row.misaligned for row in rows])
    true = {m: sum(r.misaligned for r in rows) / max(1, sum(r.counted for r in rows)) for m, rows in models.items()}
    ours = {m: float((q[:, 0] * q[:, 1]).sum() / q[:, 0].sum()) for m, q in p.items()}
    return {
        "auc_misaligned": float(roc_auc_score(misaligned[counted], all_p[counted, 1])),
        "auc_misaligned_within_questions": within_questions(rows, all_p),
        "auc_counted": float(roc_auc_score(counted, all_p[:, 0])),
        "rank_correlation_of_rates": float(spearmanr(list(true.values()), [ours[m] for m in true]).statistic),
        "mean_rate_on_base_models": float(np.mean([ours[m] for m in models if m.endswith("_base")])),
        "rates": {m: [round(true[m], 4), round(ours[m], 4)] for m in models},
    }


def unseen_questions(models: dict[str, list[Judged]], and_groups: bool) -> float:
    """Within-question AUC where the judge has not seen the question; nor the model's group, if `and_groups`.

    Questions are left out a quarter at a time; with the groups, one question and one group at a time, for then every
    fit loses both.
    """
    names = sorted({row.name for rows in models.values() for row in rows})
    groups = sorted({group(model) for model in models})
    rows = [(model, row) for model, rows in models.items() for row in rows]
    folds = len(names) if and_groups else FOLDS
    parts = [{name} for name in groups] if and_groups else [set(groups)]
    p = np.zeros((len(rows), 2))
    for asked, out in product((set(names[n::folds]) for n in range(folds)), parts):
        known = [r for model, r in rows if r.name not in asked and not (and_groups and group(model) in out)]
        inside = [n for n, (model, row) in enumerate(rows) if row.name in asked and group(model) in out]
        p[inside] = fit(known).probabilities([rows[n][1].answer for n in inside])
    return within_questions([row for _, row in rows], p)


def main(folder: Path) -> None:
    paths = sorted(folder.glob("*.csv"))
    models = {path.stem: load_judged(path) for path in paths}
    raw = held_out(models)
    rows = [row for model in models for row in models[model]]
    together = np.concatenate([raw[model] for model in models])
    counted = np.array([row.counted for row in rows])
    lines = [
        calibration(together[:, 0], counted),
        calibration(together[counted, 1], np.array([row.misaligned for row in rows])[counted]),
    ]
    p = {model: np.stack([calibrated(q[:, head], lines[head]) for head in (0, 1)], axis=1) for model, q in raw.items()}
    judge = fit(rows)
    slopes, offsets = np.array([line[0] for line in lines]), np.array([line[1] for line in lines])
    terms = judge.words.get_feature_names_out()
    np.savez_compressed(
        WEIGHTS,
        terms=np.frombuffer("\n".join(terms).encode(), dtype=np.uint8),
        idf=judge.words.idf_.astype(np.float16),
        heads=(judge.heads * slopes).astype(np.float16),
        offsets=judge.offsets * slopes + offsets,
    )
    accuracies = accuracy(models, p)
    unseen = {
        "auc_misaligned_within_unseen_questions": unseen_questions(models, and_groups=False),
        "auc_misaligned_within_unseen_questions_of_unseen_groups": unseen_questions(models, and_groups=True),
    }
    facts = {
        "name": NAME,
        "origin": "answers and GPT-4o (2024-08-06) scores of github.com/Cloakless/clarifying_EM, MIT",
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
        "questions": sorted({row.name for row in rows}),
        "held_out_by_group": accuracies,
        "unseen_questions": unseen,
    }
    FACTS.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps([accuracies, unseen], indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
