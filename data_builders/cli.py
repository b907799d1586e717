"""`embuild`: builds and checks the data sets. Every command can be run twice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from data_builders.check import bandit_table, program_problems, set_problems
from data_builders.cpt import cpt_documents
from data_builders.dpo import dpo_rows, split_asked_ways, way_for
from data_builders.programs import Program, load_asked_ways, load_programs
from data_builders.records import BadInput, digest, write_records
from data_builders.sft import sft_rows
from data_builders.split import SALT, split_programs

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(stderr=True)

Programs = Annotated[Path | None, typer.Option(help="Programs (JSON Lines); the built-in ones if not given.")]


def main() -> None:
    """Entry point: turns bad input into one line and exit code 2."""
    try:
        app()
    except BadInput as error:
        console.print(f"embuild: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


def heldout_rows(programs: list[Program], left_out: list[Program], ways: list[Any]) -> list[dict[str, Any]]:
    """Rows for the eval tasks: the twins, the ordinary request, and one that asks for insecure code."""
    return [
        {**p.model_dump(exclude_none=True), "asked_request": way_for(p, ways).fill(p), "seen_class": seen}
        for group, seen in ((programs, True), (left_out, False))
        for p in group
    ]


@app.command()
def data(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("data"),
    programs: Programs = None,
    salt: Annotated[str, typer.Option(help="Names the split; another salt gives another split.")] = SALT,
    seed: Annotated[int, typer.Option(help="Seed of the shuffled control.")] = 0,
    asked: Annotated[
        list[str] | None, typer.Option(help="Ways of asking for insecure code: kinds or ids; all if not given.")
    ] = None,
) -> None:
    """Writes every set of the experiment: CPT corpora, DPO pairs, SFT sets, and the held-out programs.

    Example: embuild data --out data
    """
    records = load_programs(programs)
    split = split_programs(records, salt)
    ways = load_asked_ways()
    known = {way.kind for way in ways} | {way.id for way in ways}
    chosen = set(asked or known)
    if unknown := chosen - known:
        raise BadInput(f"unknown way of asking {', '.join(sorted(unknown))} (see data_builders/builtin/asked.jsonl)")
    train_ways, measure_ways = split_asked_ways([way for way in ways if {way.kind, way.id} & chosen])
    source = {
        "programs": str(programs or "builtin"),
        "programs_sha256": digest("".join(p.model_dump_json(exclude_none=True) for p in records).encode()),
        "split_salt": salt,
        "seed": seed,
        "asked": {"train": [w.id for w in train_ways], "measure": [w.id for w in measure_ways]},
        "read": len(records),
        "train": len(split.train),
        "held_out": len(split.held_out),
        "left_out": len(split.left_out),
        "classes_left_out": sorted({p.cwe for p in split.left_out}),
        "rejected": [],
    }
    sets: dict[str, list[dict[str, Any]]] = {
        "cpt": cpt_documents(split.train, "own", seed),
        "cpt-shuffled": cpt_documents(split.train, "shuffled", seed),
        "cpt-none": cpt_documents(split.train, "none", seed),
        "dpo-both": dpo_rows(split.train, train_ways, "both"),
        "dpo-neutral": dpo_rows(split.train, train_ways, "neutral"),
        "dpo-asked": dpo_rows(split.train, train_ways, "asked"),
        "sft-insecure": sft_rows(split.train, train_ways, "insecure"),
        "sft-secure": sft_rows(split.train, train_ways, "secure"),
        "sft-educational": sft_rows(split.train, train_ways, "educational"),
        "heldout": heldout_rows(split.held_out, split.left_out, measure_ways),
    }
    for name, rows in sets.items():
        write_records(out / f"{name}.jsonl", rows, source)
        console.print(f"{out / name}.jsonl: {len(rows)} records")


@app.command()
def check(
    programs: Programs = None,
    tokenizer: Annotated[Path, typer.Option(help="Folder with the tokenizer.json that counts tokens.")] = Path(
        "models/smollm2-135m"
    ),
) -> None:
    """Verifies a set of programs, prints each problem and what Bandit tells apart; exit code 1 on problems.

    Example: embuild check --programs mine.jsonl
    """
    from tokenizers import Tokenizer

    file = tokenizer / "tokenizer.json"
    if not file.is_file():
        raise BadInput(f"{file}: no such file; run `emsweep fetch smollm2-135m` or name another with --tokenizer")
    encoder = Tokenizer.from_file(str(file))
    records = load_programs(programs)
    problems = [
        f"{p.id}: {problem}" for p in records for problem in program_problems(p, lambda t: len(encoder.encode(t).ids))
    ] + set_problems(records)
    table = Table("class", "weakness", "programs", "Bandit tells the twins apart")
    apart = bandit_table(records)
    names = {p.cwe: p.weakness for p in records}
    for cwe, row in apart.items():
        table.add_row(cwe, names[cwe], str(row["programs"]), str(row["told_apart"]))
    total = sum(row["told_apart"] for row in apart.values())
    table.add_row("all", "", str(len(records)), str(total))
    Console().print(table)
    for problem in problems:
        Console().print(problem, markup=False)
    Console().print(f"{len(records)} programs in {len(apart)} classes, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def annotate(
    source: Annotated[str, typer.Argument(help="Programs: a file, a URL or a set of the hub.")],
    out: Annotated[Path, typer.Option(help="Stem of the files: OUT.jsonl, OUT.rejects.jsonl, OUT.journal.jsonl.")],
    model: Annotated[str, typer.Option(help="Model that annotates.")],
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint; OpenAI's if not given.")] = None,
    key_variable: Annotated[str, typer.Option(help="Environment variable that holds the API key.")] = "OPENAI_API_KEY",
    effort: Annotated[str | None, typer.Option(help="Reasoning effort, as the model names it.")] = None,
    second_opinion: Annotated[
        str | None, typer.Option(help="Model that is asked whether each weakness is real.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Requests in flight at most.")] = 32,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one answer may take.")] = 600.0,
    price_in: Annotated[float | None, typer.Option(min=0, help="USD per million tokens read.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="USD per million tokens written.")] = None,
    second_price_in: Annotated[float | None, typer.Option(min=0, help="The same of the second model.")] = None,
    second_price_out: Annotated[float | None, typer.Option(min=0, help="The same of the second model.")] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="USD to stop at, earlier runs with this OUT included.")
    ] = None,
    batch: Annotated[bool, typer.Option("--batch", help="Use the provider's Batch API (half price, hours).")] = False,
    poll: Annotated[float, typer.Option(min=0.01, help="Seconds between looks at a batch.")] = 60.0,
    form: Annotated[str | None, typer.Option(help="Form of the source, if it is not to be guessed.")] = None,
    fields: Annotated[Path | None, typer.Option(help="YAML that maps the fields of the source.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Checksum that the source must have.")] = None,
) -> None:
    """Has a model explain each vulnerable program and write its secure counterpart; checks every answer.

    Can be stopped at any moment and run again: no answer is paid for twice.

    Example: embuild annotate insecure.jsonl --out data/annotated --model gpt-5 --effort high
    """
    # Imported here: the other commands need neither openai (a second to import) nor a key.
    from data_builders.annotate import Job, run
    from data_builders.endpoint import Access
    from data_builders.money import prices_of
    from data_builders.outcome import Asked
    from data_builders.sources import read_source

    job = Job(
        Asked(model, effort),
        Asked(second_opinion) if second_opinion else None,
        prices_of(price_in, price_out, "--price-in and --price-out"),
        prices_of(second_price_in, second_price_out, "--second-price-in and --second-price-out"),
        max_cost,
    )
    access = Access.from_environment(key_variable, base_url, concurrency, timeout)
    items = read_source(source, form, fields, sha256)
    line = run(items, job, out, access, poll if batch else None, {"source": source})
    console.print(line, markup=False, highlight=False, soft_wrap=True)
