"""How near `embuild annotate` comes to the ideal time, against a local endpoint in its own process.

    python benchmarks/annotate.py ../shared/data/insecure/insecure.jsonl

Two runs, each as a user makes it (the whole process is timed): without faults at full concurrency, against the ideal
N x latency / concurrency; and with 10 % faults, of which all must end accepted or rejected. Prints one JSON object.
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

FAULTS = ("status_429", "status_500", "cut", "truncated", "wrong_cwe", "invented_line", "refusal")


def fake(folder: Path, latency: float, faults: dict[str, float]) -> Fake:
    return Fake(folder, "--latency", str(latency), "--faults", json.dumps(faults), "--retry-after", str(latency))


def annotate(source: Path, concurrency: int, latency: float, faults: dict[str, float]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = fake(folder, latency, faults)
        command = [sys.executable, "-c", "from data_builders.cli import main; main()", "annotate", str(source)]
        command += ["--out", str(folder / "o"), "--model", "fake", "--base-url", server.url]
        command += ["--concurrency", str(concurrency)]
        cpu, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, check=True, cwd=ROOT)
        wall = time.monotonic() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        requests = len(server.log("chat"))
        server.stop()
        manifest = json.loads((folder / "o.jsonl.manifest.json").read_text())
        rejects = [json.loads(line) for line in (folder / "o.rejects.jsonl").open()]
    assert manifest["read"] == manifest["written"] + len(rejects)
    assert all(reject["reasons"] for reject in rejects)
    ideal = manifest["read"] * latency / concurrency
    return {
        "programs": manifest["read"],
        "written": manifest["written"],
        "rejected_for": manifest["rejected_for"],
        "requests": requests,
        "wall_s": round(wall, 2),
        "ideal_s": round(ideal, 2),
        "ratio": round(wall / ideal, 3),
        "cpu_ms_per_request": round(1e3 * (used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime) / requests, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--limit", type=int, help="programs; all if not given")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds of one answer")
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / options.source.name
        source.write_text("".join(options.source.read_text().splitlines(keepends=True)[: options.limit]))
        whole = annotate(source, options.concurrency, options.latency, {})
        faulty = annotate(source, options.concurrency, options.latency, dict.fromkeys(FAULTS, 0.1 / len(FAULTS)))
    print(json.dumps({"fault_free": whole, "faults_10_percent": faulty}, indent=1))
    assert Counter(faulty["rejected_for"])["no answer"] == 0


if __name__ == "__main__":
    main()
