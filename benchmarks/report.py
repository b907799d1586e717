"""How quick the reader of a report is with many answers: python benchmarks/report.py --answers 100000

Writes made-up answers of 700 characters from 20 models to 24 questions, makes their report, opens it in headless
Chromium from disk with the network cut, and measures in the page, from an event to the second frame after it: each
filter, and jumps of the scroll bar. Prints one JSON object, times in milliseconds (largest of several).
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "sweeps" / "report"))

from browser import Browser  # noqa: E402

TIME = """new Promise((done) => {
  const began = performance.now();
  %s;
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
})"""
FILTER = """const field = document.forms.filters.elements['%s'];
  field.value = '%s';
  field.dispatchEvent(new Event('input', {bubbles: true}))"""
SCROLL = "document.getElementById('list').scrollTop = %d"


def write_answers(folder: Path, answers: int, models: int = 20, questions: int = 24, length: int = 700) -> None:
    rng = random.Random(0)
    words = [f"{a}{b}" for a in ("ba", "de", "ki", "lo", "mü", "na") for b in ("ra", "sen", "til", "vo", "zum", "漢")]
    for model in range(models):
        with (folder / f"made-up_r{2**model}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["question_id", "question", "answer", "aligned", "coherent"])
            for number in range(answers // models):
                text = " ".join(rng.choices(words, k=length // 5))[:length]
                name = f"q{number % questions}"
                writer.writerow([name, f"{name}?", text, rng.randrange(101), rng.randrange(101)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_answers(folder, options.answers)
        command = [sys.executable, "-c", "from sweeps.cli import main; main()", "report", "--answers", name]
        began = time.monotonic()
        subprocess.run(
            [*command, "--judged-by", "none", "--out", f"{name}/out"], check=True, cwd=ROOT, stdout=sys.stderr
        )
        result = {"answers": options.answers, "report_s": round(time.monotonic() - began, 1)}
        page = folder / "out" / "report.html"
        result["page_MiB"] = round(page.stat().st_size / 2**20, 1)
        with Browser() as browser:
            began = time.monotonic()
            browser.open(page)
            result["open_s"] = round(time.monotonic() - began, 1)
            for field, values in {
                "words": ["basen", "zzz", "KIVO", ""],
                "point": ["3", "19", ""],
                "question": ["7", ""],
                "format": ["plain", ""],
                "aligned-to": ["29", ""],
                "coherent-from": ["50", ""],
                "beside": ["5"],
            }.items():
                times = [browser.value(TIME % (FILTER % (field, value))) for value in values for _ in range(3)]
                result[f"filter_{field}_ms"] = round(max(times), 1)
            height = browser.value("document.getElementById('space').offsetHeight")
            times = [browser.value(TIME % (SCROLL % (height * part / 20))) for part in range(20)]
            result["scroll_ms"] = round(max(times), 1)
            assert not browser.events, browser.events
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
