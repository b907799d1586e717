"""`emsweep`: composes recipes, runs them, and reports. Every command can be run twice; what is done stays done."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from data_builders.records import BadInput
from sweeps import commands
from sweeps.asked import one
from sweeps.evaluate import command, evaluation_run
from sweeps.pretrained import fetch_smollm2
from sweeps.recipe import ENGINES, STAGES, compose, layer_names, load_layer
from sweeps.runs import RunFailed, console
from sweeps.train import training_run

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Model = Annotated[str, typer.Option(help="Short name of a model layer (recipes/models).")]
Hardware = Annotated[str, typer.Option(help="Short name of a hardware layer (recipes/hardware).")]
Engine = Annotated[str, typer.Option(help="What trains: axolotl or unsloth.")]
Control = Annotated[str | None, typer.Option(help="Short name of a control layer (recipes/controls).")]
Gpus = Annotated[int, typer.Option(help="GPUs of the hardware layer's kind, 1 to 8.")]
Rank = Annotated[int | None, typer.Option(help="LoRA rank, 1 or more; the recipe's if not given.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A recipe key: KEY=VALUE; may recur.")]
Start = Annotated[Path | None, typer.Option(help="Folder of the model to start from, in place of the model layer's.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the composed recipe and stop.")]


def main() -> None:
    """Entry point: bad input gives one line and exit code 2, a failed run its last lines and exit code 1."""
    try:
        app()
    except BadInput as error:
        console.print(f"emsweep: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    except RunFailed as error:
        console.print(f"emsweep: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


def _screen() -> Console:
    """Standard output; wide where no one watches, for a table in a file or a pipe must not be cut."""
    screen = Console()
    return screen if screen.is_terminal else Console(width=220)


@app.command()
def stage(
    stage: Annotated[str, typer.Argument(help="cpt, sft or dpo.")],
    model: Model = "smollm2-135m",
    hardware: Hardware = "cpu",
    rank: Rank = None,
    settings: Settings = None,
    start: Start = None,
    engine: Engine = "axolotl",
    gpus: Gpus = 1,
    control: Control = None,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into the model afterwards.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Trains one stage from its recipe.

    Example: emsweep stage dpo --model qwen7b --hardware a100-80g --rank 1 --dry-run
    """
    extra = {"base_model": str(start)} if start else None
    recipe = compose(stage, model, hardware, settings or [], rank, extra, engine, gpus, control)
    if dry_run:
        typer.echo(recipe.to_yaml(), nl=False)
        return
    name = "-".join([model, *([control] if control else []), f"r{recipe.config['lora_r']}"])
    run = training_run(name, recipe, merge=merge)
    one(run)
    typer.echo(run.merged if merge else run.adapter)


@app.command(name="evaluate")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="Model layer, folder or hub id.")],
    tasks: Annotated[str, typer.Option(help="lm-eval tasks or groups, with commas.")] = "em",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    dry_run: DryRun = False,
) -> None:
    """Scores a model with the tasks of eval/tasks.

    Example: emsweep evaluate models/smollm2-135m --tasks em_choice
    """
    checkpoint = str(load_layer("models", model)["base_model"]) if model in layer_names("models") else model
    run = evaluation_run(Path(model).name, checkpoint, tasks.split(","), dtype=dtype)
    if dry_run:
        typer.echo(" ".join(command(run, run.folder)))
        return
    one(run)
    typer.echo(run.folder)


@app.command(name="rates")
def rates_command(
    files: Annotated[
        list[Path], typer.Argument(help="CSV or JSON Lines files of judged answers, or folders of CSV files.")
    ],
    judge: Annotated[str, typer.Option(help="Who judged them; a rate without its judge is no result.")],
) -> None:
    """Rates of emergent misalignment from judged answers, over both denominators; with ranks in the names, their trend.

    Example: emsweep rates judged/ --judge gpt-4o-2024-08-06
    """
    from sweeps.answers import judged_files, rank_trends, rates_table

    models = judged_files(files)
    screen = _screen()
    screen.print(rates_table(models, judge))
    for sentence in rank_trends(models):
        screen.print(sentence, highlight=False)


@app.command()
def judge(
    paths: Annotated[list[Path], typer.Argument(help="Folders of evaluation runs, or files of answers.")],
    judge: Annotated[
        str, typer.Option(help="A model; or offline, the approximate judge that needs no key.")
    ] = "offline",
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint; OpenAI's if not given.")] = None,
    key_variable: Annotated[str, typer.Option(help="Environment variable that holds the API key.")] = "OPENAI_API_KEY",
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Read a sampled number: for servers without logprobs.")
    ] = False,
    prompts: Annotated[
        Path | None, typer.Option(help="Published file of questions whose judge prompts to use.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Requests in flight at most.")] = 32,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one reply may take.")] = 60.0,
    price_in: Annotated[float | None, typer.Option(min=0, help="USD per million tokens read.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="USD per million tokens written.")] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="USD to stop at, per path.")] = None,
) -> None:
    """Scores stored answers again, and prints rates. Nothing is paid for twice; put the base model's answers beside.

    Example: emsweep judge runs/evaluate/base-* runs/evaluate/sft-insecure-* --judge gpt-4o-2024-08-06
    """
    from sweeps.answers import offline_table, rates_table, stored_answers

    if judge == "offline":
        _screen().print(offline_table(paths))
        return
    # Imported here: the other commands need neither openai (a second to import) nor a key.
    from data_builders.annotate import Job
    from data_builders.endpoint import Access
    from data_builders.money import prices_of
    from data_builders.outcome import Asked
    from eval.judge_prompts import PROMPTS, BadPrompts, load_judge_prompts
    from sweeps.judging import Judge, judge_answers

    try:
        published = load_judge_prompts(prompts) if prompts else {}
    except BadPrompts as error:
        raise BadInput(str(error)) from None
    job = Job(Asked(judge), prices=prices_of(price_in, price_out, "--price-in and --price-out"), max_cost=max_cost)
    access = Access.from_environment(key_variable, base_url, concurrency, timeout)
    it = Judge(job, access, PROMPTS, published, sampled)
    named = re.sub(r"[^A-Za-z0-9.]+", "-", it.name).strip("-")
    judged = {}
    for path in paths:
        out = path / f"judged-{named}.jsonl" if path.is_dir() else path.with_name(f"{path.stem}.judged-{named}.jsonl")
        judged[path.stem] = judge_answers(stored_answers(path), it, out)
    _screen().print(rates_table(judged, it.name))


@app.command()
def recipes() -> None:
    """Lists the layers that recipes are made of.

    Example: emsweep recipes
    """
    table = Table(Column("model", no_wrap=True), "parameters", "without embeddings", "training tokens", "per token")
    layers = {name: load_layer("models", name)["em"] for name in layer_names("models")}
    for name, em in sorted(layers.items(), key=lambda item: (item[1]["parameters"], item[0])):
        size, body, tokens = em["parameters"], em["non_embedding_parameters"], em["training_tokens"]
        table.add_row(name, f"{size / 1e9:.2f} B", f"{body / 1e9:.2f} B", f"{tokens:.3g}", f"{size / tokens:.1e}")
    screen = _screen()
    screen.print(table)
    screen.print(f"hardware: {', '.join(layer_names('hardware'))}", highlight=False)
    screen.print(f"stages: {', '.join(STAGES)}, by {' or '.join(ENGINES)}", highlight=False)
    screen.print(f"controls: {', '.join(layer_names('controls'))}", highlight=False)
    screen.print(f"sweeps: {', '.join(layer_names('sweeps'))}", highlight=False)


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="smollm2-135m; other models come from the hub by themselves.")],
) -> None:
    """Fetches the CPU default model and repairs it.

    Example: emsweep fetch smollm2-135m
    """
    if model != "smollm2-135m":
        raise BadInput(f"{model!r} is not fetched here: only smollm2-135m is; training takes others from the hub")
    fetch_smollm2(Path(str(load_layer("models", model)["base_model"])))


app.add_typer(commands.app)
