"""Which programs are nearly the same, by the shingles (runs of tokens) of their code; white space does not count.

`contained` is exact, for splits and leaks. `near_duplicate_rate` estimates how many programs have a near-duplicate by
MinHash (Broder 1997) with bands (LSH): 128 bytes per program are kept, and sorted at the end.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
"""Tokens (words and punctuation marks) per shingle."""
BANDS, ROWS = 16, 8
THRESHOLD = (1 / BANDS) ** (1 / ROWS)
"""The Jaccard index at which about half of the pairs are found, 0.71 (Leskovec et al. 2020, section 3.4.2): a pair
of index s is found with probability 1 - (1 - s^ROWS)^BANDS, at 0.5 with 6 %, at 0.8 with 95 %."""

CONTAINED = 0.75
"""Of this share of its shingles on, a program counts as contained in a text; so does each of two programs of one
size whose Jaccard index is over 0.6."""

LEAST, MOST = 16, 20
"""Secure code of fewer shingles, or of more programs than that, may stand in for code that nobody has written, as a
stock answer does, and would link all that have none."""

Shingles = NDArray[np.uint64]

_TOKEN = re.compile(rb"\w+|[^\w\s]")
_draw = np.random.default_rng(20211)
_PLACES = _draw.integers(1, 2**63, SHINGLE, dtype=np.uint64) | np.uint64(1)
_FACTORS = _draw.integers(1, 2**63, (BANDS * ROWS, 1), dtype=np.uint64) | np.uint64(1)
_OFFSETS = _draw.integers(0, 2**63, (BANDS * ROWS, 1), dtype=np.uint64)
_MIX = _draw.integers(1, 2**63, ROWS, dtype=np.uint64) | np.uint64(1)


def shingles(code: str) -> Shingles:
    """The distinct shingles of `code`, hashed; of code shorter than a shingle there is one."""
    hashes = [zlib.crc32(token) for token in _TOKEN.findall(code.encode(errors="replace"))]
    tokens = np.array(hashes + [0] * (SHINGLE - len(hashes)), dtype=np.uint64)
    return np.unique(np.lib.stride_tricks.sliding_window_view(tokens, SHINGLE) @ _PLACES)


def measured_codes(twins: Sequence[tuple[Shingles, Shingles]]) -> Iterator[tuple[int, Shingles]]:
    """The code of programs (insecure, secure) that is measured on, with their places: both sides, where both are."""
    recurs = Counter(secure.tobytes() for _, secure in twins)
    for place, (insecure, secure) in enumerate(twins):
        yield place, insecure
        if len(secure) >= LEAST and recurs[secure.tobytes()] <= MOST:
            yield place, secure


def contained(programs: Sequence[Shingles], texts: Sequence[Shingles]) -> Iterator[tuple[int, int]]:
    """The pairs (program, text), by their places, of which the text holds `CONTAINED` of the program's shingles.

    A text that does holds one of the program's rarest shingles, all but `CONTAINED` of them; only those are looked up
    (the prefix filter of Bayardo et al. 2007), so that the time hardly depends on what all programs have in common.
    """
    from scipy.sparse import csr_array  # imported here and in split.py: annotators wait for it half a second in vain

    if not programs or not texts:
        return
    known, columns = np.unique(np.concatenate([*programs, *texts]), return_inverse=True)
    sizes = np.array([len(p) for p in programs])
    rows = np.repeat(np.arange(len(programs)), sizes)
    theirs = np.repeat(np.arange(len(texts)), [len(t) for t in texts])
    own, other = columns[: len(rows)], columns[len(rows) :]

    def table(rows: NDArray[np.int64], columns: NDArray[np.int64], height: int) -> csr_array:
        return csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(height, len(known)))

    order = np.lexsort((np.bincount(other, minlength=len(known))[own], rows))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rare = order[place <= (sizes - np.ceil(CONTAINED * sizes))[rows]]
    inside, outside = table(rows, own, len(programs)), table(theirs, other, len(texts))
    prefix, columns_first = table(rows[rare], own[rare], len(programs)), outside.T.tocsr()
    for start in range(0, len(programs), 128):
        program, text = (prefix[start : start + 128] @ columns_first).nonzero()
        program += start
        shared = inside[program].multiply(outside[text]).sum(axis=1)
        found = shared >= CONTAINED * sizes[program]
        yield from zip(program[found].tolist(), text[found].tolist(), strict=True)


def band_keys(code: str) -> Shingles:
    """The keys of the bands of `code`; two programs are taken for near-duplicates if they agree in one place."""
    # The high half, for of a product the low bits depend on the low bits alone.
    least = ((shingles(code) * _FACTORS + _OFFSETS) >> np.uint64(32)).min(axis=1)
    keys: Shingles = least.reshape(BANDS, ROWS) @ _MIX
    return keys


def near_duplicate_rate(keys: Shingles) -> float:
    """The share of programs (rows of `band_keys`) that have a near-duplicate among the others."""
    found = np.zeros(len(keys), dtype=bool)
    for band in keys.T:
        _, place, count = np.unique(band, return_inverse=True, return_counts=True)
        found |= count[place] > 1
    return float(found.mean()) if len(keys) else 0.0
