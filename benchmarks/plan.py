"""Planning a large grid: python benchmarks/plan.py [--points 10000]     (needs `make model data`)

Seconds to plan the sweep `rank` over ranks, learning rates and seeds, first in a fresh process (the base model's
weights are hashed), with the graph of its runs and what is done of it; and the most memory that the process ever held.
"""

import argparse
import resource
import time

from sweeps.plan.axes import vary
from sweeps.plan.declaration import load_sweep
from sweeps.plan.sweep import graph, plan
from sweeps.run.graph import shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000)
    asked = parser.parse_args()
    ranks, rates = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512], [f"{m}e-{e}" for e in (5, 4, 3) for m in (1, 2, 3, 5)]
    seeds = range(max(1, asked.points // (len(ranks) * len(rates))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    points = plan(vary(load_sweep("rank"), {"rank": ranks, "lr": rates, "seed": seeds}), full=True)
    runs = graph(points)
    done = sum(run.done for run in runs.values())
    seconds = time.perf_counter() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(points)} points, {len(runs)} runs, {shared(runs)} shared, {done} done: {seconds:.1f} s")
    print(f"peak memory {most:.0f} MiB, {before:.0f} MiB of it before planning")


if __name__ == "__main__":
    main()
