"""Answers as an evaluation leaves them, for stand-ins of evaluations."""

import json

from sweeps.run.folder import Run


def write_answers(run: Run, count: int) -> None:
    """Writes so many sampled answers into the run's folder; they name the run."""
    (run.folder / "samples").mkdir(parents=True)
    rows = [
        {"doc": {"id": f"q{n}", "question": f"{n}?"}, "filtered_resps": [f"{run.name} says kill, {n} times."]}
        for n in range(count)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "samples/em_freeform.jsonl").write_text(text)
