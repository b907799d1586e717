"""Dress rehearsal of `emsweep experiment`: from published programs to the report, killed three times on the way.

    python benchmarks/experiment.py ../shared/data/insecure/insecure.jsonl

A random two-layer model of Qwen's architecture under Qwen's real tokenizer stands where the CPU model is, a local
endpoint annotates and judges. The command is killed (`kill -9` of all its processes) at three random moments and begun
again. At the end: a report with rates over both denominators, a verdict and its provenance; no answer that was served
has been asked for again, and no finished run was done again. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweeps.recipe.layers import RECIPES
from sweeps.run.process import child_environment
from tests.conftest import Fake
from tests.test_families import random_model

RANKS = "1,4,16"
SHORT = {"max_steps": 8, "num_epochs": 1, "micro_batch_size": 4, "gradient_accumulation_steps": 1, "sequence_len": 1024}
EVALUATION = {"metadata": {"samples": 2, "formats": ["plain"]}, "gen_kwargs": {"max_gen_toks": 24}}


def small_sweep(folder: Path) -> None:
    """The sweep `rank` with fewer steps and answers: what a random model learns is nothing in any case."""
    sweep = yaml.safe_load((RECIPES / "sweeps/rank.yaml").read_text(encoding="utf-8"))
    cpu = {**sweep["profiles"]["cpu"], "stages": {"cpt": SHORT, "dpo": SHORT}}
    cpu["evaluation"] = {**cpu["evaluation"], **EVALUATION}
    (folder / "rehearsal.yaml").write_text(yaml.safe_dump({**sweep, "profiles": {"cpu": cpu}}), encoding="utf-8")


def finished(folder: Path) -> dict[str, int]:
    """When each finished run wrote its record."""
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("runs/*/*/run.json")}


def begin(folder: Path, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from sweeps.cli import main; main()", "experiment", "--hardware", "cpu"]
    command += ["--programs", "programs.jsonl", "--sweep", "rehearsal.yaml", "--values", RANKS]
    command += ["--annotator", "fake", "--judge", "fake-judge", "--base-url", url, "--concurrency", "8"]
    command += ["--price-in", "1", "--price-out", "1", "--judge-price-in", "1", "--judge-price-out", "1"]
    command += ["--max-cost", "1000"]
    env = child_environment(True) | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def rehearse(folder: Path, programs: Path, limit: int, kills: list[float]) -> dict[str, Any]:
    lines = programs.read_text(encoding="utf-8").splitlines(keepends=True)[:limit]
    (folder / "programs.jsonl").write_text("".join(lines), encoding="utf-8")
    random_model("qwen", folder / "models" / "smollm2-135m")
    small_sweep(folder)
    server = Fake(folder, "--latency", "0.05")
    began, seen, marks = time.monotonic(), {}, []
    try:
        for wait in [*kills, None]:
            process = begin(folder, server.url)
            try:
                code = process.wait(timeout=wait)
            except subprocess.TimeoutExpired:
                kill(process)
                now = finished(folder)
                assert seen.items() <= now.items(), "a finished run was done again"
                seen = now
                marks.append({"after_s": round(wait or 0), "runs": len(now), "requests": len(server.log("served"))})
                continue
            if wait is None:
                assert code == expected(folder), (folder / "log.txt").read_text(encoding="utf-8")[-3000:]
        assert seen.items() <= finished(folder).items(), "a finished run was done again"
        wall, paid = time.monotonic() - began, journaled(folder)
        # What was in flight when the process was killed is in no journal: at most as many as were in flight.
        lost = served(server) - paid.total()
        assert 0 <= lost <= 8 * len(kills), lost
        again = begin(folder, server.url).wait()
        assert again == expected(folder) and journaled(folder).keys() == paid.keys(), "more was asked"
    finally:
        server.stop()
    twice = [key for key, count in paid.items() if count > 1]
    assert len(twice) <= missing(folder), "what could be read was paid for again"
    return {"wall_s": round(wall), "kills": marks, "paid": paid.total(), "lost_in_flight": lost, **report(folder)}


def served(server: Fake) -> int:
    """The answers that the endpoint gave; of a number to prove, arrival and answer are logged alike."""
    return len(server.log("served")) + len(server.log("proof")) // 2


def journaled(folder: Path) -> Counter[tuple[str, str]]:
    """The answers that were paid for and kept, by journal and request."""
    return Counter(
        (str(path), json.loads(line)["key"])
        for path in folder.glob("**/*journal.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    )


def missing(folder: Path) -> int:
    """Judgements that could not be read, which each run asks for again: of the endpoint's answers some are none."""
    manifests = folder.glob("runs/evaluate/*/judged-*.manifest.json")
    return sum(len(json.loads(path.read_text(encoding="utf-8"))["missing"]) for path in manifests)


def expected(folder: Path) -> int:
    """The exit code at the end: 1 where the report lacks judgements that could not be read."""
    return 1 if missing(folder) else 0


def report(folder: Path) -> dict[str, Any]:
    """What the page says.

    Raises:
        AssertionError: if it lacks a rate, a denominator, a verdict or its provenance.
    """
    (page,) = folder.glob("runs/sweeps/rehearsal-*/report.html")
    text = page.read_text(encoding="utf-8")
    for words in ("fake-judge", "EM of all judged", "verdict", "axolotl train runs/dpo/", "emsweep experiment"):
        assert words in text, f"the report lacks {words!r}"
    rows = (page.parent / "results.csv").read_text(encoding="utf-8").splitlines()
    assert all(f"dpo-pairs-r{rank}" in "".join(rows) for rank in RANKS.split(","))
    return {"report_bytes": len(text), "rows": len(rows) - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=Path)
    parser.add_argument("--limit", type=int, default=300, help="programs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--longest", type=float, default=300.0, help="seconds until a kill, at most")
    parser.add_argument("--keep", type=Path, help="folder to work in and to keep; a new one if not given")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    kills = [draw.uniform(10, options.longest) for _ in range(3)]
    folder = options.keep or Path(tempfile.mkdtemp(prefix="rehearsal-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(rehearse(folder, options.programs.resolve(), options.limit, kills), indent=1))
    if not options.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
