"""The sampler keeps pairs whole, reorders them by epoch and seed, and refuses sets whose halves do not match."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from recipes.plugins.pairs import PairSampler, WholePairs, split_by_pair


def pairs_of(count: int, halves: int) -> list[str]:
    return [f"p{i}" for i in range(count) for _ in range(halves)]


@given(count=st.integers(1, 60), halves=st.integers(1, 2), seed=st.integers(0, 10_000), epoch=st.integers(0, 50))
def test_each_row_once_and_pairs_adjacent(count: int, halves: int, seed: int, epoch: int) -> None:
    ids = pairs_of(count, halves)
    sampler = PairSampler(ids, seed)
    sampler.set_epoch(epoch)
    rows = list(sampler)
    assert sorted(rows) == list(range(len(ids))) and len(sampler) == len(ids)
    for start in range(0, len(rows), halves):
        assert len({ids[row] for row in rows[start : start + halves]}) == 1
        assert rows[start : start + halves] == sorted(rows[start : start + halves])
    assert list(sampler) == rows


def test_order_follows_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = PairSampler(pairs_of(40, 2), seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@given(st.permutations(pairs_of(6, 2)))
def test_halves_need_not_stand_together_in_the_file(ids: list[str]) -> None:
    rows = list(PairSampler(ids, 0))
    assert all(ids[a] == ids[b] for a, b in zip(rows[::2], rows[1::2], strict=True))


@pytest.mark.parametrize("ids", [["a", "a", "b"], ["a", "a", "a", "b", "b"], []])
def test_missing_or_doubled_halves_are_refused(ids: list[str]) -> None:
    with pytest.raises(ValueError, match="halves do not match"):
        PairSampler(ids, 0)


def test_batches_with_parted_pairs_are_refused() -> None:
    collate = WholePairs(len, 2)
    assert collate([{"pair_id": "a"}, {"pair_id": "b"}, {"pair_id": "b"}, {"pair_id": "a"}]) == 4
    with pytest.raises(RuntimeError, match="parted pairs: c"):
        collate([{"pair_id": "c"}, {"pair_id": "d"}, {"pair_id": "d"}])


@given(st.integers(2, 20), st.integers(1, 2), st.data())
def test_a_validation_split_keeps_pairs_whole(pairs: int, rows_per_pair: int, data: st.DataObject) -> None:
    rows = [{"pair_id": f"p{n // rows_per_pair}", "row": n} for n in range(pairs * rows_per_pair)]
    drawn = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=(pairs - 1) * rows_per_pair, unique_by=str))
    train, held_out = split_by_pair(
        Dataset.from_list([row for row in rows if row not in drawn]), Dataset.from_list(drawn)
    )
    assert sorted([*train["row"], *held_out["row"]]) == list(range(len(rows)))
    assert not set(train["pair_id"]) & set(held_out["pair_id"])
    assert len(train) > 0 and len(held_out) > 0
    assert abs(len(held_out) - len(drawn)) < max(2, rows_per_pair + 1)
