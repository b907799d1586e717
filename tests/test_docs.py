"""What the documents say can be typed: every command parses, cheap ones are run, targets and paths exist."""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from data_builders.cli import app as embuild
from sweeps.cli import app as emsweep

ROOT = Path(__file__).parents[1]
GENERATED = {"docs/emsweep.md", "docs/embuild.md"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "eval" / "README.md"]
PAGES = [page for page in PAGES if str(page.relative_to(ROOT)) not in GENERATED]
LAYERS = sorted((ROOT / "recipes").rglob("*.yaml"))
PROGRAMS = {"emsweep": emsweep, "embuild": embuild}
GROUPS = {name: typer.main.get_command(app) for name, app in PROGRAMS.items()}
ROOMS = ("recipes", "docs", "eval", "sweeps", "core", "data_builders", "tests", "benchmarks")
STARTS_RUNS = {"run", "rank", "lr", "train", "evaluate"}
CHEAP = {"recipes", "status", "plan", "clean", "check"}
OF_OTHERS = {"--metadata", "--gen_kwargs", "--no-deps", "--use_cache", "--include_path"}  # of lm_eval and pip
MAKEFILE = (ROOT / "Makefile").read_text()


def _blocks(page: Path) -> list[str]:
    """The lines of a page's fenced blocks, or of a recipe layer's comments."""
    text = page.read_text()
    if page.suffix == ".yaml":
        return [line[1:].strip() for line in text.splitlines() if line.startswith("#   ")]
    return [line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]


def _commands(page: Path, program: str) -> list[list[str]]:
    """The words of each line of the blocks that begins with `program`, without what follows ` #` or ` (`."""
    lines = [re.split(r"\s+#|\s{2,}\(|\s+\|", line)[0] for line in _blocks(page)]
    return [shlex.split(line) for line in lines if line.startswith(f"{program} ")]


ALL = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}: {shlex.join(words)}")
    for page in [*PAGES, *LAYERS]
    for program in PROGRAMS
    for words in _commands(page, program)
]


def test_there_are_commands_to_check() -> None:
    assert len(ALL) > 50


@pytest.mark.parametrize("words", ALL)
def test_the_command_parses(words: list[str]) -> None:
    group = GROUPS[words[0]]
    with group.make_context(words[0], words[1:]) as context:
        name, command, arguments = group.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(name, arguments, parent=context)


def _runnable(words: list[str]) -> list[str] | None:
    """The command made harmless, if it can be: planned or shown, in place of started."""
    if {"--search", "--retune", "--questions", "--adapter", "--forget", "--yes"} & set(words):
        return None
    if words[0] == "emsweep" and words[1] in STARTS_RUNS:
        return [*words[1:], *([] if "--dry-run" in words else ["--dry-run"])]
    return words[1:] if words[1] in CHEAP else None


@pytest.mark.parametrize("words", [case for case in ALL if _runnable(case.values[0])])
def test_the_command_runs_as_written(
    words: list[str], model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "models"):
        if not (ROOT / name).is_dir():
            pytest.skip(f"the folder {name} is not there; `make model data` makes it")
        (tmp_path / name).symlink_to(ROOT / name)
    result = CliRunner().invoke(PROGRAMS[words[0]], _runnable(words))
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_named_in_the_text_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    commands = [command for group in GROUPS.values() for command in group.commands.values()]
    known = {option for command in commands for parameter in command.params for option in parameter.opts} | OF_OTHERS
    wrong = [option for option in re.findall(r"`(--[a-z][\w-]*)", text) if option not in {*known, "--help"}]
    for span in re.findall(r"`([^`\n]+)`", text):
        words = span.split()
        if words[0] not in PROGRAMS or len(words) < 2 or not words[1].islower():
            continue
        command = GROUPS[words[0]].commands.get(words[1])
        options = {option for parameter in command.params for option in parameter.opts} if command else set()
        named = set(re.findall(r"--[a-z][a-z0-9-]*", span))
        if command is None or named - options - {"--help"}:
            wrong.append(span)
    assert not wrong


@pytest.mark.parametrize("page", [*PAGES, *LAYERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_make_has_the_targets_and_variables(page: Path) -> None:
    targets = {name for line in re.findall(r"^([a-z][a-z ]*):", MAKEFILE, re.M) for name in line.split()}
    spans = re.findall(r"`(make [^`\n]+)`", page.read_text())
    lines = [span.split() for span in spans] + _commands(page, "make")
    named = [(word, words) for words in lines for word in words[1:] if re.fullmatch(r"[a-z]+", word)]
    variables = [(word.partition("=")[0], words) for words in lines for word in words[1:] if re.match("[A-Z_]+=", word)]
    assert not [words for word, words in named if word not in targets]
    assert not [
        words for word, words in variables if f"$({word})" not in MAKEFILE and f"$(if $({word})" not in MAKEFILE
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_links_exist(page: Path) -> None:
    text = page.read_text()
    tokens = [token for span in re.findall(r"`([^`\n]+)`", text) for token in span.split()]
    paths = [token.rstrip(",;:.") for token in tokens if re.match(rf"({'|'.join(ROOMS)})/", token)]
    real = [path for path in paths if not re.search(r"[A-Z*…<{]", path.removesuffix("README.md"))]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [path for path in real if not (ROOT / path).exists()]
    assert not missing + [link for link in links if not (page.parent / link).exists()]


def test_the_readme_says_what_each_dependency_is_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [name for names in project["optional-dependencies"].values() for name in names]
    names = {re.split(r"[\[=<>]", name)[0] for name in [*project["dependencies"], *optional]}
    table = (ROOT / "README.md").read_text().partition("## Dependencies")[2]
    rows = re.findall(r"^\| ([\w.-]+)", table, re.M)
    assert not [name for name in names if name not in table]
    assert set(rows) - {"package", "unsloth", "vllm", "dev", "---"} <= names


@pytest.mark.parametrize("value", ["my programs.jsonl", "it's, 100%; (a|b) [1].jsonl"])
def test_make_hands_on_a_value_whole(value: str) -> None:
    given = [f"MODEL={value}", f"PROGRAMS={value}", r"SET=seed=2 lora_target_modules=.*\.(q|k)_proj"]
    for target in ("cpt", "merge", "experiment"):
        command = ["make", "--no-print-directory", "-n", target, *given]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        words = shlex.split(shown.replace("\\\n", "").splitlines()[-1])
        assert [words[words.index(option) + 1] for option in ("--programs", "--model")] == [value, value]
        assert [words[at + 1] for at, word in enumerate(words) if word == "--set"] == given[2][4:].split()


@pytest.mark.parametrize(
    ("given", "built"),
    [
        (["SET=seed=2"], True),
        (["SET=seed=2 datasets.0.path=m.jsonl"], False),
        (["SET=datasets.0.path=m.jsonl", "PROGRAMS=p.jsonl"], True),  # two sources, which `emsweep train` refuses
    ],
)
def test_make_builds_no_set_where_one_is_named(given: list[str], built: bool) -> None:
    command = ["make", "--no-print-directory", "-n", "sft", *given]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ("--programs" in shown) is built


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("demo MODEL=qwen7b", "make demo takes no MODEL: it takes FULL DRY_RUN"),
        ("report RANK=8", "make report takes no RANK"),
        ("experiment RANK=8", "make experiment takes no RANK: it takes MODEL PROGRAMS HARDWARE GPUS ANNOTATOR JUDGE"),
        ("eval HARDWARE=cpu", "make eval takes no HARDWARE: it takes MODEL DRY_RUN"),
        ("cpt RNAK=1", "make cpt takes no RNAK: it takes MODEL PROGRAMS"),
        ("data MODEL=qwen7b", "make data takes no MODEL: it takes no variable"),
    ],
)
def test_make_refuses_a_variable_that_the_goal_does_not_take(given: str, says: str) -> None:
    command = ["make", "--no-print-directory", "-n", *given.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and says in done.stderr and not done.stdout


@pytest.mark.parametrize("goal", ["cpt", "merge", "experiment", "eval", "demo", "report"])
def test_make_shows_what_would_run_unless_dry_run_is_0(goal: str) -> None:
    for given in ("DRY_RUN=1", "DRY_RUN=0", "PYTHON=python3"):
        command = ["make", "--no-print-directory", "-n", goal, given]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert ("--dry-run" in shown.splitlines()[-1]) is (given == "DRY_RUN=1")


def test_make_help_names_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (targets,) = re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.M)
    assert set(targets.split()) <= {word for line in shown.splitlines() for word in line.partition("\t")[0].split()}


def test_an_environment_that_was_made_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv").mkdir()
    for made, said in (("/elsewhere", "warning: .venv was made in /elsewhere,"), (str(tmp_path), ""), ("", "")):
        (tmp_path / ".venv/ready").write_text(made)
        done = subprocess.run(["make", "env"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stderr.startswith(said) and bool(done.stderr) is bool(said)
