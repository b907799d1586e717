"""`emsweep experiment`: from programs to the report of a rank sweep, as one plan that can be stopped and goes on.

Annotate (where programs lack explanations), sets, then `emsweep rank` with all that it does. What is whole and made of
the same inputs is not made again: answers stand in journals, sets and runs under the digests of what they are made of.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from core.llm.budget import prices_of
from core.llm.client import Access
from core.options import App, takes
from core.records import BadInput, read_jsonl, write_whole
from eval.judge.judge import judge_for
from eval.judge.settings import JudgeSettings
from sweeps.options import StartOptions, SweepOptions
from sweeps.plan.declaration import Sweep
from sweeps.plan.sweep import arm_recipe
from sweeps.run.process import say
from sweeps.sets import BUILT_IN, annotated_file, held_out_share, sets_for
from sweeps.sweep_commands import RankOptions, show_search, start_ranks
from sweeps.tune.learning_rate import Search

app = App()

DEFAULT_KEY = "OPENAI_API_KEY"
TIMEOUT = 600.0
"""Seconds that one annotation may take."""
CONCURRENCY = 32
EXPLANATION = 600
"""Bytes that an annotation adds to a document."""


@dataclass(frozen=True)
class Endpoints:
    """Options of who annotates and who judges, and what that may cost."""

    base_url: Annotated[str | None, Option(help="The annotator's endpoint; OpenAI's if not given.")] = None
    key_variable: Annotated[str, Option(help="Environment variable that holds the API key.")] = DEFAULT_KEY
    price_in: Annotated[float | None, Option(min=0, help="USD per million tokens the annotator reads.")] = None
    price_out: Annotated[float | None, Option(min=0, help="USD per million tokens it writes.")] = None
    judge_base_url: Annotated[str | None, Option(help="The judge's endpoint; the annotator's if not given.")] = None
    judge_key_variable: Annotated[str | None, Option(help="Variable of its key; the annotator's if not given.")] = None
    judge_price_in: Annotated[float | None, Option(min=0, help="USD per million tokens the judge reads.")] = None
    judge_price_out: Annotated[float | None, Option(min=0, help="USD per million tokens it writes.")] = None
    sampled: Annotated[bool, Option("--sampled", help="Read a sampled number: for servers without logprobs.")] = False
    concurrency: Annotated[
        int | None, Option(min=1, max=1000, help="Requests in flight at most; 32, and of the judge its own.")
    ] = None
    max_cost: Annotated[float | None, Option(min=0, help="USD to stop at, for both together, earlier runs too.")] = None

    @property
    def of_both(self) -> dict[str, Any]:
        """What is said of the annotator and, if nothing else is, of the judge."""
        own_key = None if self.key_variable == DEFAULT_KEY else self.key_variable
        return _given(base_url=self.base_url, key_variable=own_key, concurrency=self.concurrency)

    @property
    def of_judge(self) -> dict[str, Any]:
        """What is said of the judge alone, in the words of `JudgeSettings`."""
        where = {"base_url": self.judge_base_url, "key_variable": self.judge_key_variable}
        prices = {"price_in": self.judge_price_in, "price_out": self.judge_price_out}
        return _given(**where, **prices, sampled=self.sampled or None)

    def unused(self, judge: bool) -> str:
        """The first option that concerns nobody where nothing is annotated; empty if there is none."""
        given = _given(price_in=self.price_in) | ({} if judge else self.of_both | _given(max_cost=self.max_cost))
        return next((f"--{key.replace('_', '-')} {value}" for key, value in given.items()), "")


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


@app.command()
@takes(RankOptions, SweepOptions, StartOptions, Search, Endpoints)
def experiment(
    ranks: RankOptions,
    options: SweepOptions,
    starting: StartOptions,
    search: Search,
    endpoints: Endpoints,
    programs: Annotated[
        str, Option(help="A file, URL#sha256=DIGEST or set of the hub; the built-in ones if not given.")
    ] = BUILT_IN,
    annotator: Annotated[str | None, Option(help="Model that explains the programs, where nothing does yet.")] = None,
    effort: Annotated[str | None, Option(help="Its reasoning effort, as it names it.")] = None,
) -> None:
    """From programs to the report: annotate, sets, CPT, merge, the rank sweep, evaluation, judging, the page.

    Shows hours, gigabytes and dollars first. Can be stopped at any moment and run again: nothing is paid for or trained
    twice.

    Example: emsweep experiment --model qwen7b --programs insecure.jsonl --annotator gpt-5 --judge gpt-4o-2024-08-06
    """
    # Imported here: no other command needs them.
    from data_builders.annotate import Job, Model
    from data_builders.programs import Program
    from sweeps.annotation import Annotation

    if options.data:
        raise BadInput(f"--data {options.data}: the sets are built here; leave it out, or take `emsweep rank`")
    prices = prices_of(endpoints.price_in, endpoints.price_out, "--price-in and --price-out")
    prices_of(endpoints.judge_price_in, endpoints.judge_price_out, "--judge-price-in and --judge-price-out")
    request = ranks.request(options)
    ends, declared = ranks.ends(request, search), request.sweep
    recipes = [arm_recipe(declared, arm) for arm in declared.arms.values()]
    # Any of them names the model; the rows of all arms must have the shortest length.
    recipe, length = recipes[0], min(int(recipe.config["sequence_len"]) for recipe in recipes)
    path, annotation = annotated_file(programs), None
    if path is None:
        where = (endpoints.base_url, endpoints.concurrency or CONCURRENCY, TIMEOUT)
        # Who only wants to see what it would take needs no key for that.
        access = Access("none", *where) if starting.dry_run else Access.from_environment(endpoints.key_variable, *where)
        if annotator is None:
            raise BadInput(f"{programs}: has no explanations; name the model that writes them: --annotator MODEL")
        job = Job(Model(annotator, effort), prices=prices, max_cost=endpoints.max_cost)
        annotation = Annotation(programs, job, access)
        path = annotation.file if annotation.whole else None
    elif annotator or effort:
        given = f"--annotator {annotator}" if annotator else f"--effort {effort}"
        raise BadInput(f"{given}: the programs of {programs} have explanations; leave it out")
    elif unused := endpoints.unused(declared.judge is not None):
        raise BadInput(f"{unused}: nothing is paid for that it concerns; leave it out")
    judged = _judged(options, declared.judge, endpoints, annotation.spent if annotation else 0.0)
    if judged.judge and not starting.dry_run:
        judge_for(JudgeSettings.model_validate(judged.judging))
    sets = sets_for(path, recipe, length) if path else None
    if sets is None or not sets.whole:
        sources = annotation.programs if annotation else read_jsonl(Path(path or ""), Program, unique="id")
        with _stand_ins(sources, ranks.request(judged).declared) as folder:
            planned = ranks.request(replace(judged, data=str(folder)))
            planned.show_plan(judged=True)
            if annotation and sets is None:
                say(annotation.plan())
            if ends:
                show_search(search, planned, ends[0])
        if starting.dry_run:
            return
    if sets is None:
        assert annotation
        annotation.run()
        judged = _judged(options, declared.judge, endpoints, annotation.spent)
        sets = sets_for(annotation.file, recipe, length)
    start_ranks(ranks, replace(judged, data=str(sets.build())), starting, search)


def _judged(options: SweepOptions, declared: JudgeSettings | None, endpoints: Endpoints, spent: float) -> SweepOptions:
    """The options with all that is said of the judge, who may spend what annotation has left; BadInput for a limit
    without prices, or a price without a judge."""
    if declared is None:
        if endpoints.of_judge:
            raise BadInput("--sampled and --judge-... are for a judge, and there is none: name it with --judge")
        return options
    settings = {**declared.model_dump(), **endpoints.of_both, **endpoints.of_judge}
    if endpoints.max_cost is not None:
        if settings["price_in"] is None:
            raise BadInput("--max-cost needs the judge's prices too: give --judge-price-in and --judge-price-out")
        settings["max_cost"] = max(0.0, endpoints.max_cost - spent)
    return replace(options, judge=declared.model, judging=settings)


@contextlib.contextmanager
def _stand_ins(programs: Sequence[Any], sweep: Sweep) -> Iterator[Path]:
    """A folder with sets of as many rows, and about as many bytes, as those that will be built."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = [(len(program.request), len(program.insecure)) for program in programs]
        held = sizes[: max(1, round(held_out_share(len(sizes)) * len(sizes)))]
        rows = {"train.jsonl": [0], "heldout.jsonl": [2 * (ask + code) for ask, code in held]}
        for arm in sweep.arms.values():
            name = Path(arm.data).name
            codes, more = {"cpt": (2, EXPLANATION), "sft": (1, 0)}.get(arm.stage, (2, 0))
            times = 2 if arm.stage == "cpt" or name == "dpo-both.jsonl" else 1
            rows[name] = [ask + codes * code + more for ask, code in sizes] * times
        for name, lengths in rows.items():
            # Of another content each: of one, the runs of two sets would be one.
            texts = (json.dumps({name: "x" * max(0, length - len(name) - 8)}) for length in lengths)
            write_whole(folder / name, "".join(f"{text}\n" for text in texts))
        yield folder
