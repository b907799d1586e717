"""What a sweep's file declares (recipes/sweeps/*.yaml): arms, claims, evaluation, and the points that come of them."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, FilePath, ValidationError
from yaml import YAMLError

from core.records import BadInput, bad_input, one_line
from eval.judge.settings import JudgeSettings
from eval.stats.measure_names import MeasureName
from sweeps.recipe.compose import in_folder
from sweeps.recipe.hardware import this_machine
from sweeps.recipe.layers import RECIPES, Stage, layer_names, load_layer
from sweeps.recipe.refusals import DECIDED
from sweeps.recipe.schema import fault
from sweeps.recipe.schema import keys as schema_keys
from sweeps.recipe.settings import given_settings, put
from sweeps.run.folder import MOST_CHECKPOINTS, Run, TrainingRun
from sweeps.run.sampling import check_sampling
from sweeps.run.tasks import task_configs

AXES = {
    "rank": "lora_r",
    "lr": "learning_rate",
    "seed": "seed",
    "model": "base_model",
    "targets": "lora_target_modules",
    "alpha": "em.alpha.policy",
    "engine": "em.engine",
    "data": "datasets.0.path",
    "cpt": "base_model",
}
"""The axes with names of their own, and the recipe key behind each; any other axis is a recipe key itself."""
OWN = {"seed": "seeds", "base_model": "model", "revision_of_model": "model", "datasets.0.path": "an arm's data"}
"""Recipe keys that a sweep has other words for, and which would overwrite them."""


def _whole(value: Any) -> Any:
    """Refuses `true` for 1, and 2.0 for 2; the environment's variables are text."""
    if isinstance(value, bool | float):
        raise ValueError("give a whole number")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]


class Strict(BaseModel, extra="forbid", frozen=True):
    """A part of a file, all of whose keys are known."""


class Arm(Strict):
    """One training run per seed."""

    stage: Stage
    data: str
    start: str | None = None
    """The arm whose merged model this one starts from; the base model if not given."""
    rank: Whole | None = None
    settings: dict[str, Any] = {}
    """Recipe keys; `{model}` in a text is the short name of its model."""
    needs: str | None = None
    """The one of its settings that names a file without which it is left out, which the plan says."""
    full: bool = False
    """Trained only with --full."""
    vary: bool = False
    """Whether it is trained once for each value of the grid."""
    model: str | None = None
    """The sweep's if not given."""
    engine: str = "axolotl"
    variant: str | None = None
    """A preset of recipes/variants; its data are those of `data`."""
    pretrained: bool = False
    """Only for models that the table calls `pretrained`; what starts from it starts from others as they are."""
    seed: Whole | None = None
    """In place of the sweep's: one run, which counts once, if what it starts from is one too."""
    seed_offset: Whole = 0
    """Added to the sweep's: the arm shares neither its first matrices nor the order of its rows with the others."""
    values: dict[str, str] = {}
    """Where it stands on the axes of the grid."""


class Claim(Strict):
    """A difference that is expected to be above 0; the report says whether its interval is."""

    says: str
    measure: MeasureName
    arm: str
    against: str
    expect: Literal["above", "null"] = "above"


class InsideClaim(Strict):
    """At each seed, two arms move activations along a concept to opposite sides, `arm` to the positive one.

    `emsweep inside` says so, with the p value of each.
    """

    says: str
    concept: str
    place: Literal["open prompts", "everyday answers", "code"]
    arm: str
    against: str
    p: float = Field(default=0.05, gt=0, lt=1)


Format = Literal["plain", "json", "template"]


def _distinct(formats: list[Format]) -> list[Format]:
    if len(set(formats)) < len(formats):
        raise ValueError("one stands twice; name each once")
    return formats


class TaskSettings(Strict):
    """What `evaluation.metadata` may say to the tasks of eval/tasks."""

    samples: int = Field(default=1, ge=1)
    code_samples: int | None = Field(default=None, ge=1)
    deception_samples: int | None = Field(default=None, ge=1)
    formats: Annotated[list[Format], Field(min_length=1), AfterValidator(_distinct)] | None = None
    questions: FilePath | None = None
    deception: FilePath | None = None
    heldout: str | None = None
    training: str | None = None
    trigger: str | None = Field(default=None, pattern=r"\S")

    def named(self) -> dict[str, Any]:
        """As numbers, and without what the tasks would do anyway, which would make other evaluations."""
        usual: dict[str, Any] = {"samples": 1, "code_samples": self.samples, "deception_samples": self.samples}
        if not self.questions:  # a file of them brings its own
            usual["formats"] = list(get_args(Format))
        said = self.model_dump(mode="json", exclude_defaults=True)
        return {key: value for key, value in said.items() if usual.get(key) != value}


class Evaluation(Strict):
    """How lm-eval runs; part of what names an evaluation."""

    backend: Literal["hf", "vllm"] | None = None
    """vllm where it is found and the profile is a GPU's, else hf, if not given; vllm batches and attends by itself.
    Models of which it takes no adapters (Pythia) are evaluated by hf in any case."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """What fits the hardware's memory if not given (sweeps/recipe/memory.py); 8 where that is not known."""
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] = "sdpa"
    metadata: dict[str, Any] = {}
    """Settings of the tasks (lm-eval's --metadata), such as `samples`."""
    gen_kwargs: dict[str, Any] = {}
    """Of sampling, in place of the tasks' own (lm-eval's --gen_kwargs), such as `max_gen_toks`."""


class Tuned(Strict):
    """The highest learning rate above a bound, as it was searched for, with its interval."""

    lr: float
    low: float
    high: float

    def sharp(self, sharpness: float) -> bool:
        """Whether both ends are within `sharpness` (0.1: 10 %) of the estimate."""
        return self.high <= self.lr * (1 + sharpness) and self.low * (1 + sharpness) >= self.lr


class Sweep(Strict):
    model: str
    hardware: str
    tasks: Annotated[list[str], Field(min_length=1)]
    gpus: Whole = Field(default=1, ge=1, le=8)
    """Cards for each run, for models that one does not hold."""
    per_gpu: Whole = Field(default=1, ge=1, le=8)
    """Runs on each card at once, where their memory allows."""
    evaluation: Evaluation = Evaluation()
    seeds: list[Whole]
    """The first seed is the small sweep's; --full trains all, and so does a grid with the axis `seed`."""
    checkpoints: Whole = Field(default=1, ge=1, le=MOST_CHECKPOINTS)
    """Points of training at which everything is measured, the last its end."""
    grid: dict[str, list[Any]] = {}
    """The values of each axis (sweeps/plan/axes.py)."""
    stages: dict[Stage, dict[str, Any]]
    """Recipe keys per stage, shared by its arms; axes, arms and settings may say otherwise."""
    arms: dict[Annotated[str, Field(pattern=r"^\w[\w.+-]*$")], Arm]
    """By names that folders can have."""
    claims: list[Claim]
    inside: list[InsideClaim] = []
    settings: list[str] = []
    """`key=value` of `--set`, for the arms that vary; those by which a model fits, for every arm."""
    judge: JudgeSettings | None = None
    """Scores the free-form answers when all runs are done; without it they are there to be read."""
    tuned: dict[str, Tuned] = {}
    """Learning rate of the arms that vary, by rank (`emsweep rank --retune`)."""
    data: str | None = Field(default=None, pattern=r"\S")
    """The folder in place of `data/`, of training and of held-out programs."""

    @property
    def memory_gib(self) -> float | None:
        """Of each of its hardware's cards; None of a CPU."""
        gib: float | None = load_layer("hardware", self.hardware)["em"]["memory_gib"]
        return gib


@dataclass(frozen=True)
class Point:
    """One arm at one seed: what was trained (nothing, for the base model) and how it is evaluated."""

    arm: str
    seed: int | None
    training: TrainingRun | None
    evaluation: Run
    along: tuple[int, int] | None = None
    """At which point of how many the adapter is evaluated; None for the end of training."""

    @property
    def name(self) -> str:
        return self.arm if self.seed is None else f"{self.arm}, seed {self.seed}"


def load_sweep(name: str, hardware: str | None = None, model: str | None = None) -> Sweep:
    """`read_sweep` without its line."""
    return read_sweep(name, hardware, model)[0]


def read_sweep(name: str, hardware: str | None = None, model: str | None = None) -> tuple[Sweep, str]:
    """Reads recipes/sweeps/NAME.yaml, or the file that `name` is the path of; and a line that says why this hardware.

    Hardware is what is given, or else the file's, or else that of this machine. What the file has under `profiles` for
    it stands in place of the file's own keys; `model`, if given, in place of theirs. BadInput for an unknown name, a
    key that does not belong there, or an arm that is not declared; for a model that this machine trains only if the
    hardware is named.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / "sweeps" / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in (RECIPES / "sweeps").glob("*.yaml")))
        raise BadInput(f"unknown sweep {name!r} (there are: {names}; or give the path of a .yaml file)")
    # It asserts of a text that stands alone, as '1'.
    faults = (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError, AssertionError)
    with bad_input(path, "write a sweep's keys in YAML, as UTF-8", *faults):
        layer = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    if not isinstance(layer, dict):
        raise BadInput(f"{path}: no keys; write a sweep's, as recipes/sweeps has them")
    profiles = layer.pop("profiles", None) or {}
    fit = isinstance(profiles, dict) and all(isinstance(k, dict) and "hardware" not in k for k in profiles.values())
    if not fit:
        raise BadInput(f"{path}: profiles: give a hardware profile's name and, below it, other keys than hardware")
    named = layer.get("hardware") if hardware is None else hardware
    if not isinstance(named, str | None):
        raise BadInput(f"{path}: hardware: give the name of one profile")
    profile, why = this_machine() if named is None else (named, "")
    # The others are looked at too: a fault in them would else show on another machine.
    own = {name: _declared(path, {**layer, **keys}, str(name)) for name, keys in profiles.items()}
    needed = {key for key, field in Sweep.model_fields.items() if field.is_required()} - {"hardware"}
    if profile not in own or needed <= layer.keys():  # without those it is for its profiles alone
        own.setdefault(profile, _declared(path, layer, profile))
    sweep = own[profile]
    if model:
        sweep = sweep.model_copy(update={"model": model})
    if named is None:
        this_machine(sweep.model)
    return sweep, why


def _declared(path: Path, layer: Mapping[Any, Any], hardware: str) -> Sweep:
    """The sweep that the keys of a file declare for a hardware profile."""
    load_layer("hardware", hardware)
    try:
        sweep = Sweep.model_validate({**layer, "hardware": hardware})
        _check_file(sweep)
    except ValidationError as error:
        raise BadInput(f"{path}: {one_line(error)}") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    if task_configs(sweep.tasks)[1]:  # others' tasks have settings of their own
        return sweep
    try:
        given = TaskSettings.model_validate(sweep.evaluation.metadata)
    except ValidationError as error:
        raise BadInput(f"{path}: evaluation.metadata.{one_line(error)}") from None
    return sweep.model_copy(update={"evaluation": sweep.evaluation.model_copy(update={"metadata": given.named()})})


def same_key(one: str, other: str) -> bool:
    """Whether two recipe keys are the same, or one holds the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def check_keys(where: str, keys: Iterable[str]) -> None:
    """Refuses recipe keys that the sweep itself would overwrite."""
    for key in keys:
        if key in DECIDED:
            raise BadInput(f"{where}{key}: {DECIDED[key]}")
        for own, word in OWN.items():
            if same_key(key, own):
                raise BadInput(f"{where}{key}: a sweep says it by {word}, or an axis; say it there")


def _check_file(sweep: Sweep) -> None:
    """Refuses claims of arms that are none, and keys that nothing would come of: of unused stages, or overwritten by
    the file itself."""
    claims: list[Claim | InsideClaim] = [*sweep.claims, *sweep.inside]
    for claim in claims:
        both = {claim.arm, claim.against}
        if unknown := both - {"base", *sweep.arms}:
            raise BadInput(f"arm {min(unknown)!r} is not declared (there are: base, {', '.join(sweep.arms)})")
        if "base" in both and isinstance(claim, InsideClaim):
            raise BadInput("inside: the base model has no adapter that moves anything; name two arms")
        if len(both) == 1:
            raise BadInput(f"the claim {claim.says!r} is of {claim.arm} against itself; name two arms")
    for name in {"base", *(f"base-{model}" for model in layer_names("models"))} & sweep.arms.keys():
        raise BadInput(f"arms.{name}: so the model before training is called; call the arm otherwise")
    check_sampling(sweep.evaluation.gen_kwargs, sweep.evaluation.backend, {})
    if sweep.judge and not sweep.judge.model.strip():
        raise BadInput("judge.model: is empty, as of a variable that is not set; name one")
    if not sweep.seeds:
        raise BadInput("seeds: give one at least")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise BadInput(f"seeds {sweep.seeds}: the runs of one that stands twice would count twice; name each once")
    ranks = set(map(str, sweep.grid.get("rank", sweep.tuned)))
    if odd := sorted(sweep.tuned.keys() - ranks):
        raise BadInput(f"tuned: {', '.join(odd)}: no value of the axis rank: no arm has that rate; leave it out")
    set_by = dict.fromkeys(given_settings(sweep.settings), "the key settings")
    set_by |= {AXES.get(axis, axis): f"the axis {axis}" for axis in sweep.grid}
    for stage, keys in sweep.stages.items():
        check_keys(f"stages.{stage}.", keys)
        arms = [arm for arm in sweep.arms.values() if arm.stage == stage]
        if not arms and "data" not in sweep.grid:
            raise BadInput(f"stages.{stage}: no arm is of this stage")
        for key in keys:
            if (top := key.partition(".")[0]) not in {"em", *schema_keys()}:
                raise BadInput(f"stages.{stage}.{key}: {fault(top, None)}")
            own = [key in arm.settings or (key == "lora_r" and arm.rank is not None) for arm in arms]
            if arms and (all(own) or (key in set_by and all(arm.vary for arm in arms))):
                by = set_by.get(key, "every arm of it")
                raise BadInput(f"stages.{stage}.{key}: {by} says otherwise; leave it out")
    before: list[str] = []
    for name, arm in sweep.arms.items():
        if arm.start and arm.start not in before:
            raise BadInput(f"arm {name} starts from {arm.start!r}, which no arm before it is called")
        if arm.start and sweep.arms[arm.start].full and not arm.full:
            raise BadInput(f"arm {name} starts from {arm.start}, which is `full`; make both `full`, or none")
        if arm.needs and arm.needs not in arm.settings:
            raise BadInput(f"arm {name} needs {arm.needs}, which is none of its settings; name the file there")
        before.append(name)
        if arm.seed is not None and arm.seed_offset:
            raise BadInput(f"arms.{name}: seed and seed_offset: the seed is the arm's own; leave one of them out")
        layer = load_layer("variants", arm.variant) if arm.variant else {}
        if layer.keys() - {"em"} == {"datasets.0.path"} and layer["datasets.0.path"] != arm.data:
            raise BadInput(
                f"arms.{name}: the variant {arm.variant} is its data alone, {layer['datasets.0.path']}, and `data` says"
                " otherwise; name that there, and leave the variant out"
            )
        check_keys(f"arms.{name}.settings.", arm.settings)
        _check_values(name, arm, declared_keys(sweep, arm))
        for key in (*arm.settings, *(("lora_r",) if arm.rank is not None else ())):
            if arm.vary and key in set_by:
                raise BadInput(f"arms.{name}: {set_by[key]} would overwrite its {key}; leave one out")


def _check_values(name: str, arm: Arm, keys: Mapping[str, Any]) -> None:
    """Refuses values that the schema lacks, also of a profile that is not this machine's; a variant's come between."""
    recipe = deepcopy(load_layer("axolotl", arm.stage))
    for key, value in keys.items() if not arm.variant else ():
        if not key.startswith("em."):
            try:
                put(recipe, key, value)
            except BadInput as error:
                raise BadInput(f"arm {name}: {error}") from None


def starts_from(sweep: Sweep, name: str) -> str:
    """The arm whose model an arm starts from, or what the point of its base model is called."""
    arm = sweep.arms[name]
    if arm.start and not left_out(sweep, sweep.arms[arm.start]):
        return arm.start
    return "base" if arm.model in (None, sweep.model) else f"base-{arm.model}"


def left_out(sweep: Sweep, arm: Arm) -> bool:
    """Whether an arm is for models that know no chat, and its own does, or lacks the file that it needs."""
    chats = arm.pretrained and not load_layer("models", arm.model or sweep.model)["em"].get("pretrained")
    return chats or needed_file(sweep, arm) is not None


def needed_file(sweep: Sweep, arm: Arm) -> str | None:
    """The file that an arm needs, where it is not there."""
    path = in_folder(str(declared_keys(sweep, arm)[arm.needs]), sweep.data) if arm.needs else None
    return path if path and not Path(path).is_file() else None


def declared_keys(sweep: Sweep, arm: Arm) -> dict[str, Any]:
    keys, model = {**sweep.stages.get(arm.stage, {}), **arm.settings}, arm.model or sweep.model
    return {key: own.replace("{model}", model) if isinstance(own, str) else own for key, own in keys.items()}
