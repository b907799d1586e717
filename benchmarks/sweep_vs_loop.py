"""`emsweep rank` against a plain shell loop over the same points: python benchmarks/sweep_vs_loop.py [--keep FOLDER]

Baseline, in the same run: for each rank `axolotl preprocess`, `train`, `merge-lora`, and `lm_eval run` on the merged
model, on the same recipe (its reference asked at every step, as Axolotl has it) in a shell's own environment. CPT, and
the evaluations of the base and of CPT, are done once before and shared by both sides. Half of the points go to the loop
first, then the sweep runs, then the other half: a drift of the machine's speed falls on both.

It takes about three hours on 2 cores. With --keep, what has been timed stays in FOLDER/times.json and is not
timed again; what was cut off begins anew.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from core.records import write_whole
from sweeps.plan.axes import vary
from sweeps.plan.declaration import load_sweep
from sweeps.plan.sweep import graph, plan
from sweeps.run.evaluate import TASKS
from sweeps.run.process import child_environment, tool

SHELL = {**os.environ, "PATH": f"{Path(tool('python')).parent}:{os.environ['PATH']}", "AXOLOTL_DO_NOT_TRACK": "1"}


def timed(command: Sequence[str]) -> float:
    """Seconds of a command, which is printed."""
    print("$", shlex.join(command), flush=True)
    began = time.perf_counter()
    with Path("log").open("ab") as log:
        subprocess.run(command, env=SHELL, stdout=log, stderr=log, check=True)
    return time.perf_counter() - began


def begin_anew(name: str, recipe: dict, **settings: Any) -> str:
    """Writes NAME.yaml, which trains into NAME, and removes what an earlier try left there; returns its name."""
    for folder in (name, f"{name}-prepared", f"{name}-scores"):
        shutil.rmtree(folder, ignore_errors=True)
    where = {"output_dir": name, "dataset_prepared_path": f"{name}-prepared"}
    Path(f"{name}.yaml").write_text(yaml.safe_dump({**recipe, **where, **settings}))
    return f"{name}.yaml"


def keep(times: dict) -> None:
    write_whole(Path("times.json"), json.dumps(times, indent=1))


def loop(points: list, tasks: list[str], evaluation: dict, times: dict) -> None:
    """Seconds of each command for each point, into `times` by the point's name."""
    for point in points:
        recipe = point.training.whole_recipe.config
        name = f"loop-r{recipe['lora_r']}"
        if name in times:
            continue
        written = begin_anew(name, recipe, precompute_ref_log_probs=False)
        score = ["lm_eval", "run", "--model", "hf", "--include_path", str(TASKS), "--tasks", ",".join(tasks)]
        how = f"pretrained={name}/merged,dtype=bfloat16,softmax_dtype=float32"
        how += f",attn_implementation={evaluation['attention']}"
        score += ["--model_args", how, "--apply_chat_template", "--batch_size", str(evaluation["batch_size"])]
        score += ["--metadata", json.dumps(evaluation["metadata"]), "--log_samples", "--output_path", f"{name}-scores"]
        commands = {
            "preprocess": ["axolotl", "preprocess", written],
            "train": ["axolotl", "train", written],
            "merge": ["axolotl", "merge-lora", written],
            "evaluate": score,
        }
        times[name] = {stage: timed(command) for stage, command in commands.items()}
        keep(times)


def step_seconds(recipe: dict, steps: int = 10) -> dict[str, float]:
    """Seconds of a training step: in a shell's own environment, then with one more of the sweep's savings each time."""
    ours = child_environment(local_model=True)
    threads = {**SHELL, "OMP_NUM_THREADS": ours["OMP_NUM_THREADS"]}
    ways = {"shell": (SHELL, False), "threads": (threads, False), "memory": (ours, False), "reference": (ours, True)}
    seconds = {}
    for way, (env, known) in ways.items():
        written = begin_anew(f"step-{way}", recipe, precompute_ref_log_probs=known, max_steps=steps)
        command = ["axolotl", "train", written, *([] if way == "shell" else ["--launcher", "python"])]
        its = [f"{key}={env[key]}" for key in sorted(env) if key.startswith(("OMP_", "MALLOC_"))]
        print("$", *its, shlex.join(command), flush=True)
        said = subprocess.check_output(command, env=env, text=True, stderr=subprocess.STDOUT)
        seconds[way] = float(re.findall(r"'train_runtime': '?([0-9.]+)", said)[-1]) / steps
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", default="1,2,4,8,64")
    parser.add_argument("--steps", type=int, help="Of training; the declared ones if not given.")
    parser.add_argument("--keep", type=Path, help="Where it works, and goes on; else in a folder that is removed.")
    asked = parser.parse_args()
    here = Path.cwd()
    with nullcontext(asked.keep) if asked.keep else tempfile.TemporaryDirectory() as name:
        Path(name).mkdir(parents=True, exist_ok=True)
        os.chdir(name)
        for folder in ("models", "data"):
            if not Path(folder).exists():
                Path(folder).symlink_to(here / folder)
        times = json.loads(Path("times.json").read_text()) if Path("times.json").exists() else {}
        declared = load_sweep("rank").model_dump()
        if asked.steps:
            for stage in declared["stages"].values():
                stage["max_steps"] = asked.steps
        Path("rank.yaml").write_text(yaml.safe_dump(declared))
        sweep = load_sweep("rank.yaml")
        every = plan(vary(sweep, {"rank": asked.values.split(",")}), full=False)
        points = [p for p in every if p.training and p.training.stage == "dpo"]
        export = ["emsweep", "export", "rank.yaml"]
        written = Path(subprocess.check_output(export, env=SHELL, text=True).split()[-1]).with_name("sweep.json")
        for run in graph([p for p in every if p not in points]).values():
            if not run.done:
                timed(["emsweep", "exec", str(written), run.digest])
        evaluation = sweep.evaluation.model_dump()
        half = len(points) // 2
        loop(points[:half], sweep.tasks, evaluation, times)
        if "sweep" not in times:
            for point in points:
                for run in (point.training, point.evaluation):
                    shutil.rmtree(run.folder, ignore_errors=True)
            shutil.rmtree("runs/reference", ignore_errors=True)
            times["sweep"] = timed(["emsweep", "rank", "--sweep", "rank.yaml", "--values", asked.values])
            keep(times)
        loop(points[half:], sweep.tasks, evaluation, times)
        if "step" not in times:
            times["step"] = step_seconds(points[half].training.whole_recipe.config)
            keep(times)
        records = [
            json.loads((run.folder / "run.json").read_text()) for p in points for run in (p.training, p.evaluation)
        ]
        os.chdir(here)
    theirs, ours = [its for name, its in times.items() if name.startswith("loop-")], times["sweep"]
    mean = {stage: statistics.mean(point[stage] for point in theirs) for stage in theirs[0]}
    mine = {s: statistics.mean(r["wall_seconds"] for r in records if r["stage"] == s) for s in ("dpo", "evaluate")}
    whole = sum(sum(point.values()) for point in theirs)
    print("a point of the loop, s:", ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in mean.items()))
    print(f"a point of the sweep, s: train {mine['dpo']:.1f}, evaluate {mine['evaluate']:.1f}")
    print(
        f"saved a point, s: preprocess and training {mean['preprocess'] + mean['train'] - mine['dpo']:.1f}, "
        f"merging {mean['merge']:.1f}, evaluation (base kept, threads) {mean['evaluate'] - mine['evaluate']:.1f}"
    )
    steps = ", ".join(f"{way} {seconds:.2f}" for way, seconds in times["step"].items())
    print(f"a training step, s, each with what stands before it: {steps} (known beforehand)")
    print(f"{len(points)} points: loop {whole:.0f} s, sweep {ours:.0f} s, ratio {ours / whole:.3f}")


if __name__ == "__main__":
    main()
