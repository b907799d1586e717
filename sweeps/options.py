"""Options that commands on sweeps share, as groups: `@takes(SweepOptions, StartOptions)` gives a command all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from core.records import BadInput, one_line
from eval.judge.settings import JudgeSettings
from sweeps.plan.declaration import Tuned, read_sweep
from sweeps.plan.request import Request
from sweeps.recipe.settings import given_settings
from sweeps.run.folder import MOST_CHECKPOINTS
from sweeps.run.tasks import guard_tasks
from sweeps.run.vllm import chosen_backend


@dataclass(frozen=True)
class SweepOptions:
    """Options of every command that takes a declared sweep; `request` reads the sweep and applies them."""

    model: Annotated[str | None, Option(help="Model; the sweep's if not given.")] = None
    hardware: Annotated[str | None, Option(help="Hardware profile; else the sweep's, or this machine's.")] = None
    data: Annotated[str | None, Option(help="Folder of the sets, in place of data.")] = None
    alpha_policy: Annotated[
        str | None, Option(help="alpha_over_r, alpha, alpha_over_sqrt_r, or several with commas between.")
    ] = None
    axis: Annotated[list[str] | None, Option(help="AXIS=VALUE,VALUE: a further axis; may recur.")] = None
    settings: Annotated[
        list[str] | None,
        Option("--set", help="A recipe key of what varies (of all arms, if models fit by it): KEY=VALUE."),
    ] = None
    full: Annotated[bool, Option("--full", help="All arms and all seeds; else the first seed.")] = False
    judge: Annotated[
        str | None,
        Option(help="A model that scores the answers in the end; the sweep's `judge:` section says where it is."),
    ] = None
    gpus: Annotated[int | None, Option(min=1, max=8, help="GPUs of a run, where one does not hold the model.")] = None
    per_gpu: Annotated[int | None, Option(min=1, max=8, help="Runs on each GPU at once, if their memory fits.")] = None
    checkpoints: Annotated[
        int | None, Option(min=1, max=MOST_CHECKPOINTS, help="Points of training to measure at, with its end.")
    ] = None
    guard: Annotated[str | None, Option(help="Capabilities too: quick or full, standard tasks from the hub.")] = None
    judging: Mapping[str, Any] = field(default_factory=dict)
    """No option: further settings of the judge, in place of the sweep's."""

    @property
    def axes(self) -> dict[str, Sequence[str]]:
        """The values of each axis that is given; BadInput for one without values, or that is given twice."""
        axes: dict[str, Sequence[str]] = {}
        for text in [*([f"alpha={self.alpha_policy}"] if self.alpha_policy else []), *(self.axis or [])]:
            key, separator, values = text.partition("=")
            if not separator or not key:
                raise BadInput(f"--axis {text!r} is not AXIS=VALUE,VALUE; write for example --axis seed=1,2,3")
            if key in axes:
                raise BadInput(f"axis {key} is given twice; name its values once, with commas between")
            if "" in values.split(","):
                raise BadInput(f"--axis {text}: an empty value, as of a variable that is not set")
            axes[key] = values.split(",")
        return axes

    def request(
        self, name: str, axes: Mapping[str, Sequence[str]] | None = None, tuned: Mapping[str, Tuned] | None = None
    ) -> Request:
        """A declared sweep, by name or path, with these options; more axes and tuned rates. BadInput if there is no
        such sweep, or an axis is given twice."""
        axes = axes or {}
        if twice := sorted(set(axes) & set(self.axes)):
            raise BadInput(f"--axis {twice[0]}: the command gives values of {twice[0]} already; name them once")
        sweep, machine = read_sweep(name, self.hardware, self.model)
        grid = {**sweep.grid, **self.axes, **axes}
        if self.model and "model" in grid:
            raise BadInput(f"--model {self.model}: the axis model names them; say --axis model={self.model} alone")
        own = given_settings(self.settings or [])
        guarding, said = guard_tasks(self.guard, sweep.evaluation.gen_kwargs.get("max_gen_toks"))
        declared = [setting for setting in sweep.settings if not given_settings([setting]).keys() & own.keys()]
        # Decided here once: what is planned is what another machine executes.
        backend = chosen_backend(sweep.evaluation.backend, sweep.memory_gib is not None)
        update: dict[str, Any] = {
            **{key: getattr(self, key) or getattr(sweep, key) for key in ("data", "gpus", "per_gpu", "checkpoints")},
            "tasks": list(dict.fromkeys([*sweep.tasks, *guarding])),
            "evaluation": sweep.evaluation.model_copy(update={"backend": backend}),
            "grid": grid,
            "settings": [*declared, *(self.settings or [])],
            "tuned": dict(tuned or sweep.tuned),
        }
        if self.judge:
            where = sweep.judge.model_dump() if sweep.judge else {}
            if where.get("model") != self.judge:  # another model has other prices
                where |= {"price_in": None, "price_out": None}
            update["judge"] = JudgeSettings.model_validate({**where, "model": self.judge, **self.judging})
        notes = tuple(note for note in (machine, said) if note)
        return Request(sweep.model_copy(update=update), one_line(Path(name).stem, 100), self.full, notes, bool(machine))


@dataclass(frozen=True)
class StartOptions:
    """Options of every command that starts a sweep, or plans one."""

    dry_run: Annotated[
        bool,
        Option("--dry-run", help="Show the plan and the folders of its points (of a search the plan alone), and stop."),
    ] = False
    launcher: Annotated[str, Option(help="local: this machine; ray: nodes that share this folder.")] = "local"
    address: Annotated[str | None, Option(help="Of the Ray cluster; without it one is started here.")] = None

    def __post_init__(self) -> None:
        if self.launcher not in ("local", "ray"):
            raise BadInput(f"unknown launcher {self.launcher!r} (there are: local, ray)")
        if self.address and self.launcher != "ray":
            raise BadInput("--address goes with --launcher ray")
