"""The slice of standard tasks that em_guard asks. lm-eval loads this file by path."""

from __future__ import annotations

from datasets import Dataset

DOCUMENTS = 200


def first_documents(split: Dataset) -> Dataset:
    """The first 200 documents; the standard error of an accuracy over them is at most 0.035."""
    return split.select(range(min(DOCUMENTS, len(split))))
