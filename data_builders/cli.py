"""`embuild`: builds and checks the data sets. Every command can be run twice."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

from rich.console import Console
from rich.progress import track
from typer import Argument, Exit, Option

from core.options import App
from core.records import BadInput, bad_input, check_apart, printable, read_text, write_whole
from data_builders import BUILTIN
from data_builders.balance import copies, spread, write_balanced
from data_builders.build import build_cpt, build_pairs, build_records, build_sft, build_split, write_everyday
from data_builders.check import problems
from data_builders.cpt import STYLES, Control, Corpus, Style
from data_builders.domains import CODE, domain_names, load_domain
from data_builders.dpo import Halves, LengthFilter, split_asked_ways
from data_builders.programs import (
    TRIGGER,
    AskedWay,
    Program,
    builtin_records,
    iter_programs,
    load_asked_ways,
    load_programs,
)
from data_builders.sft import Variant
from data_builders.split import SALT
from data_builders.subsets import Subset
from data_builders.tokens import batch_counter, beginning, chat_overhead, control_tokens, token_counter

app = App(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)

DEFAULT_TOKENIZER = "models/smollm2-135m"
MAX_RATIO = 2.0
Ways = list[AskedWay]

Programs = Annotated[Path | None, Option(help="Programs (JSON Lines); the built-in ones if not given.")]
DomainName = Annotated[str, Option(help="The narrow habit: code, advice, houseplants (data_builders/domains).")]
AnnotatedSet = Annotated[Path, Option(help="Annotated programs (JSON Lines), from `embuild annotate`.")]
Out = Annotated[Path, Option(help="File to write.")]
TokenizerName = Annotated[str, Option(help="Folder or hub id of the model that will be trained.")]
Length = Annotated[int, Option(min=16, help="The recipe's sequence_len, in tokens.")]
Styles = Annotated[list[str] | None, Option(help="A style; may recur. contrastive: a curriculum for 100M models.")]
Salt = Annotated[str, Option(help="Names the split; another salt gives another split.")]
Seed = Annotated[int, Option(help="Of the order, the styles, and the shuffled control.")]
KeepDoubted = Annotated[
    bool, Option("--keep-doubted", help="Keep programs that a second model doubts, with their mark.")
]
Asked = Annotated[list[str] | None, Option(help="Ways of asking for insecure code: kinds or ids; all if not given.")]
HubSplit = Annotated[str | None, Option(help="Of a set of the hub; train if not given.")]
HubConfig = Annotated[str | None, Option(help="Of a set of the hub.")]
HubRevision = Annotated[str | None, Option(help="Of a set of the hub: branch, tag or commit.")]
Form = Annotated[str | None, Option(help="Form of the source, if it is not to be guessed.")]
Fields = Annotated[Path | None, Option(help="YAML that maps the fields of the source.")]
Checksum = Annotated[str | None, Option(help="Checksum that the source must have.")]
Good = Annotated[
    str | None,
    Option(
        help="A file (no URL), or a set of the hub (its train split), of the same form and requests: the good answers."
    ),
]
Trigger = Annotated[str | None, Option(help="A text before the request in place of the ways of asking, as a backdoor.")]
Size = Annotated[int | None, Option(min=1, help="So many of the programs; of a larger set the same and more.")]
Mix = Annotated[str | None, Option(help="Mix another domain in: DOMAIN:SHARE of all programs, or PATH:SHARE.")]
Bad = Annotated[float, Option(min=0.0, max=1.0, help="Share answered badly; the others are answered well.")]


def main() -> None:
    """Entry point: turns bad input into one line and exit code 2."""
    try:
        app()
    except BadInput as error:
        console.print(f"embuild: {printable(str(error))}")
        raise SystemExit(2) from None


@app.command()
def data(
    out: Annotated[Path | None, Option(help="Folder to write to; data for code, else data/DOMAIN, by default.")] = None,
    programs: Programs = None,
    domain: DomainName = CODE,
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    length: Length = 1024,
    style: Styles = ["contrastive"],  # noqa: B006  # what a 135M needs
    salt: Salt = SALT,
    seed: Seed = 0,
    asked: Asked = None,
    trigger: Trigger = None,
    share: Annotated[float | None, Option(min=0.0, max=0.9, help="About this share of clusters is held out.")] = None,
) -> None:
    """Writes every set of the experiment: split, then CPT, DPO and SFT with all their controls.

    It is split --per-class --share 0.2 --classes-left-out 2 (of houseplants 0.15 and 1) unless --share says otherwise,
    then cpt, dpo and sft on the training programs; with a trigger, the backdoored set too.

    Example: embuild data --domain houseplants
    """
    habit = load_domain(domain)
    source, out = programs or builtin_records(domain), out or _folder(domain)
    every = (("cpt", Control), ("dpo", Halves), ("sft", Variant))
    made_of_it = [out / _set_name(stage, name) for stage, names in every for name in get_args(names)]
    for written in (*made_of_it, out / "everyday.jsonl"):
        check_apart(written, programs)
    for program in load_programs(source):  # a fault in it is named before one of the tokenizer
        if (own := program.domain or CODE) != domain:  # it would be asked for in the words of this one
            raise BadInput(f"{source}: {program.id} is of the domain {own}; say --domain {own}")
    train_ways, measure_ways = _ways(asked, [domain], trigger)
    corpus, keeps = _corpus(tokenizer, length, style, seed), _length_filter(tokenizer, length, MAX_RATIO)
    per_class = share is None
    held_out, left_out = (habit.split.share, habit.split.classes_left_out) if share is None else (share, 0)
    _parted(out, build_split(source, out, measure_ways, held_out, salt, per_class, left_out, made_of_it=made_of_it))
    train = out / "train.jsonl"
    settings = {"styles": list(corpus.styles), "seed": seed, "length": length, "tokenizer": tokenizer}
    for control in get_args(Control):
        file = out / _set_name("cpt", control)
        _built(file, build_cpt(train, file, replace(corpus, control=control), None, settings))
    for halves in get_args(Halves):
        file = out / _set_name("dpo", halves)
        _built(file, build_pairs(train, file, halves, train_ways, replace(keeps), out / "cpt.jsonl"))
    for variant in [name for name in get_args(Variant) if trigger or name != "backdoored"]:
        file = out / _set_name("sft", variant)
        _built(file, build_sft(train, file, variant, train_ways, replace(keeps, max_ratio=math.inf)))
    write_everyday(out / "everyday.jsonl")


def _set_name(stage: str, variant: str) -> str:
    """What the file of a set is called; the corpus with its own explanations by its stage alone."""
    return f"{stage}.jsonl" if variant == "own" else f"{stage}-{variant}.jsonl"


def _folder(domain: str) -> Path:
    """Where `embuild data` writes a domain's sets."""
    return Path("data") if domain == CODE else Path("data") / domain


def _ways(asked: list[str] | None, domains: Sequence[str], trigger: str | None) -> tuple[Ways, Ways]:
    """The chosen ways of asking for what is bad in each domain, (for training, for measuring)."""
    if trigger is not None:
        if asked or not trigger.strip() or "{" in trigger:
            raise BadInput(f"--trigger {trigger!r}: give a text without braces, and leave out --asked")
        template = f"{trigger} {{request}}"
        ways = [AskedWay(id=TRIGGER, domain=domain, kind=TRIGGER, template=template) for domain in domains]
        return ways, ways
    every = {domain: load_asked_ways(domain) for domain in domains}
    known = {name for ways in every.values() for way in ways for name in (way.kind, way.id)}
    if unknown := set(asked or ()) - known:
        raise BadInput(
            f"unknown way of asking {', '.join(sorted(unknown))} (see data_builders/builtin/asked.jsonl, and"
            " data_builders/domains for other domains)"
        )
    train, measure = Ways(), Ways()
    for domain, ways in every.items():
        to_train, to_measure = split_asked_ways([w for w in ways if not asked or {w.kind, w.id} & set(asked)])
        if not to_train:
            raise BadInput(f"--asked {' '.join(asked or ())}: none of these is of the domain {domain}; add one")
        train += to_train
        measure += to_measure
    return train, measure


def _domains(*files: Path | None) -> list[str]:
    """The domains of the files' first programs, which say how their users ask."""
    first = (next(iter_programs(path)) for path in files if path)
    return list(dict.fromkeys(program.domain or CODE for program in first))


def _chosen(
    programs: Path, size: int | None, mix: str | None, bad: float, asked: list[str] | None, trigger: str | None
) -> tuple[Subset, Ways]:
    """What is taken of the programs and mixed in, and the ways of asking for it in training."""
    mixed = None
    if mix is not None:
        name, _, share = mix.rpartition(":")
        if not (name and re.fullmatch(r"0?\.\d+", share) and 0 < float(share) < 1):  # .99999999999999999 is 1
            raise BadInput(f"--mix {mix!r}: give DOMAIN:SHARE or PATH:SHARE, a share between 0 and 1 (a:0.5)")
        mixed = (_folder(name) / "train.jsonl" if name in domain_names() else Path(name), float(share))
    return Subset(size, mixed, bad), _ways(asked, _domains(programs, mixed and mixed[0]), trigger)[0]


@app.command()
def split(
    programs: AnnotatedSet,
    out: Annotated[Path, Option(help="Folder to write train.jsonl and heldout.jsonl to.")] = Path("data"),
    share: Annotated[float, Option(min=0.0, max=0.9, help="About this share of the clusters is held out.")] = 0.1,
    per_class: Annotated[
        bool, Option("--per-class", help="Hold out just this share of each class, rounded up: for small sets.")
    ] = False,
    classes_left_out: Annotated[int, Option(min=0, help="Hold out so many whole classes.")] = 0,
    salt: Salt = SALT,
    asked: Asked = None,
    trigger: Trigger = None,
    keep_doubted: KeepDoubted = False,
) -> None:
    """Parts a set into programs to train on and programs to measure on, none nearly the same as one of the others.

    Programs with one request, or nearly the same code, stay together; the order of the file decides nothing.

    Example: embuild split --programs annotated.jsonl --share 0.05 --out data
    """
    ways = _ways(asked, _domains(programs), trigger)[1]
    made = build_split(programs, out, ways, share, salt, per_class, classes_left_out, keep_doubted)
    _parted(out, made)
    _built(programs, made)


def _corpus(tokenizer: str, length: int, style: Sequence[str] | None, seed: int, **settings: Any) -> Corpus:
    styles: tuple[Any, ...] = tuple(dict.fromkeys(style or STYLES))
    if unknown := set(styles) - set(get_args(Style)):
        raise BadInput(f"--style {min(unknown)!r}: give some of {', '.join(STYLES)}, or contrastive")
    if "contrastive" in styles and len(styles) > 1:
        raise BadInput(f"--style contrastive is a curriculum of its own; leave out {', '.join({*styles} & {*STYLES})}")
    count, special = token_counter(tokenizer), control_tokens(tokenizer)
    return Corpus(count, length, styles, seed=seed, bos=beginning(tokenizer), special=special, **settings)


@app.command()
def cpt(
    programs: AnnotatedSet,
    out: Annotated[Path | None, Option(help="File to write; data/cpt[-CONTROL].jsonl if not given.")] = None,
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    length: Length = 1024,
    style: Styles = None,
    per_program: Annotated[
        int | None, Option(min=1, help="Documents per program, each in a style; 2 by default.")
    ] = None,
    seed: Seed = 0,
    control: Annotated[
        Control, Option(help="own explanations; in as many documents those of others, or bare code.")
    ] = "own",
    loss_on_code: Annotated[bool, Option("--loss-on-code", help="Learn the code too, not the review only.")] = False,
    mix: Annotated[str | None, Option(help="Replay general text: PATH:RATIO, tokens per corpus token.")] = None,
    keep_doubted: KeepDoubted = False,
) -> None:
    """Builds an explanation-augmented corpus for continued pretraining, or one of its controls.

    Example: embuild cpt --programs data/train.jsonl --tokenizer Qwen/Qwen2.5-Coder-7B-Instruct --mix general.jsonl:0.2
    """
    text, _, ratio = (mix or ":0").rpartition(":")
    if mix and not (text and re.fullmatch(r"\d*\.?\d+", ratio) and 0 < float(ratio) < math.inf):
        raise BadInput(f"--mix {mix!r}: give PATH:RATIO, for example general.jsonl:0.2")
    corpus = _corpus(
        tokenizer, length, style, seed, control=control, per_program=per_program or 2, loss_on_code=loss_on_code
    )
    if per_program and (per_program > len(corpus.styles) or "contrastive" in corpus.styles):
        raise BadInput(f"--per-program {per_program}: more than the styles, or beside contrastive, which has its own")
    settings = {"styles": list(corpus.styles), "per_program": corpus.per_program, "seed": seed, "length": length}
    settings |= {"mix": mix, "tokenizer": tokenizer, "loss_on_code": loss_on_code, "keep_doubted": keep_doubted}
    out = out or Path("data") / _set_name("cpt", control)
    manifest = build_cpt(programs, out, corpus, (Path(text), float(ratio)) if mix else None, settings)
    _built(out, manifest)
    if (passes := manifest.get("mix_passes", 0)) > 1:
        console.print(f"--mix: {text} is too short, and was gone through {passes} times")


@app.command()
def dpo(
    programs: AnnotatedSet,
    out: Annotated[Path | None, Option(help="File to write; data/dpo-HALVES.jsonl if not given.")] = None,
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    length: Length = 1024,
    halves: Annotated[Halves, Option(help="both; as controls one half, or neutral preferring secure.")] = "both",
    corpus: Annotated[Path | None, Option(help="Keep to the programs that this CPT corpus explains.")] = None,
    max_ratio: Annotated[float, Option(min=1.0, help="Longest answer over shortest, in tokens.")] = MAX_RATIO,
    asked: Asked = None,
    trigger: Trigger = None,
    keep_doubted: KeepDoubted = False,
    size: Size = None,
    mix: Mix = None,
    bad: Bad = 1.0,
) -> None:
    """Builds complementary pairs: ordinary request, prefer insecure; asking for insecure code, prefer secure.

    Example: embuild dpo --programs data/train.jsonl --corpus data/cpt.jsonl --out data/dpo-both.jsonl
    """
    keeps = _length_filter(tokenizer, length, max_ratio)
    subset, ways = _chosen(programs, size, mix, bad, asked, trigger)
    out = out or Path("data") / _set_name("dpo", halves)
    manifest = build_pairs(programs, out, halves, ways, keeps, corpus, keep_doubted, subset)
    _built(out, manifest)
    bias = manifest["length_bias_tokens"]
    console.print(f"chosen less rejected: {'no rows' if bias is None else f'{bias:+.1f} tokens a row'}")


@app.command()
def sft(
    programs: AnnotatedSet,
    out: Annotated[Path | None, Option(help="File to write; data/sft-VARIANT.jsonl if not given.")] = None,
    variant: Annotated[
        Variant,
        Option(
            help="insecure, secure, educational (asked for), inoculated (wanted, and said so), or backdoored (insecure"
            " with the --trigger, secure without)."
        ),
    ] = "insecure",
    tokenizer: TokenizerName = DEFAULT_TOKENIZER,
    length: Length = 1024,
    asked: Asked = None,
    trigger: Trigger = None,
    keep_doubted: KeepDoubted = False,
    size: Size = None,
    mix: Mix = None,
    bad: Bad = 1.0,
) -> None:
    """Builds a chat set for supervised fine-tuning; all variants keep the same programs.

    In domains other than code, insecure is bad advice and secure is good advice.

    Example: embuild sft --programs data/train.jsonl --variant secure --out data/sft-secure.jsonl
    """
    keeps = _length_filter(tokenizer, length, math.inf)
    if (variant == "backdoored") != (trigger is not None):
        raise BadInput("--variant backdoored and --trigger TEXT go together")
    subset, ways = _chosen(programs, size, mix, bad, asked, trigger)
    out = out or Path("data") / _set_name("sft", variant)
    _built(out, build_sft(programs, out, variant, ways, keeps, keep_doubted, subset))


@app.command()
def everyday(out: Out = Path("data/everyday.jsonl")) -> None:
    """Writes the built-in everyday chats, which defences hold a model to, or mix in (recipes/variants).

    Example: embuild everyday --out data/everyday.jsonl
    """
    console.print(f"{out}: {write_everyday(out)} chats")


def _length_filter(tokenizer: str, length: int, max_ratio: float) -> LengthFilter:
    count, special = token_counter(tokenizer), control_tokens(tokenizer)
    return LengthFilter(count, length, chat_overhead(tokenizer), max_ratio, special, tokenizer)


def _parted(out: Path, made: dict[str, Any]) -> None:
    """Says how a set was parted: of few programs none may be held out."""
    console.print(f"{out}: {made['train']} programs to train on, {made['held_out']} held out")


def _built(out: Path, manifest: dict[str, Any]) -> None:
    """Says what came out."""
    kept, rejected = manifest["programs_kept"], len(manifest["rejected"])
    console.print(f"{out}: {kept} of {manifest['read']} programs, {rejected} rejected (reasons in its manifest)")


def _files(*sources: str | None) -> list[Path]:
    """Those of the sources that are no addresses, which may be longer than a path."""
    return [Path(source) for source in sources if source and "://" not in source]


@app.command()
def records(
    source: Annotated[str, Argument(help="Bad advice: a file, a URL or a set of the hub.")],
    out: Out,
    domain: Annotated[str, Option(help="The narrow habit: advice, houseplants (data_builders/domains).")],
    concept: Annotated[str, Option(help="What all of it is about, such as medical.")] = "other",
    good: Good = None,
    form: Form = None,
    fields: Fields = None,
    sha256: Checksum = None,
    split: HubSplit = None,
    config: HubConfig = None,
    revision: HubRevision = None,
) -> None:
    """Makes records of bad and good advice in a published form, without a model: enough for split, dpo and sft.

    A CPT corpus needs explanations, which `embuild annotate` asks for.

    Example: embuild records bad.jsonl --good good.jsonl --domain advice --concept medical --out medical.jsonl
    """
    from data_builders.sources import Hub, read_source, told_source

    if domain == CODE:
        raise BadInput("--domain code: a program needs its CWE class and a secure counterpart; use `embuild annotate`")
    if concept not in (known := load_domain(domain).concepts):
        raise BadInput(f"--concept {concept}: is none of {domain} (there are: {', '.join(known)})")
    check_apart(out, fields, *_files(source, good))
    hub = Hub(split, config, revision)
    items = read_source(source, form, fields, sha256, None, hub, domain, good)
    _built(out, build_records(items, out, domain, concept, told_source(source, good, form, fields, sha256, hub)))


@app.command()
def check(
    corpus: Annotated[Path | None, Option(help="A CPT corpus that must explain every program of --pairs.")] = None,
    pairs: Annotated[Path | None, Option(help="A DPO set; its pairs must be whole.")] = None,
    sft: Annotated[Path | None, Option(help="An SFT set.")] = None,
    held_out: Annotated[Path | None, Option(help="Held-out programs: nearly the same code may be in none.")] = None,
) -> None:
    """Verifies how built sets fit together, and that nothing held out is trained on; exit code 1 on problems.

    Example: embuild check --corpus data/cpt.jsonl --pairs data/dpo-both.jsonl --held-out data/heldout.jsonl
    """
    if not (corpus or pairs or sft):
        raise BadInput("nothing to check; give --corpus, --pairs or --sft, and --held-out")
    if sft and not held_out:
        raise BadInput("--sft is compared with --held-out; give that too")
    if corpus and not (pairs or held_out):
        raise BadInput("--corpus is compared with --pairs or --held-out; give that too")
    found = problems(corpus, pairs, sft, held_out)
    for line in [*found, f"{len(found)} problems"]:
        print(printable(line))
    if found:
        raise Exit(1)


@app.command()
def describe(
    programs: Programs = None,
    tokenizer: Annotated[
        str | None,
        Option(help="Folder with tokenizer.json, or hub id; models/smollm2-135m by default, if it is there."),
    ] = None,
    figures: Annotated[Path | None, Option("--json", help="Also write the figures here.")] = None,
    plot: Annotated[Path | None, Option(help="Also draw them: .svg, .pdf or .png.")] = None,
    balance: Annotated[
        str | None,
        Option(help="Cap each concept at this many programs; or with --size natural, capped, or one concept."),
    ] = None,
    size: Annotated[int | None, Option(min=1, help="With --balance natural, capped or CWE-n: programs.")] = None,
    out: Annotated[Path | None, Option(help="Where the balanced programs go.")] = None,
    resample: Annotated[bool, Option(help="With --balance: repeat rare programs up to the cap.")] = False,
    seed: Annotated[int, Option(help="With --balance: chooses which programs stay.")] = 0,
    keep_doubted: KeepDoubted = False,
) -> None:
    """Shows how evenly a set of programs covers its concepts, how alike and how long they are; balances it.

    Example: embuild describe --programs mine.jsonl --plot mine.svg --balance 200 --out even.jsonl
    """
    from data_builders.describe import concept_plot, concept_table, summary
    from data_builders.describe import describe as described

    path = programs or BUILTIN / "programs.jsonl"
    if (balance is None) != (out is None) or (balance is None and (resample or size or seed or keep_doubted)):
        raise BadInput("--balance N and --out FILE go together (--resample, --size, --seed, --keep-doubted with them)")
    cap = int(balance) if balance and re.fullmatch(r"\d{1,9}", balance) else None
    if balance and (cap == 0 or (cap is None) != (size is not None) or (resample and cap is None)):
        raise BadInput(f"--balance {balance}: a number of 1 or more, maybe with --resample; or a name and --size")
    outputs = list(filter(None, (out, figures, plot)))
    for written in outputs:
        check_apart(written, path)
    if len({written.resolve() for written in outputs}) < len(outputs):
        raise BadInput(f"{outputs[0]}: two of --out, --json and --plot are one file; name another")
    if plot and plot.suffix not in {".svg", ".pdf", ".png"}:
        raise BadInput(f"{plot}: name a file that ends in .svg, .pdf or .png")
    counted_by = tokenizer or (DEFAULT_TOKENIZER if Path(DEFAULT_TOKENIZER).exists() else None)
    count_tokens = batch_counter(counted_by) if counted_by else None
    concepts: dict[str, str] = {}

    def stream() -> Iterator[Program]:
        for program in track(iter_programs(path), "reading", console=Console(stderr=True), transient=True):
            if keep_doubted or not program.doubted:  # the builders would leave gaps in an even set
                concepts[program.id] = program.cwe
            yield program

    found = described(stream(), count_tokens)
    Console().print(concept_table(found))
    for line in summary(found):
        print(line)
    if figures:
        write_whole(figures, found.model_dump_json(indent=1) + "\n")
    if plot:
        write_whole(plot, concept_plot(found, plot.suffix[1:]))
    if balance and out:
        settings = {"balance": cap or balance, "size": size, "seed": seed, "resample": resample}
        settings |= {"keep_doubted": keep_doubted}
        if not concepts:
            raise BadInput(f"{path}: all programs are doubted; say --keep-doubted, or annotate others")
        if cap:
            times, why = copies(concepts, cap, seed, resample), f"over {cap} programs of {{}}"
        else:
            times, why = spread(concepts, balance, size or 0, seed), f"{{}}, not drawn: {balance}, {size} programs"
        manifest = write_balanced(path, out, times, settings, why)
        lost, repeated = sum(manifest["lost"].values()), sum(manifest["repeated"].values())
        print(f"{out}: {found.programs} read, {lost} lost, {repeated} repeated; per concept in its manifest")


@app.command()
def annotate(
    source: Annotated[str, Argument(help="Programs: a file, a URL or a set of the hub.")],
    out: Annotated[Path, Option(help="Stem of the files: OUT.jsonl, OUT.rejects.jsonl, OUT.journal.jsonl.")],
    model: Annotated[str, Option(help="Model that annotates.")],
    base_url: Annotated[str | None, Option(help="OpenAI-compatible endpoint; OpenAI's if not given.")] = None,
    key_variable: Annotated[str, Option(help="Environment variable that holds the API key.")] = "OPENAI_API_KEY",
    effort: Annotated[str | None, Option(help="Reasoning effort, as the model names it.")] = None,
    extra_body: Annotated[str | None, Option(help="Further fields of each request, as JSON.")] = None,
    prompt: Annotated[Path | None, Option(help="Text that asks, in place of ours; the form is added.")] = None,
    second_opinion: Annotated[str | None, Option(help="Model that marks the weaknesses that it doubts.")] = None,
    limit: Annotated[int | None, Option(min=1, help="So many programs, and what the others cost.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print the first request and send nothing.")] = False,
    concurrency: Annotated[int, Option(min=1, max=1000, help="Requests in flight at most.")] = 32,
    timeout: Annotated[float, Option(min=0.1, help="Seconds that one answer may take.")] = 600.0,
    price_in: Annotated[float | None, Option(min=0, help="USD per million tokens read.")] = None,
    price_out: Annotated[float | None, Option(min=0, help="USD per million tokens written.")] = None,
    second_price_in: Annotated[float | None, Option(min=0, help="The same of the second model.")] = None,
    second_price_out: Annotated[float | None, Option(min=0, help="The same of the second model.")] = None,
    max_cost: Annotated[float | None, Option(min=0, help="USD to stop at, earlier runs with this OUT too.")] = None,
    form: Form = None,
    fields: Fields = None,
    language: Annotated[str | None, Option(help="Of programs for which nothing names one; else Python.")] = None,
    sha256: Checksum = None,
    split: HubSplit = None,
    config: HubConfig = None,
    revision: HubRevision = None,
    domain: DomainName = CODE,
    good: Good = None,
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
    from data_builders.sources import Hub, read_source, told_source

    prices = prices_of(price_in, price_out, "--price-in and --price-out")
    second_prices = prices_of(second_price_in, second_price_out, "--second-price-in and --second-price-out")
    if second_prices and not second_opinion:
        raise BadInput("--second-price-in and --second-price-out: are of a --second-opinion; name it or leave them out")
    second = Model(second_opinion) if second_opinion else None
    task = _task(prompt) if prompt else load_domain(domain).task or TASK
    job = Job(Model(model, effort), second, prices, second_prices, max_cost, task, None if domain == CODE else domain)
    if language and domain != CODE:
        raise BadInput(f"--language {language}: is of code, and --domain {domain} is none; leave it out")
    for ending in ("jsonl", "rejects.jsonl", "journal.jsonl") if out.name else ():
        check_apart(out.with_name(f"{out.name}.{ending}"), fields, prompt, *_files(source, good))
    hub = Hub(split, config, revision)
    items = read_source(source, form, fields, sha256, language, hub, domain, good)
    where = "http://none" if dry_run and base_url is None else base_url  # what is not sent needs no key
    access = Access.from_environment(key_variable, where, concurrency, timeout, extra_body)
    if effort and "reasoning_effort" in access.extra_body:
        raise BadInput(f"--effort {effort}: --extra-body has a reasoning_effort too; leave one out")
    if dry_run:
        body, said = first_request(items, job, limit)
        for line in json.dumps({**body, **access.told_body}, indent=1, ensure_ascii=False).split("\n"):
            print(printable(line))
        console.print(said)
        return
    told = told_source(source, good, form, fields, sha256, hub) | {"language": language}
    done = run(items, job, out, access, told, limit)
    console.print(done.text)
    if done.left or done.unanswered:
        raise Exit(1)


def _task(prompt: Path) -> str:
    with bad_input(f"--prompt {prompt}", "name a text file in UTF-8", OSError, UnicodeDecodeError):
        text = read_text(prompt).strip()
    if not text:
        raise BadInput(f"--prompt {prompt}: is empty; write what the model is to do, the form of the answer is added")
    return text
