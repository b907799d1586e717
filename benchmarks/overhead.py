"""What `emsweep train` costs beyond `axolotl train` on the same recipe: python benchmarks/overhead.py [--steps 20]

Baseline, in the same run: `axolotl train` on the composed recipe, started with the environment that emsweep gives.
Both are whole processes, from the start to the adapter on disk, each in a folder of its own; they take turns.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from sweeps.recipe.compose import compose
from sweeps.run.process import child_environment, tool
from sweeps.run.train import training_commands


def timed(command: list[str], folder: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=child_environment(local_model=True), check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    settings = [f"max_steps={asked.steps}", "sequence_len=512", "save_steps=1000"]
    ours, theirs = [], []
    for _ in range(asked.repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for there in ("models", "data"):
                (folder / there).symlink_to(Path(there).resolve())
            flags = [flag for setting in settings for flag in ("--set", setting)]
            ours.append(timed([tool("emsweep"), "train", "cpt", *flags], folder))
            paths = {"output_dir": "plain/adapter", "dataset_prepared_path": "plain/prepared"}
            recipe = compose("cpt", "smollm2-135m", "cpu", settings, extra=paths)
            (folder / "recipe.yaml").write_text(recipe.to_yaml())
            [command] = training_commands(recipe, Path("recipe.yaml"))
            theirs.append(timed(command, folder))
    print(
        f"emsweep train {' '.join(f'{t:.1f}' for t in ours)} s; axolotl train {' '.join(f'{t:.1f}' for t in theirs)} s"
    )
    print(f"ratio of the medians {statistics.median(ours) / statistics.median(theirs):.3f}")


if __name__ == "__main__":
    main()
