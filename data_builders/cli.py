"""`embuild`: builds and checks the data sets. Every command can be run twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_builders.balance import copies, name_copies
from data_builders.check import bandit_table, program_problems, set_problems
from data_builders.curriculum import curriculum_documents
from data_builders.dpo import dpo_rows, split_asked_ways, way_for
from data_builders.programs import BUILTIN, Program, load_asked_ways, load_programs
from data_builders.records import BadInput, StreamWriter, digest, iter_jsonl, one_line, write_records, write_whole
from data_builders.sft import sft_rows
from data_builders.split import SALT, split_programs

if TYPE_CHECKING:
    from data_builders.describe import Balance, CountTokens

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
        "cpt": curriculum_documents(split.train, "own", seed),
        "cpt-shuffled": curriculum_documents(split.train, "shuffled", seed),
        "cpt-none": curriculum_documents(split.train, "none", seed),
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
def describe(
    programs: Programs = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder with tokenizer.json, or hub id; models/smollm2-135m by default, if it is there."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them: a self-contained .html page.")] = None,
    balance: Annotated[int | None, typer.Option(min=1, help="Cap each concept at this many programs.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the balanced programs go.")] = None,
    resample: Annotated[bool, typer.Option(help="With --balance: repeat rare programs up to the cap.")] = False,
    seed: Annotated[int, typer.Option(help="With --balance: chooses which programs stay.")] = 0,
) -> None:
    """Shows how evenly a set of programs covers its concepts, how alike and how long they are; balances it.

    Example: embuild describe --programs mine.jsonl --plot mine.html --balance 200 --out even.jsonl
    """
    from data_builders.describe import concept_plot, concept_table
    from data_builders.describe import describe as described

    path = programs or BUILTIN / "programs.jsonl"
    if (balance is None) != (out is None) or (resample and balance is None):
        raise BadInput("--balance N and --out FILE go together (and --resample with them)")
    if out and out.resolve() == path.resolve():
        raise BadInput(f"{out}: is the input; name another file with --out")
    if plot and plot.suffix != ".html":
        raise BadInput(f"{plot}: plots are HTML pages; name a file that ends in .html")
    count_tokens = _token_counter(tokenizer)
    concepts: dict[str, str] = {}

    def stream() -> Iterator[Program]:
        for program in track(iter_jsonl(path, Program, unique="id"), "reading", console=console, transient=True):
            concepts[program.id] = program.cwe
            yield program

    found = described(stream(), count_tokens)
    screen = Console()
    screen.print(concept_table(found))
    for line in _summary(found):
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    if json:
        write_whole(json, found.model_dump_json(indent=1) + "\n")
    if plot:
        write_whole(plot, concept_plot(found))
    if balance and out:
        manifest = _write_balanced(path, out, concepts, balance, seed, resample)
        lost, repeated = sum(manifest["lost"].values()), sum(manifest["repeated"].values())
        screen.print(
            f"{out}: {found.programs} read, {lost} lost, {repeated} repeated; per concept in its manifest",
            soft_wrap=True,
        )


def _token_counter(tokenizer: str | None) -> CountTokens | None:
    """Counts tokens with `tokenizer`, a folder or a hub id, or the default model's; None if that is not there."""
    from tokenizers import Tokenizer

    name = tokenizer or "models/smollm2-135m"
    folder = Path(name)
    if not (tokenizer or folder.exists()):
        return None
    try:
        local = folder.exists()
        encoder = Tokenizer.from_file(str(folder / "tokenizer.json")) if local else Tokenizer.from_pretrained(name)
    except Exception as error:  # tokenizers raises bare Exception
        raise BadInput(f"{name}: {one_line(error)}; name a folder with a tokenizer.json, or a hub id") from None
    return lambda texts: [len(e.ids) for e in encoder.encode_batch_fast(list(texts), add_special_tokens=False)]


def _summary(found: Balance) -> Iterator[str]:
    from data_builders.near_duplicates import SHINGLE, THRESHOLD

    yield f"{found.programs} programs, {len(found.concepts)} concepts"
    even = "" if found.evenness is None else f", evenness {found.evenness:.3f}"
    yield f"entropy {found.entropy:.3f} nats, effective number of concepts {found.effective_concepts:.1f}{even}"
    alike = f"Jaccard index of {SHINGLE}-token shingles over about {THRESHOLD:.2f}"
    yield f"{found.near_duplicate_rate:.1%} have a near-duplicate ({alike}, insecure code)"
    if t := found.tokens:
        yield f"tokens of insecure code: mean {t.mean:.1f}, p50 {t.p50:.0f}, p95 {t.p95:.0f}"
    else:
        yield "tokens not counted: no tokenizer; give one with --tokenizer, or run `emsweep fetch smollm2-135m`"


def _write_balanced(
    path: Path, out: Path, concepts: dict[str, str], cap: int, seed: int, resample: bool
) -> dict[str, Any]:
    """Streams the balanced set to `out`; returns its manifest. read + repeated = written + rejected."""
    times = copies(concepts, cap, seed, resample)
    lost, repeated = Counter[str](), Counter[str]()
    rejected = []
    manifest: dict[str, Any] = {"programs": str(path), "balance": cap, "seed": seed, "resample": resample}
    with StreamWriter(out, manifest) as writer:
        for program in iter_jsonl(path, Program, unique="id"):
            if not times[program.id]:
                rejected.append({"id": program.id, "reason": f"over {cap} programs of {program.cwe}"})
                lost[program.cwe] += 1
                continue
            repeated[program.cwe] += times[program.id] - 1
            for name in name_copies(program.id, times[program.id], concepts):
                writer.write({**program.model_dump(exclude_none=True), "id": name})
        counts = {"lost": dict(lost), "repeated": dict(+repeated), "rejected": rejected}
        manifest.update(read=len(concepts), **counts)
    return manifest
