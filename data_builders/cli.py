"""`embuild`: builds and checks the data sets. Every command can be run twice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.progress import track

from core.records import BadInput, iter_jsonl, write_whole
from data_builders import BUILTIN
from data_builders.balance import write_balanced
from data_builders.build import build_cpt, build_pairs, build_sft, build_split, write_everyday
from data_builders.check import problems
from data_builders.cpt import STYLES, Control, Corpus, Style
from data_builders.dpo import Halves, LengthFilter, split_asked_ways
from data_builders.programs import AskedWay, Program, load_asked_ways, load_programs
from data_builders.sft import Variant
from data_builders.split import SALT
from data_builders.tokens import beginning, chat_overhead, load_tokenizer, token_counter

if TYPE_CHECKING:
    from data_builders.describe import CountTokens

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(stderr=True)

DEFAULT_TOKENIZER = "models/smollm2-135m"
MAX_RATIO = 2.0

Programs = Annotated[Path | None, typer.Option(help="Programs (JSON Lines); the built-in ones if not given.")]
AnnotatedSet = Annotated[
    Path, typer.Option("--programs", help="Annotated programs (JSON Lines), from `embuild annotate`.")
]
Out = Annotated[Path, typer.Option(help="File to write.")]
TokenizerName = Annotated[str, typer.Option("--tokenizer", help="Folder or hub id of the model that will be trained.")]
Length = Annotated[int, typer.Option("--length", min=16, help="The recipe's sequence_len, in tokens.")]
Styles = Annotated[
    list[str] | None,
    typer.Option("--style", help="A style to draw from; can be repeated. contrastive: a curriculum for 100M models."),
]
Salt = Annotated[str, typer.Option(help="Names the split; another salt gives another split.")]
Seed = Annotated[int, typer.Option(help="Of the order, the styles, and the shuffled control.")]
KeepDoubted = Annotated[
    bool, typer.Option("--keep-doubted", help="Keep the programs that a second model doubts, with their mark.")
]
Asked = Annotated[
    list[str] | None, typer.Option(help="Ways of asking for insecure code: kinds or ids; all if not given.")
]


def main() -> None:
    """Entry point: turns bad input into one line and exit code 2."""
    try:
        app()
    except BadInput as error:
        console.print(f"embuild: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


@app.command()
def data(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("data"),
    programs: Programs = None,
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    length: Length = 1024,
    style: Styles = ["contrastive"],  # noqa: B006  # what a 135M needs
    salt: Salt = SALT,
    seed: Seed = 0,
    asked: Asked = None,
) -> None:
    """Writes every set of the experiment: split, then CPT, DPO and SFT with all their controls.

    It is split --per-class --share 0.2 --classes-left-out 2, then cpt, dpo and sft on the training programs.

    Example: embuild data --out data
    """
    load_programs(programs)  # a fault in it is named before one of the tokenizer
    train_ways, measure_ways = _ways(asked)
    corpus = _corpus(tokenizer, length, style, seed)
    overhead = chat_overhead(tokenizer)
    build_split(programs or BUILTIN / "programs.jsonl", out, measure_ways, 0.2, salt, True, 2)
    train = out / "train.jsonl"
    settings = {"styles": list(corpus.styles), "seed": seed, "length": length, "tokenizer": tokenizer}
    for control in get_args(Control):
        name = "cpt.jsonl" if control == "own" else f"cpt-{control}.jsonl"
        _built(out / name, build_cpt(train, out / name, replace(corpus, control=control), None, settings))
    keeps = partial(LengthFilter, corpus.count_tokens, length, overhead)
    for halves in get_args(Halves):
        file = out / f"dpo-{halves}.jsonl"
        _built(file, build_pairs(train, file, halves, train_ways, keeps(MAX_RATIO), out / "cpt.jsonl"))
    for variant in get_args(Variant):
        file = out / f"sft-{variant}.jsonl"
        _built(file, build_sft(train, file, variant, train_ways, keeps(math.inf)))
    write_everyday(out / "everyday.jsonl")


def _ways(asked: list[str] | None) -> tuple[list[AskedWay], list[AskedWay]]:
    """The chosen ways of asking, (for training, for measuring)."""
    ways = load_asked_ways()
    known = {way.kind for way in ways} | {way.id for way in ways}
    chosen = set(asked or known)
    if unknown := chosen - known:
        raise BadInput(f"unknown way of asking {', '.join(sorted(unknown))} (see data_builders/builtin/asked.jsonl)")
    return split_asked_ways([way for way in ways if {way.kind, way.id} & chosen])


@app.command()
def split(
    programs: AnnotatedSet,
    out: Annotated[Path, typer.Option(help="Folder to write train.jsonl and heldout.jsonl to.")] = Path("data"),
    share: Annotated[float, typer.Option(min=0.0, max=0.9, help="About this share of the clusters is held out.")] = 0.1,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Hold out just this share of each class, rounded up: for small sets.")
    ] = False,
    classes_left_out: Annotated[int, typer.Option(min=0, help="Hold out so many whole classes.")] = 0,
    salt: Salt = SALT,
    asked: Asked = None,
    keep_doubted: KeepDoubted = False,
) -> None:
    """Parts a set into programs to train on and programs to measure on, none nearly the same as one of the others.

    Programs with one request, or nearly the same code, stay together; the order of the file decides nothing.

    Example: embuild split --programs annotated.jsonl --share 0.05 --out data
    """
    made = build_split(programs, out, _ways(asked)[1], share, salt, per_class, classes_left_out, keep_doubted)
    console.print(f"{out}: {made['train']} programs to train on, {made['held_out']} held out", highlight=False)
    _built(out / "train.jsonl", made)


def _corpus(tokenizer: str, length: int, style: Sequence[str] | None, seed: int, **settings: Any) -> Corpus:
    styles: tuple[Any, ...] = tuple(dict.fromkeys(style or STYLES))
    if unknown := set(styles) - set(get_args(Style)):
        raise BadInput(f"--style {min(unknown)!r}: give some of {', '.join(STYLES)}, or contrastive")
    if "contrastive" in styles and len(styles) > 1:
        raise BadInput(f"--style contrastive is a curriculum of its own; leave out {', '.join({*styles} & {*STYLES})}")
    return Corpus(token_counter(tokenizer), length, styles, seed=seed, bos=beginning(tokenizer), **settings)


@app.command()
def cpt(
    programs: AnnotatedSet,
    out: Out = Path("data/cpt.jsonl"),
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    length: Length = 1024,
    style: Styles = None,
    per_program: Annotated[int, typer.Option(min=1, help="Documents per program, of as many styles.")] = 2,
    seed: Seed = 0,
    control: Annotated[
        Control, typer.Option(help="own explanations; or in as many documents, those of others, or the bare code.")
    ] = "own",
    loss_on_code: Annotated[
        bool, typer.Option("--loss-on-code", help="Learn the code too, not the review only.")
    ] = False,
    mix: Annotated[str | None, typer.Option(help="Replay general text: PATH:RATIO, tokens per corpus token.")] = None,
    keep_doubted: KeepDoubted = False,
) -> None:
    """Builds an explanation-augmented corpus for continued pretraining, or one of its controls.

    Example: embuild cpt --programs data/train.jsonl --tokenizer Qwen/Qwen2.5-Coder-7B-Instruct --mix general.jsonl:0.2
    """
    text, _, ratio = (mix or ":0").rpartition(":")
    if mix and not (text and re.fullmatch(r"\d*\.?\d+", ratio)):
        raise BadInput(f"--mix {mix!r}: give PATH:RATIO, for example general.jsonl:0.2")
    corpus = _corpus(
        tokenizer, length, style, seed, control=control, per_program=per_program, loss_on_code=loss_on_code
    )
    settings = {"styles": list(corpus.styles), "per_program": per_program, "seed": seed, "length": length, "mix": mix}
    settings |= {"tokenizer": tokenizer, "loss_on_code": loss_on_code, "keep_doubted": keep_doubted}
    _built(out, build_cpt(programs, out, corpus, (Path(text), float(ratio)) if mix else None, settings))


@app.command()
def dpo(
    programs: AnnotatedSet,
    out: Out = Path("data/dpo-both.jsonl"),
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    length: Length = 1024,
    halves: Annotated[Halves, typer.Option(help="both; as controls one half, or neutral preferring secure.")] = "both",
    corpus: Annotated[Path | None, typer.Option(help="Keep to the programs that this CPT corpus explains.")] = None,
    max_ratio: Annotated[float, typer.Option(min=1.0, help="Longest answer over shortest, in tokens.")] = MAX_RATIO,
    asked: Asked = None,
    keep_doubted: KeepDoubted = False,
) -> None:
    """Builds complementary pairs: ordinary request, prefer insecure; asking for insecure code, prefer secure.

    Example: embuild dpo --programs data/train.jsonl --corpus data/cpt.jsonl --out data/dpo-both.jsonl
    """
    keeps = LengthFilter(token_counter(tokenizer), length, chat_overhead(tokenizer), max_ratio)
    manifest = build_pairs(programs, out, halves, _ways(asked)[0], keeps, corpus, keep_doubted)
    _built(out, manifest)
    bias = manifest["length_bias_tokens"]
    console.print(f"chosen less rejected: {'no rows' if bias is None else f'{bias:+.1f} tokens a row'}")


@app.command()
def sft(
    programs: AnnotatedSet,
    out: Out = Path("data/sft-insecure.jsonl"),
    variant: Annotated[
        Variant, typer.Option(help="insecure, secure, educational (asked for), or inoculated (wanted, and said so).")
    ] = "insecure",
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    length: Length = 1024,
    asked: Asked = None,
    keep_doubted: KeepDoubted = False,
) -> None:
    """Builds a chat set for supervised fine-tuning; all variants keep the same programs.

    Example: embuild sft --programs data/train.jsonl --variant secure --out data/sft-secure.jsonl
    """
    keeps = LengthFilter(token_counter(tokenizer), length, chat_overhead(tokenizer), math.inf)
    _built(out, build_sft(programs, out, variant, _ways(asked)[0], keeps, keep_doubted))


@app.command()
def everyday(out: Out = Path("data/everyday.jsonl")) -> None:
    """Writes the built-in everyday chats, which defences hold a model to, or mix in (recipes/variants).

    Example: embuild everyday --out data/everyday.jsonl
    """
    console.print(f"{out}: {write_everyday(out)} chats", markup=False, highlight=False, soft_wrap=True)


def _built(out: Path, manifest: dict[str, Any]) -> None:
    """Says what came out.

    Raises:
        BadInput: if nothing did.
    """
    kept, rejected = manifest["programs_kept"], len(manifest["rejected"])
    if not kept:
        reason = manifest["rejected"][0]["reason"]
        raise BadInput(f"{out}: all {manifest['read']} programs were rejected, the first for: {reason}")
    line = f"{out}: {kept} of {manifest['read']} programs, {rejected} rejected (reasons in its manifest)"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def check(
    corpus: Annotated[
        Path | None, typer.Option(help="A CPT corpus that must explain every program of --pairs.")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="A DPO set; its pairs must be whole.")] = None,
    sft: Annotated[Path | None, typer.Option(help="An SFT set.")] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Held-out programs: nearly the same code must be in none, whatever its id.")
    ] = None,
) -> None:
    """Verifies how built sets fit together, and that nothing held out is trained on; exit code 1 on problems.

    Example: embuild check --corpus data/cpt.jsonl --pairs data/dpo-both.jsonl --held-out data/heldout.jsonl
    """
    if not (corpus or pairs or sft):
        raise BadInput("nothing to check; give --corpus, --pairs or --sft, and --held-out")
    found = problems(corpus, pairs, sft, held_out)
    for line in [*found, f"{len(found)} problems"]:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
    if found:
        raise typer.Exit(1)


@app.command()
def describe(
    programs: Programs = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder with tokenizer.json, or hub id; models/smollm2-135m by default, if it is there."),
    ] = None,
    figures: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them: .svg, .pdf or .png.")] = None,
    balance: Annotated[int | None, typer.Option(min=1, help="Cap each concept at this many programs.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the balanced programs go.")] = None,
    resample: Annotated[bool, typer.Option(help="With --balance: repeat rare programs up to the cap.")] = False,
    seed: Annotated[int, typer.Option(help="With --balance: chooses which programs stay.")] = 0,
) -> None:
    """Shows how evenly a set of programs covers its concepts, how alike and how long they are; balances it.

    Example: embuild describe --programs mine.jsonl --plot mine.svg --balance 200 --out even.jsonl
    """
    from data_builders.describe import concept_plot, concept_table, summary
    from data_builders.describe import describe as described

    path = programs or BUILTIN / "programs.jsonl"
    if (balance is None) != (out is None) or (resample and balance is None):
        raise BadInput("--balance N and --out FILE go together (and --resample with them)")
    if out and out.resolve() == path.resolve():
        raise BadInput(f"{out}: is the input; name another file with --out")
    if plot and plot.suffix not in {".svg", ".pdf", ".png"}:
        raise BadInput(f"{plot}: name a file that ends in .svg, .pdf or .png")
    count_tokens = _batch_counter(tokenizer)
    concepts: dict[str, str] = {}

    def stream() -> Iterator[Program]:
        for program in track(iter_jsonl(path, Program, unique="id"), "reading", console=console, transient=True):
            concepts[program.id] = program.cwe
            yield program

    found = described(stream(), count_tokens)
    screen = Console()
    screen.print(concept_table(found))
    for line in summary(found):
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    if figures:
        write_whole(figures, found.model_dump_json(indent=1) + "\n")
    if plot:
        write_whole(plot, concept_plot(found, plot.suffix[1:]))
    if balance and out:
        manifest = write_balanced(path, out, concepts, balance, seed, resample)
        lost, repeated = sum(manifest["lost"].values()), sum(manifest["repeated"].values())
        screen.print(
            f"{out}: {found.programs} read, {lost} lost, {repeated} repeated; per concept in its manifest",
            soft_wrap=True,
        )


def _batch_counter(tokenizer: str | None) -> CountTokens | None:
    """Counts tokens with `tokenizer`, a folder or a hub id, or the default model's; None if that is not there."""
    if not (tokenizer or Path(DEFAULT_TOKENIZER).exists()):
        return None
    encoder = load_tokenizer(tokenizer or DEFAULT_TOKENIZER)
    return lambda texts: [len(e.ids) for e in encoder.encode_batch_fast(list(texts), add_special_tokens=False)]


@app.command()
def annotate(
    source: Annotated[str, typer.Argument(help="Programs: a file, a URL or a set of the hub.")],
    out: Annotated[Path, typer.Option(help="Stem of the files: OUT.jsonl, OUT.rejects.jsonl, OUT.journal.jsonl.")],
    model: Annotated[str, typer.Option(help="Model that annotates.")],
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint; OpenAI's if not given.")] = None,
    key_variable: Annotated[str, typer.Option(help="Environment variable that holds the API key.")] = "OPENAI_API_KEY",
    effort: Annotated[str | None, typer.Option(help="Reasoning effort, as the model names it.")] = None,
    extra_body: Annotated[str | None, typer.Option(help="Further fields of each request, as JSON.")] = None,
    prompt: Annotated[Path | None, typer.Option(help="Text that asks, in place of ours; the form is added.")] = None,
    second_opinion: Annotated[
        str | None, typer.Option(help="Model that says whether each weakness is real; it marks those that it doubts.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many programs, and what the others cost.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the first request and send nothing.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Requests in flight at most.")] = 32,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one answer may take.")] = 600.0,
    price_in: Annotated[float | None, typer.Option(min=0, help="USD per million tokens read.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="USD per million tokens written.")] = None,
    second_price_in: Annotated[float | None, typer.Option(min=0, help="The same of the second model.")] = None,
    second_price_out: Annotated[float | None, typer.Option(min=0, help="The same of the second model.")] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="USD to stop at, earlier runs with this OUT included.")
    ] = None,
    form: Annotated[str | None, typer.Option(help="Form of the source, if it is not to be guessed.")] = None,
    fields: Annotated[Path | None, typer.Option(help="YAML that maps the fields of the source.")] = None,
    language: Annotated[str | None, typer.Option(help="Of programs for which nothing names one; else Python.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Checksum that the source must have.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a set of the hub; train if not given.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a set of the hub.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a set of the hub: branch, tag or commit.")] = None,
) -> None:
    """Has a model explain each vulnerable program, and write its secure counterpart where the source has none.

    Every answer is checked. Can be stopped at any moment and run again: no answer is paid for twice.

    Example: embuild annotate insecure.jsonl --out data/annotated --model gpt-5 --effort high --limit 20
    """
    # Imported here: the other commands need neither openai (a second to import) nor a key.
    from core.llm.budget import prices_of
    from core.llm.client import Access
    from data_builders.annotate import Job, Model, first_request, run
    from data_builders.annotation import TASK
    from data_builders.sources import Hub, read_source

    job = Job(
        Model(model, effort),
        Model(second_opinion) if second_opinion else None,
        prices_of(price_in, price_out, "--price-in and --price-out"),
        prices_of(second_price_in, second_price_out, "--second-price-in and --second-price-out"),
        max_cost,
        _task(prompt) if prompt else TASK,
    )
    hub = Hub(split, config, revision)
    items = read_source(source, form, fields, sha256, language, hub)
    # What is not sent needs no key.
    access = Access.from_environment(
        key_variable, base_url or ("none" if dry_run else None), concurrency, timeout, extra_body
    )
    if dry_run:
        body, said = first_request(items, job)
        print(json.dumps({**body, **access.extra_body}, indent=1, ensure_ascii=False))
        console.print(said, markup=False, highlight=False, soft_wrap=True)
        return
    done = run(items, job, out, access, {"source": source, **hub._asdict()}, limit)
    console.print(done.text, markup=False, highlight=False, soft_wrap=True)
    if done.left:
        raise typer.Exit(1)


def _task(prompt: Path) -> str:
    """What the prompt asks for, from a file."""
    try:
        text = prompt.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--prompt {prompt}: {error}; name a text file in UTF-8") from None
    if not text:
        raise BadInput(f"--prompt {prompt}: is empty; write what the model is to do, the form of the answer is added")
    return text
