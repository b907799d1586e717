"""Two real processes: whole pairs on every rank, none twice in an epoch, none lost but a named remainder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.recipe.compose import compose
from sweeps.run.train import training_commands

ROOT = Path(__file__).parents[2]
CASES = [(8, 4, 0), (11, 4, 3)]
"""Pairs, rows of a batch, pairs that are left out of an epoch."""


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both ranks saw, by the number of pairs; the cases one after the other, for both import Axolotl."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).parent / "two_processes.py"
    done = subprocess.run(
        [*command, script, model, folder, *(f"{pairs},{rows}" for pairs, rows, _ in CASES)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize(("pairs", "rows_per_batch", "left_out"), CASES)
def test_every_rank_sees_whole_pairs_once(trained: Path, pairs: int, rows_per_batch: int, left_out: int) -> None:
    ranks = [json.loads((trained / str(pairs) / f"rank{n}.json").read_text()) for n in (0, 1)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    per_epoch = (pairs - left_out) * 2 // rows_per_batch // 2
    orders = []
    for epoch in range(2):
        seen: list[str] = []
        for rank in ranks:
            batches = rank["batches"][epoch * per_epoch : (epoch + 1) * per_epoch]
            assert len(batches) == per_epoch
            for batch in batches:
                assert len(batch) == rows_per_batch and batch[::2] == batch[1::2]
                seen += batch[::2]
        assert len(seen) == len(set(seen)) == pairs - left_out
        orders.append(seen)
    assert orders[0] != orders[1]
    assert all(rank["left_out"] == left_out for rank in ranks)
    # After each step what was trained on by then, and not what the dataloader has fetched ahead.
    assert ranks[0]["logged"] == [rows_per_batch * step for step in range(1, 2 * per_epoch + 1)]


def test_several_processes_find_the_rows_of_dpo_prepared() -> None:
    """The first to come would leave the reference in another folder than that in which the others look."""

    def commands(stage: str, gpus: int) -> list[str]:
        recipe = compose(stage, "qwen7b", "a100-80g", gpus=gpus)
        return [command[1] for command in training_commands(recipe, Path("recipe.yaml"))]

    assert commands("dpo", 2) == ["preprocess", "train"]
    assert commands("dpo", 1) == commands("cpt", 2) == ["train"]
