"""How many programs have a near-duplicate: MinHash (Broder 1997) over shingles, with bands (LSH).

Linear in the number of programs: 128 bytes of band keys per program are kept, and sorted at the end.
"""

from __future__ import annotations

import re
import zlib

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
"""Tokens (words and punctuation marks) per shingle."""
BANDS, ROWS = 16, 8
THRESHOLD = (1 / BANDS) ** (1 / ROWS)
"""The Jaccard index at which about half of the pairs are found, 0.71 (Leskovec et al. 2020, section 3.4.2): a pair
of index s is found with probability 1 - (1 - s^ROWS)^BANDS, at 0.5 with 6 %, at 0.8 with 95 %."""

_TOKEN = re.compile(rb"\w+|[^\w\s]")
_draw = np.random.default_rng(20211)
_PLACES = _draw.integers(1, 2**63, SHINGLE, dtype=np.uint64) | np.uint64(1)
_FACTORS = _draw.integers(1, 2**63, (BANDS * ROWS, 1), dtype=np.uint64) | np.uint64(1)
_OFFSETS = _draw.integers(0, 2**63, (BANDS * ROWS, 1), dtype=np.uint64)
_MIX = _draw.integers(1, 2**63, ROWS, dtype=np.uint64) | np.uint64(1)


def band_keys(code: str) -> NDArray[np.uint64]:
    """The keys of the bands of `code`; two programs are taken for near-duplicates if they agree in one place."""
    hashes = [zlib.crc32(token) for token in _TOKEN.findall(code.encode())]
    tokens = np.array(hashes + [0] * (SHINGLE - len(hashes)), dtype=np.uint64)
    shingles = np.unique(np.lib.stride_tricks.sliding_window_view(tokens, SHINGLE) @ _PLACES)
    # The high half, for of a product the low bits depend on the low bits alone.
    least = ((shingles * _FACTORS + _OFFSETS) >> np.uint64(32)).min(axis=1)
    keys: NDArray[np.uint64] = least.reshape(BANDS, ROWS) @ _MIX
    return keys


def near_duplicate_rate(keys: NDArray[np.uint64]) -> float:
    """The share of programs (rows of `band_keys`) that have a near-duplicate among the others."""
    found = np.zeros(len(keys), dtype=bool)
    for band in keys.T:
        _, place, count = np.unique(band, return_inverse=True, return_counts=True)
        found |= count[place] > 1
    return float(found.mean()) if len(keys) else 0.0
