"""`emsweep`: composes recipes, runs them, and reports. Every command can be run twice; what is done stays done."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from click.core import ParameterSource
from rich.table import Column, Table
from typer import Argument, Option

from core.options import App, takes
from core.records import BadInput, printable
from eval.judge.answers import answer_files, columns_of, judge_of, judged_files, manifest_of, model_of
from eval.judge.judge import judge_for
from eval.judge.rates import rank_trends, rates_table
from eval.judge.run import judge_paths
from eval.judge.settings import JudgeSettings, Judging
from eval.preset_files import load_preset, preset_names, questions_file
from sweeps import experiment, inside_commands, inside_sweep, sweep_commands
from sweeps.plan.declaration import same_key
from sweeps.recipe.compose import compose
from sweeps.recipe.hardware import gpu_here, machine_dtype, this_machine
from sweeps.recipe.layers import ENGINES, STAGES, layer_names, load_layer
from sweeps.recipe.settings import given_settings
from sweeps.run.evaluate import command, evaluation_run
from sweeps.run.executor import execute, execute_all, in_place, none_free, places
from sweeps.run.fetch_model import fetch_smollm2
from sweeps.run.folder import merge_run
from sweeps.run.process import RunFailed, say, screen
from sweeps.run.tasks import check_sampled, guard_tasks
from sweeps.run.train import training_run
from sweeps.run.validate import check_runs
from sweeps.run.vllm import chosen_backend
from sweeps.sets import sets_for

app = App(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

DryRun = Annotated[bool, Option("--dry-run", help="Print the composed recipe and stop.")]
JudgedBy = Annotated[str | None, Option(help="Who judged the files, where no manifest says it; no rate without.")]
Columns = Annotated[str | None, Option(help="The files' own names of columns, such as answer=response.")]


def main() -> None:
    """Entry point: bad input gives one line and exit code 2, a failed run its last lines and exit code 1."""
    try:
        app()
    except (BadInput, RunFailed) as error:
        say(f"emsweep: {printable(str(error))}")
        raise SystemExit(2 if isinstance(error, BadInput) else 1) from None


def _say(*notes: str) -> None:
    """Lines to standard error, once nothing is refused any more."""
    for note in filter(None, notes):
        say(note, "dim")


@app.command()
def train(
    stage: Annotated[str, Argument(help="cpt, sft or dpo.")],
    model: Annotated[str, Option(help="Short name of a model (`emsweep recipes` lists them).")] = "smollm2-135m",
    hardware: Annotated[str | None, Option(help="Hardware profile (recipes/hardware); else this machine's.")] = None,
    rank: Annotated[int | None, Option(help="LoRA rank, 1 or more; the recipe's if not given.")] = None,
    settings: Annotated[list[str] | None, Option("--set", help="A recipe key: KEY=VALUE; may recur.")] = None,
    start: Annotated[Path | None, Option(help="Folder of a model to start from, in place of the model's own.")] = None,
    engine: Annotated[str, Option(help="What trains: axolotl or unsloth.")] = "axolotl",
    gpus: Annotated[int, Option(help="GPUs of the hardware profile's kind, 1 to 8.")] = 1,
    variant: Annotated[str | None, Option(help="Short name of a control or preset (recipes/variants).")] = None,
    data: Annotated[str | None, Option(help="Folder of the sets, in place of data.")] = None,
    programs: Annotated[str | None, Option(help="Annotated programs, or builtin: builds their sets first.")] = None,
    merge: Annotated[bool, Option("--merge", help="Merge the adapter into the model afterwards.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Trains one stage from its recipe.

    Example: emsweep train dpo --model qwen7b --hardware a100-80g --rank 1 --dry-run
    """
    extra = {"base_model": str(start)} if start else None
    given = given_settings(settings or [])
    if start and "base_model" in given:
        raise BadInput(f"--start {start} and --set base_model name two models; leave one out")
    own = next((key for key in given if same_key(key, "datasets.0.path")), None)
    if own and (programs or data):
        source = f"--programs {programs}" if programs else f"--data {data}"
        raise BadInput(f"{source} and --set {own} name two sources of the set; leave one out")
    profile, why = (hardware, "") if hardware else this_machine(model)
    composed = partial(compose, stage, model, profile, settings or [], rank, extra, engine, gpus, variant)
    recipe = composed(data)
    if programs:
        if data:
            raise BadInput(f"--programs {programs} and --data {data} name two sources of sets; leave one out")
        sets = sets_for(programs, recipe)
        recipe = composed(str(sets.folder if dry_run else sets.build()))
    if dry_run:
        _say(why)
        typer.echo(recipe.to_yaml(), nl=False)
        return
    name = "-".join([model, *([variant] if variant else []), f"r{recipe.config['lora_r']}"])
    run = training_run(name, recipe)
    merged = merge_run(run)
    if not (free := places(profile, gpus)):
        raise BadInput(none_free(profile, gpus))
    _say(why)
    # In sight of several cards a training of one process would take all of them, and a step as many times the rows.
    execute_all([run, merged] if merge else [run], in_place(execute, run.root), free[:1])
    typer.echo(merged.model if merge else run.adapter)


@app.command(name="evaluate")
def evaluate_command(
    context: typer.Context,
    model: Annotated[str, Argument(help="Short name of a model, folder or hub id.")],
    adapters: Annotated[list[Path] | None, Option("--adapter", help="LoRA adapter of MODEL; may recur.")] = None,
    tasks: Annotated[str, Option(help="lm-eval tasks or groups, with commas.")] = "em",
    guard: Annotated[str | None, Option(help="Capabilities too: quick or full, standard tasks from the hub.")] = None,
    dtype: Annotated[str | None, Option(help="bfloat16 or float32; else float32 on a CPU without bf16.")] = None,
    batch_size: Annotated[str, Option(help="A number, or auto: the largest that fits, found once.")] = "8",
    samples: Annotated[int, Option(min=1, help="Answers to sample for each question.")] = 1,
    questions: Annotated[str | None, Option(help="Questions in place of ours: a file, or URL#sha256=DIGEST.")] = None,
    max_tokens: Annotated[int | None, Option(min=1, help="Tokens of an answer; the tasks' own if not given.")] = None,
    preset: Annotated[
        str | None, Option(help="first-plot or preregistered: the EM paper's questions, samples and length.")
    ] = None,
    limit: Annotated[int | None, Option(min=1, help="Documents of each task, to try things out.")] = None,
    backend: Annotated[
        str | None, Option(help="hf, or vllm: one engine for all adapters; vllm on a GPU where it is found.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Scores a model, or adapters of it one after another in one process, with the tasks of eval/tasks.

    Example: emsweep evaluate qwen7b --adapter runs/sft/a/adapter --adapter runs/sft/b/adapter --guard quick
    """
    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise BadInput(f"--batch-size {batch_size}: give a number of 1 or more, or auto")
    if dtype not in (None, "bfloat16", "float32"):
        raise BadInput(f"--dtype {dtype}: give bfloat16 or float32")
    if backend not in (None, "hf", "vllm"):
        raise BadInput(f"--backend {backend}: give hf or vllm")
    sampler = chosen_backend(backend, backend is None and gpu_here())
    if sampler == "vllm" and context.get_parameter_source("batch_size") is not ParameterSource.DEFAULT:
        raise BadInput("--backend vllm batches by itself; leave --batch-size out, or say --backend hf")
    published, prompts = load_preset(preset) if preset is not None else None, questions or preset
    if published:
        for option in ("tasks", "samples", "max_tokens"):
            if context.get_parameter_source(option) is not ParameterSource.DEFAULT:
                raise BadInput(f"--preset {preset} and --{option.replace('_', '-')} both give {option}; leave one out")
        tasks, samples, max_tokens = published.tasks, published.samples, published.max_tokens
        questions = str(published.questions_file(questions))
    elif questions:
        questions = str(questions_file(questions))
    guarding, about_guard = guard_tasks(guard, max_tokens)
    names = [name.strip() for name in tasks.split(",")]
    sampling = {"--samples": samples > 1, "--questions": questions, "--max-tokens": max_tokens}
    for option in (option for option, given in sampling.items() if given):
        check_sampled(option, [*names, *guarding] if option == "--max-tokens" else names)
    settings: dict[str, Any] = {
        "dtype": dtype or machine_dtype(),
        "batch_size": int(batch_size) if batch_size != "auto" else "auto",
        "backend": sampler,
        "metadata": ({"samples": samples} if samples > 1 else {}) | ({"questions": questions} if questions else {}),
        "gen_kwargs": {"max_gen_toks": max_tokens} if max_tokens else None,
        "limit": limit,
    }
    chosen: Sequence[Path | None] = adapters or [None]
    runs = []
    for adapter in chosen:
        name = Path(adapter.parent if adapter and adapter.name == "adapter" else adapter or model).name
        runs.append(evaluation_run(name, model, [*names, *guarding], adapter=adapter, **settings))
    # A folder of its own: another evaluation that begins now has other tasks.
    check_runs({run.digest: run for run in runs}, runs[0].root / ".check" / runs[0].digest[:10])
    if dry_run:
        typer.echo("\n".join(shlex.join(command(run, run.folder)) for run in runs))
        return
    _say(f"lm-eval on {sampler}" if sampler != "hf" and not backend else "", about_guard)
    # On a CPU two at once would take far longer than one after the other; a card is for whoever evaluates to name.
    execute_all(runs, execute if gpu_here() else in_place(execute, runs[0].root))
    typer.echo("\n".join(str(run.folder) for run in runs))
    if published:
        judging = ["--judge", published.judge, "--prompts", str(prompts)]
        _say(f"to judge: {shlex.join(['emsweep', 'judge', *(str(run.folder) for run in runs), *judging])}")


@app.command()
def rates(
    files: Annotated[list[Path], Argument(help="Files of judged answers (CSV, JSON Lines), or folders of .csv, .tsv.")],
    judged_by: JudgedBy = None,
    columns: Columns = None,
) -> None:
    """Rates of emergent misalignment from judged answers, over both denominators; with ranks in the names, their trend.

    Example: emsweep rates judged/ --judged-by gpt-4o-2024-08-06
    """
    every = answer_files(files)
    models = judged_files(every, columns_of(columns))
    out = screen()
    of = {model_of(file): size for file in every if (size := manifest_of(file).get("sample_of"))}
    out.print(rates_table(models, judge_of(every, judged_by, "--judged-by"), of))
    for sentence in rank_trends(models):
        out.print(sentence, markup=False, highlight=False)


@app.command()
def report(
    paths: Annotated[
        list[Path] | None, Argument(help="A finished sweep, by name or folder (demo); or more answers.")
    ] = None,
    answers: Annotated[list[Path] | None, Option(help="Judged answers in place of a sweep: files, folders.")] = None,
    columns: Columns = None,
    judged_by: JudgedBy = None,
    out: Annotated[Path | None, Option(help="Folder of the report; runs/report, or the sweep's.")] = None,
    title: Annotated[str | None, Option(help="Heading of the page.")] = None,
) -> None:
    """Writes report.html with its figures (SVG, PDF) and tables (CSV), from judged answers or a sweep's runs.

    Example: emsweep report --answers judged/ --judged-by gpt-4o-2024-08-06 --out report
    """
    if answers:
        from sweeps.report.judged import write_answers_report

        files = [*answers, *(paths or [])]
        heading = title or "Emergent misalignment from judged answers"
        target, named = out or Path("runs/report"), sweep_commands.as_typed()
        typer.echo(write_answers_report(files, judged_by, target, heading, named, columns_of(columns)))
        return
    if columns or judged_by:
        raise BadInput("--columns and --judged-by: are of --answers; a sweep's files say both")
    if len(paths or []) > 1:
        raise BadInput("one sweep at a time; or give files of judged answers after --answers")
    from sweeps.plan.manifest import finished_points
    from sweeps.report.sweep import write_report

    home, manifest, points, missing = finished_points(str(paths[0]) if paths else "demo")
    page = write_report(
        manifest.declared, points, out or home, manifest.full, manifest.command, missing, title, home / "inside.json"
    )
    typer.echo(page)


@app.command()
@takes(Judging)
def judge(
    judging: Judging,
    paths: Annotated[list[Path], Argument(help="Folders of evaluation runs, or files of answers.")],
    judge: Annotated[str, Option(help="The model to ask, by any OpenAI-compatible server.")],
    prompts: Annotated[
        Path | None,
        Option(help="A file of prompts, or advice, category, deception, plants, first-plot or preregistered."),
    ] = None,
    columns: Columns = None,
    sample: Annotated[float | None, Option(help="Judge a random share of each question's answers, as 0.4.")] = None,
) -> None:
    """Scores stored answers again, and prints rates. Nothing is paid for twice; put the base model's answers beside.

    Example: emsweep judge runs/evaluate/base-* runs/evaluate/sft-insecure-* --judge gpt-4o-2024-08-06
    """
    if sample is not None and not 0 < sample < 1:
        raise BadInput(f"--sample {sample:g}: give a share between 0 and 1")
    chosen = judge_for(JudgeSettings(model=judge, prompts=prompts, **dict(judging)))
    table, left = judge_paths(paths, chosen, columns_of(columns), sample)
    if table:
        screen().print(table)
    if left:
        typer.echo(left, err=True)
        raise typer.Exit(1)


@app.command()
def agree(
    files: Annotated[list[Path], Argument(help="The first judge's files, then the second's in the same order.")],
    first: Annotated[str | None, Option(help="The first judge, where no manifest names it.")] = None,
    second: Annotated[str | None, Option(help="The second judge, where no manifest names it.")] = None,
) -> None:
    """Compares two judges of the same answers: correlation, kappa at the thresholds, shift of the EM rate.

    Example: emsweep agree runs/evaluate/*/judged-gpt-4o-2024-08-06.jsonl runs/evaluate/*/judged-gpt-5.jsonl
    """
    from eval.judge.agreement import matched_files, scores_table, shifts_table

    models = matched_files(files)
    half = len(files) // 2
    judges = judge_of(files[:half], first, "--first"), judge_of(files[half:], second, "--second")
    for table in (scores_table, shifts_table):
        screen().print(table(models, *judges))


@app.command()
def recipes() -> None:
    """Lists the layers that recipes are made of.

    Example: emsweep recipes
    """
    names = [Column(name, no_wrap=True) for name in ("model", "hub id")]
    table = Table(*names, "parameters", "without embeddings", "training tokens", "per token")
    layers = {name: load_layer("models", name)["em"] for name in layer_names("models")}
    for name, em in sorted(layers.items(), key=lambda item: (item[1]["parameters"], item[0])):
        size, body, tokens = em["parameters"], em.get("non_embedding_parameters"), em.get("training_tokens")
        learnt = (f"{tokens:.3g}", f"{size / tokens:.1e}") if tokens else ()
        table.add_row(name, em["hub_id"], f"{size / 1e9:.2f} B", f"{body / 1e9:.2f} B" if body else "", *learnt)
    screen().print(table)
    typer.echo(f"hardware: {', '.join(layer_names('hardware'))}")
    typer.echo(f"stages: {', '.join(STAGES)}, by {' or '.join(ENGINES)}")
    typer.echo(f"variants: {', '.join(layer_names('variants'))}")
    typer.echo(f"sweeps: {', '.join(layer_names('sweeps'))}")
    typer.echo(f"evaluations (--preset): {', '.join(preset_names())}")


@app.command()
def fetch(
    model: Annotated[str, Argument(help="smollm2-135m; other models come from the hub by themselves.")],
) -> None:
    """Fetches the CPU default model and repairs it.

    Example: emsweep fetch smollm2-135m
    """
    if model != "smollm2-135m":
        raise BadInput(f"{model!r} is not fetched here: only smollm2-135m is; training takes others from the hub")
    fetch_smollm2(Path(str(load_layer("models", model)["base_model"])))


for others in (sweep_commands, experiment, inside_commands, inside_sweep):
    app.add_typer(others.app)
