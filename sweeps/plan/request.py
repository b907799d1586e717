"""A declared sweep as it is asked for: with what the options changed, its points and runs, and its folder."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from core.llm.budget import Prices, prices_of
from core.records import BadInput, manifest_path, printable, read_json
from eval.judge.prompt_files import load_prompts
from eval.stats.measure_names import JUDGED, TASKS
from sweeps.plan.axes import vary
from sweeps.plan.declaration import Point, Sweep, left_out, needed_file
from sweeps.plan.estimate import between, judging, plan_table
from sweeps.plan.sweep import evaluation_gib, graph, plan
from sweeps.recipe.hardware import this_machine
from sweeps.recipe.layers import load_layer
from sweeps.recipe.memory import Shape, estimate
from sweeps.run.executor import places
from sweeps.run.folder import Run, TrainingRun, content_digest
from sweeps.run.graph import Graph
from sweeps.run.index import write_index
from sweeps.run.process import console, say
from sweeps.run.tasks import task_configs

SWEEPS = Path("runs/sweeps")
FREEFORM = "em_freeform"


def check_report(sweep: Sweep) -> None:
    """Refuses a sweep whose claims its evaluations could not decide: BadInput names the tasks that are missing, or the
    claim that needs a judge."""
    needed = {TASKS[claim.measure]: f"the measure {claim.measure}" for claim in sweep.claims}
    if measure := needed.pop(JUDGED, None):
        if not sweep.judge:
            raise BadInput(f"a claim needs a judge, for {measure}: give --judge MODEL, or the sweep's `judge:`")
        needed[FREEFORM] = measure
    if sweep.judge:
        needed.setdefault(FREEFORM, "the judge")
    there, _ = task_configs(sweep.tasks)
    if missing := [f"{task}, for {why}" for task, why in needed.items() if task not in there]:
        raise BadInput(f"tasks {', '.join(sweep.tasks)} lack {'; '.join(missing)}; add them, or take em, which has all")


@dataclass(frozen=True)
class Request:
    """A declared sweep with what the options changed of it; `name` is that of its file."""

    sweep: Sweep
    name: str
    full: bool
    notes: tuple[str, ...] = ()
    """What the plan says first: why its hardware profile was taken, where nobody named one; what a guard leaves out."""
    found: bool = False
    """Whether its hardware is this machine's because nobody named one: then a CPU takes no model that is too large."""

    @cached_property
    def declared(self) -> Sweep:
        """With an arm for each combination of the axes; BadInput if its report would lack a task or a judge, or a model
        is too large for a machine that nobody named, beside what `vary` refuses."""
        check_report(self.sweep)
        declared = vary(self.sweep, self.sweep.grid)
        if self.found and self.sweep.memory_gib is None:
            models = {arm.model or declared.model for arm in declared.arms.values()} | {declared.model}
            this_machine(max(models, key=lambda name: load_layer("models", name)["em"]["parameters"]))
        return declared

    @cached_property
    def points(self) -> list[Point]:
        return plan(self.declared, self.full)

    @cached_property
    def runs(self) -> dict[str, Run]:
        return graph(self.points)

    @cached_property
    def places(self) -> list[dict[str, str]]:
        """The environment of each process that may run at once on this machine; none where every GPU is busy. BadInput
        if several runs do not fit on one."""
        if self.sweep.per_gpu > 1:
            self._check_shares()
        return places(self.sweep.hardware, self.sweep.gpus, self.sweep.per_gpu, self.folder.parent.parent)

    def _check_shares(self) -> None:
        """Refuses more runs on a GPU than it holds, by the estimate of each; an evaluation has its weights at least."""
        limit, count = self.sweep.memory_gib, self.sweep.per_gpu
        told = f"--per-gpu {count}"
        if limit is None or self.sweep.gpus > 1:
            raise BadInput(f"{told}: runs share a GPU where each needs one; not with --gpus, nor on a CPU")
        if self.sweep.evaluation.batch_size == "auto" and self.sweep.evaluation.backend != "vllm":
            raise BadInput(f"{told}: evaluation.batch_size: auto fills a GPU; give a number")
        for run in (run for run in self.runs.values() if run.stage != "merge" and not run.done):
            if isinstance(run, TrainingRun):
                em = run.recipe.em
                need = estimate(Shape(**em["shape"]), int(em["parameters"]), run.recipe.config).gib
            else:
                need = evaluation_gib(run.about["model"])
            if need * count > limit:
                raise BadInput(
                    f"{told}: {run.stage} {run.name} needs about {need:.1f} GiB, {count} of them {need * count:.0f} of"
                    f" {limit:g}; --per-gpu {max(1, int(limit / need))} fits"
                )

    @cached_property
    def folder(self) -> Path:
        """Named by content: a report for each set of points, whatever the file was called before; the judge aside."""
        every = {"full": True} if self.full else {}
        grid = {"grid": self.declared.grid}  # as text, however it was given
        digest = content_digest(self.sweep.model_dump(exclude={"judge"}) | grid | every)
        return SWEEPS / f"{self.name}-{self.sweep.model}-{digest[:6]}"

    def show_plan(self, prices: Prices | None = None, judged: bool = False) -> None:
        """Prints what the sweep will take, of a judge too where there is one, or where `judged` asks for it."""
        self.show_runs(self.runs, f"{len(self.points)} points, ")
        for line in (*self._left_out(), *self._built_for_others()):
            say(printable(line), "yellow")
        if judged or self.sweep.judge:
            self.show_judging([run for run in self.runs.values() if run.stage == "evaluate"], prices)

    def show_runs(self, runs: Graph, what: str) -> None:
        """Prints what runs will take, behind `what` they are of."""
        table, words = plan_table(runs, write_index(), max(1, len(self.places)))
        for note in self.notes:
            say(note, "dim")
        console.print(table)
        say(f"{what}{words}")

    def _left_out(self) -> Iterator[str]:
        """A line for each arm that is left out."""
        for name, arm in self.declared.arms.items():
            if left_out(self.declared, arm):
                path, model = needed_file(self.declared, arm), arm.model or self.declared.model
                yield f"{name} is left out: {f'there is no {path}' if path else f'{model} knows chats already'}"

    def _built_for_others(self) -> Iterable[str]:
        """A line for each set that was counted in the tokens of another model than the one that it trains."""
        told = {}
        for run in (run for run in self.runs.values() if isinstance(run, TrainingRun)):
            base = run.recipe.config["base_model"]
            for path in run.content["data"]:
                with suppress(OSError, ValueError, KeyError, TypeError):
                    built_for = read_json(manifest_path(Path(path)))["tokenizer"]
                    if built_for != base:
                        told[path] = f"{path} was built for {built_for}, not for {base}"
        return (f"{words}; `emsweep experiment` builds its own" for words in told.values())

    def show_judging(self, evaluations: Sequence[Run], prices: Prices | None = None, what: str = "") -> None:
        """Prints what judging evaluations once takes, by `prices` or those of its judge, behind `what` they are."""
        judge = self.sweep.judge
        if prices is None and judge:
            prices = prices_of(judge.price_in, judge.price_out, "judge: price_in and price_out")
        cost = judging(evaluations, load_prompts(judge.prompts if judge else None))
        if not cost.answers:
            if prices:
                say("of these tasks there are no answers to judge")
            return
        read = between(cost.tokens_in, ",.1f", 1e6)
        usd = f"about {between(cost.usd(prices), ',.2f')} USD" if prices else "with its prices, the cost too"
        words = f"judging {cost.answers:,} answers once: {cost.requests:,} requests, {read} million tokens read; {usd}"
        say(f"{what}{words}")

    def show_scales(self) -> None:
        scales = dict.fromkeys(point.training.recipe.scale for point in self.points if point.training)
        say(f"LoRA: {', '.join(scales)}")
