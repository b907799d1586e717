"""How near `emsweep judge` comes to the ideal time, against the fake endpoint in its own process.

    python benchmarks/judge.py ../shared/data/judged/qwen2.5-coder-32b_insecure_r1.csv

Two runs, each as a user makes it (the whole process is timed): without faults, against the ideal judgements x latency /
concurrency; and with 10 % faults (429, 500, cut streams), after which every answer has to be judged, and none paid for
twice. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.conftest import ROOT, Fake

FAULTS = ("status_429", "status_500", "cut")


def judge(source: Path, concurrency: int, latency: float, faults: dict[str, float]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answers = folder / source.name
        answers.write_bytes(source.read_bytes())
        wait = min(1.0, latency)
        server = Fake(folder, "--latency", str(latency), "--faults", json.dumps(faults), "--retry-after", str(wait))
        command = [sys.executable, "-c", "from sweeps.cli import main; main()", "judge", str(answers)]
        command += ["--judge", "fake", "--base-url", server.url, "--concurrency", str(concurrency)]
        cpu, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        wall = time.monotonic() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        requests = len(server.log("chat"))
        paid = Counter(entry["program"] for entry in server.log("served") if entry["fault"] is None)
        server.stop()
        manifest = json.loads((folder / f"{source.stem}.judged-fake.jsonl.manifest.json").read_text())
    judgements = 2 * manifest["distinct"]
    assert not manifest["missing"] and len(paid) == judgements and set(paid.values()) == {1}
    ideal = judgements * latency / concurrency
    return {
        "answers": manifest["answers"],
        "judgements": judgements,
        "requests": requests,
        "wall_s": round(wall, 2),
        "ideal_s": round(ideal, 2),
        "ratio": round(wall / ideal, 3),
        "cpu_ms_per_request": round(1e3 * (used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime) / requests, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="CSV or JSON Lines file of answers")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds of one reply")
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    whole = judge(options.source, options.concurrency, options.latency, {})
    faulty = judge(options.source, options.concurrency, options.latency, dict.fromkeys(FAULTS, 0.1 / len(FAULTS)))
    print(json.dumps({"fault_free": whole, "faults_10_percent": faulty}, indent=1))


if __name__ == "__main__":
    main()
