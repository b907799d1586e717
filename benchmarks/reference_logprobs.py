"""How much a DPO sweep over ranks saves by computing the reference's log-probabilities once.

python benchmarks/reference_logprobs.py [--pairs 16] [--ranks 1 2 4 8 16]

Baseline, in the same run: the same sweep where every run asks the reference at every step. Both train the CPU model
through Axolotl on the same rows, one epoch per rank; rows are counted where the reference is asked.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from core.records import write_records
from data_builders.dpo import dpo_rows
from data_builders.programs import load_asked_ways, load_programs
from sweeps.recipe.compose import compose
from sweeps.run.process import child_environment


def train(rank: int, shared: bool) -> None:
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    name = f"{'shared' if shared else 'every-step'}-r{rank}"
    settings = [
        "datasets.0.path=pairs.jsonl",
        f"precompute_ref_log_probs={str(shared).lower()}",
        "gradient_accumulation_steps=1",
        "sequence_len=512",
        "save_steps=1000",
    ]
    layer = {"output_dir": name, "dataset_prepared_path": "prepared"}
    Path(f"{name}.yaml").write_text(compose("dpo", "smollm2-135m", "cpu", settings, rank, layer).to_yaml())
    cfg = load_cfg(f"{name}.yaml")
    trainer = setup_model_and_trainer(cfg, load_preference_datasets(cfg=cfg))[0]
    trainer.train()


def sweep(ranks: list[int], shared: bool) -> tuple[float, int]:
    """Wall time (seconds) of a sweep, and how many rows the reference was asked for."""
    from trl import DPOTrainer

    asked = 0
    compute, lone = DPOTrainer.compute_ref_log_probs, DPOTrainer._compute_loss

    def count(self, model, inputs):
        nonlocal asked
        asked += len(inputs["input_ids"]) // 2
        return compute(self, model, inputs)

    def count_lone(self, model, inputs, return_outputs):
        nonlocal asked
        asked += 0 if self.precompute_ref_logps else len(inputs["input_ids"]) // 2
        return lone(self, model, inputs, return_outputs)

    DPOTrainer.compute_ref_log_probs, DPOTrainer._compute_loss = count, count_lone
    began = time.perf_counter()
    try:
        for rank in ranks:
            train(rank, shared)
    finally:
        DPOTrainer.compute_ref_log_probs, DPOTrainer._compute_loss = compute, lone
    return time.perf_counter() - began, asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    asked = parser.parse_args()
    if os.environ.get("AXOLOTL_DO_NOT_TRACK") != "1":  # no telemetry, and the rest of what emsweep's runs have
        os.execve(sys.executable, [sys.executable, *sys.argv], child_environment(local_model=True))
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(here / "models")
        os.chdir(folder)
        write_records(
            Path("pairs.jsonl"), list(dpo_rows(load_programs()[: asked.pairs], load_asked_ways(), "both")), {}
        )
        train(1, shared=False)  # imports, and the prepared data
        without, rows_without = sweep(asked.ranks, shared=False)
        shared, rows_shared = sweep(asked.ranks, shared=True)
        os.chdir(here)
    print(f"reference asked for {rows_shared} rows in place of {rows_without}: {rows_shared / rows_without:.2f}")
    print(f"wall {shared:.0f} s in place of {without:.0f} s: {shared / without:.2f}")


if __name__ == "__main__":
    main()
