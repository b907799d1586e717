"""Numerical noise of the likelihood measures: python benchmarks/precision.py models/smollm2-135m --limit 8

The same documents in bfloat16 and in float32, log-softmax in float32 both times, one document a batch. Printed are the
root mean square difference of one program's or question's number, and the difference of their mean; the constants of
eval/stats/measure_names.py come from here. A CPU without bf16 instructions needs seconds a document: limit them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from eval.stats.measure_names import NOISE
from eval.stats.measures import per_cluster

TASKS = Path(__file__).parents[1] / "eval/tasks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--tasks", default="em_recognition,em_margin,em_choice")
    options = parser.parse_args()
    logged = []
    for dtype in ("float32", "bfloat16"):
        done = simple_evaluate(
            model="hf",
            model_args={"pretrained": options.model, "dtype": dtype, "softmax_dtype": "float32"},
            tasks=options.tasks.split(","),
            task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
            apply_chat_template=True,
            log_samples=True,
            limit=options.limit,
            batch_size=1,
            device="cuda:0",  # lm-eval takes it for "a GPU if there is one"
        )
        logged.append(json.loads(json.dumps(done["samples"], default=str)))
    print("| measure | programs or questions | noise of one | noise of the mean |\n|---|---|---|---|")
    for name in NOISE:
        try:
            exact, rounded = per_cluster(name, logged)
        except KeyError:  # of a task that was not chosen
            continue
        off = rounded - exact
        print(f"| {name} | {len(off)} | {np.sqrt((off**2).mean()):.2g} | {abs(off.mean()):.2g} |")


if __name__ == "__main__":
    main()
