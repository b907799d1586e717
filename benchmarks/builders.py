"""Time and memory of the builders on large sets: python benchmarks/builders.py --sizes 25000 50000 100000 200000

The sets are the built-in programs with their names changed, so every program is annotated, parses, and is
unlike the others. Prints a Markdown table; "to linear" is the CPU time per program over that of the smallest set
(CPU time, for on a busy machine the wall time says little). Resident memory is the peak of the command's process.
"""

from __future__ import annotations

import argparse
import ast
import keyword
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_builders.programs import Program, load_programs

COMMANDS = {
    "describe": ["describe", "--programs", "{programs}", "--json", "{out}"],
    "cpt": ["cpt", "--programs", "{programs}", "--out", "{out}"],
    "dpo": ["dpo", "--programs", "{programs}", "--out", "{out}"],
}
"""Arguments of `embuild`; {programs} is the set, {out} a path to write to."""


def own_names(code: str) -> set[str]:
    """The names that `code` gives to its functions, parameters and variables."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return {name for name in names if not name.startswith("__") and not keyword.iskeyword(name)}


def make_programs(path: Path, number: int) -> None:
    """Writes `number` annotated programs."""
    programs = load_programs()
    names = [re.compile(rf"\b({'|'.join(sorted(own_names(p.insecure) | own_names(p.secure)))})\b") for p in programs]
    with path.open("w", encoding="utf-8") as file:
        for n in range(number):
            turn, place = divmod(n, len(programs))
            program, own = programs[place], names[place]
            texts = ("insecure", "secure", "explanation", "fix")
            new = {field: own.sub(rf"\1_{turn}", getattr(program, field)) for field in texts}
            fields = {**new, "id": f"{program.id}-{turn}", "request": f"{program.request} (Project {turn}.)"}
            file.write(Program(**{**program.model_dump(), **fields}).model_dump_json(exclude_none=True) + "\n")


def measure(arguments: list[str]) -> tuple[float, float, float]:
    """Runs `embuild`: seconds of wall time, seconds of CPU time, peak resident memory in MiB."""
    command = [sys.executable, "-c", "from data_builders.cli import main; main()", *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"embuild {' '.join(arguments)}: exit status {os.waitstatus_to_exitcode(status)}")
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[25_000, 50_000, 100_000, 200_000])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options = parser.parse_args()
    print("| command | programs | wall s | CPU s | to linear | peak MiB |\n|---|---|---|---|---|---|")
    per_program: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sorted(options.sizes):
            programs = Path(folder, f"{size}.jsonl")
            make_programs(programs, size)
            for name in options.commands:
                arguments = [part.format(programs=programs, out=Path(folder, "out")) for part in COMMANDS[name]]
                wall, cpu, peak = measure(arguments)
                ratio = cpu / size / per_program.setdefault(name, cpu / size)
                print(f"| {name} | {size:,} | {wall:.1f} | {cpu:.1f} | {ratio:.2f} | {peak:.0f} |", flush=True)
            programs.unlink()


if __name__ == "__main__":
    main()
