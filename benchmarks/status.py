"""`emsweep status` over many runs: python benchmarks/status.py RUNS [--runs 1000]

RUNS is a folder of finished runs (`make demo` leaves one): their records are copied under new names until there are
enough; one in ten is left without its record, with a log of training that was cut off. Prints the seconds of the whole
command, import included, and of writing runs/index.csv.
"""

import argparse
import itertools
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from sweeps.run.index import write_index
from sweeps.run.process import tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--runs", type=int, default=1000)
    asked = parser.parse_args()
    records = sorted(asked.source.glob("*/*/run.json"))
    log = next(path for path in asked.source.glob("*/*/train.log"))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "runs"
        for number, record in zip(range(asked.runs), itertools.cycle(records), strict=False):
            folder = root / record.parts[-3] / f"{record.parts[-2]}-{number}"
            folder.mkdir(parents=True)
            (folder / ".lock").touch()
            if number % 10:
                shutil.copy(record, folder)
            else:
                shutil.copy(log, folder)
        for words in ("first", "again"):
            began = time.perf_counter()
            shown = subprocess.run([tool("emsweep"), "status", root], capture_output=True, text=True, check=True)
            print(f"status of {asked.runs} runs, {words}: {time.perf_counter() - began:.2f} s")
        print(shown.stdout.splitlines()[-1])
        began = time.perf_counter()
        write_index(root)
        print(f"index.csv: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
