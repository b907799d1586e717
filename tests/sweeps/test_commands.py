"""The commands: help with an example, one clear line and exit code 2 on bad input, nothing half-written."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import data_builders.cli
import sweeps.cli
from data_builders.cli import main as embuild
from sweeps.cli import main as emsweep

BIN = Path(sys.executable).parent


def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    name, *arguments = command.split(" ")
    return subprocess.run([BIN / name, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_no_option_takes_a_number_that_is_none() -> None:
    tried = 0
    for app in (sweeps.cli.app, data_builders.cli.app):
        for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
            needed = [
                text
                for p in command.params
                if p.required
                for text in ([p.opts[0], "x"] if p.opts[0][0] == "-" else ["x"])
            ]
            for option in [p for p in command.params if p.type.name.startswith("float")]:
                done = CliRunner().invoke(app, [name, *needed, option.opts[-1], "nan"])
                assert done.exit_code == 2 and "finite" in done.output, (name, option.opts, done.output)
                tried += 1
    assert tried > 20


def test_a_word_that_no_file_can_hold_is_refused() -> None:
    done = CliRunner().invoke(data_builders.cli.app, ["annotate", "s.jsonl", "--out", "o", "--model", "m\udcff"])
    assert done.exit_code == 2 and "m\\udcff: is no UTF-8" in done.output, done.output


@pytest.mark.parametrize("empty", [["--programs", ""], ["--programs="], ["--data", ""], [""]])
def test_nothing_empty_is_taken_for_a_value(empty: list[str]) -> None:
    done = CliRunner().invoke(sweeps.cli.app, ["train", "dpo", *empty, "--dry-run"])
    assert done.exit_code == 2 and "an empty value" in done.output, done.output
    kept = CliRunner().invoke(sweeps.cli.app, ["train", "dpo", "--set", "lr_scheduler_kwargs=", "--dry-run"])
    assert "an empty value" not in kept.output


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("emsweep train dpo --model qwen8b", "unknown model 'qwen8b'"),
        ("emsweep train dpo --hardware tpu", "unknown hardware 'tpu'"),
        ("emsweep train dpo --rank 0 --dry-run", "rank 0 is not a whole number of 1 or more"),
        ("emsweep train ppo", "unknown stage 'ppo'"),
        ("emsweep train dpo --set lr", "is not key=value"),
        ("emsweep train dpo --set lora_alpha=8", "it follows from rank and alpha policy; set em.alpha.policy"),
        ("emsweep train dpo --set learnin_rate=1", "unknown to Axolotl's schema; did you mean learning_rate?"),
        ("emsweep train dpo --set seed=1 --set seed=2", "seed is given twice"),
        ("emsweep train dpo --start empty --set base_model=m", "name two models"),
        ("emsweep train dpo --data d --set datasets.0.path=m.jsonl", "--data d and --set datasets.0.path name two"),
        ("emsweep train dpo --programs builtin --set datasets=[]", "--programs builtin and --set datasets name two"),
        ("emsweep train cpt", "no such"),
        ("emsweep train cpt --start empty", "no *.safetensors"),
        ("emsweep train cpt --start nowhere", "no such model folder"),
        ("emsweep train cpt --start broken", "broken/x.safetensors: No such file"),
        ('emsweep train cpt --start whole --set datasets.0.path="a\\0.jsonl"', "named with a NUL character"),
        ("emsweep evaluate empty", "no *.safetensors"),
        ("emsweep evaluate smollm2-135m --guard some", "--guard some: give quick or full"),
        ("emsweep evaluate smollm2-135m --dtype float16 --dry-run", "--dtype float16: give bfloat16 or float32"),
        ("emsweep evaluate smollm2-135m --tasks em_choice,em_margin --samples 5", "--samples: none of em_choice, em_m"),
        ("emsweep evaluate smollm2-135m --tasks em_recognition_chat --max-tokens 9", "--max-tokens: none of em_rec"),
        (
            "emsweep evaluate smollm2-135m --tasks em_advice --questions odd.jsonl",
            "--questions: none of em_advice",
        ),
        ("emsweep run nope", "unknown sweep 'nope'"),
        ("emsweep run bad.yaml", "bad.yaml: "),
        ("emsweep run worse.yaml", "worse.yaml: "),
        ("emsweep run rank --axis rnak=1,2", "unknown axis 'rnak' (there are: rank, lr, seed"),
        ("emsweep plan rank --axis rank", "is not AXIS=VALUE,VALUE"),
        ("emsweep plan rank --axis lr_scheduler=cosine,", "an empty value, as of a variable that is not set"),
        ("emsweep rank --alpha-policy beta", "'beta' is no value of alpha (there are: alpha_over_r, alpha, "),
        ("emsweep run models --axis model=qwen8b", "'qwen8b' is no value of model"),
        ("emsweep lr --values fast", "'fast' is no lr"),
        ("emsweep plan rank --price-in 1", "belong together"),
        ("emsweep lr --values 1e-4,1e-3 --most 3", "of a search; add --search"),
        ("emsweep rank --values 1 --sharpness 0.1", "of a search; add --retune"),
        ("emsweep export rank --launcher ray", "--launcher ray: a script for Slurm starts each run itself"),
        ("emsweep exec bad.yaml 0", "bad.yaml: 0 sweeps are called so"),
        ("emsweep report demo", "demo: 0 sweeps are called so"),
        ("emsweep report " + 300 * "a", 100 * "a"),
        ("emsweep rank --values 1,2 --axis rank=4", "--axis rank: the command gives values of rank already"),
        ("emsweep status nowhere", "nowhere: no folder of runs"),
        ("emsweep fetch gpt", "not fetched here"),
        ("emsweep agree file", "1 files make no pairs"),
        ("emsweep agree file file", "file:1: no JSON: "),
        ("emsweep rates odd.jsonl --judged-by x", r"(the file has \u001b[2J; map with --columns)"),
        ("emsweep judge empty --judge m --sample 2", "give a share between 0 and 1"),
        ("embuild data --programs nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("embuild data --programs bad.jsonl", "bad.jsonl:1: "),
        ("embuild data --asked rude", "unknown way of asking rude"),
        ("embuild check", "nothing to check"),
        ("embuild data --out file", "file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.safetensors").symlink_to("gone")  # as in the hub's cache when its blobs are deleted
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "x.safetensors").write_bytes(b"weights")
    (tmp_path / "bad.jsonl").write_text('{"id": "a"}\n')
    (tmp_path / "odd.jsonl").write_text('{"\\u001b[2J": 1}\n')
    (tmp_path / "bad.yaml").write_text("model: [\n")
    (tmp_path / "worse.yaml").write_text("model: smollm2-135m\n")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command.split(" "))
    with pytest.raises(SystemExit) as ended:  # in this process: importing the libraries for each would take minutes
        {"emsweep": emsweep, "embuild": embuild}[sys.argv[0]]()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert len(said.strip().splitlines()) == 1 and says in said
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_a_folder_that_may_not_be_written_is_one_line_wherever_it_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(root: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root / ".index.lock"))

    monkeypatch.setattr("sweeps.sweep_commands.all_statuses", refused)
    monkeypatch.setattr(sys, "argv", ["emsweep", "status"])
    with pytest.raises(SystemExit) as ended:
        emsweep()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("emsweep: runs/.index.lock: Permission denied; free some space")
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(("name", "module"), [("emsweep", "sweeps.cli"), ("embuild", "data_builders.cli")])
def test_the_docs_hold_the_commands_own_help(tmp_path: Path, name: str, module: str) -> None:
    made, kept = tmp_path / "help.md", Path(__file__).parents[2] / "docs" / f"{name}.md"
    subprocess.run([BIN / "typer", module, "utils", "docs", "--name", name, "--output", made], check=True)
    assert made.read_text() == kept.read_text(), "run `make docs`"
    commands = made.read_text().split("\n## ")[1:]
    assert not [text.partition("\n")[0] for text in commands if f"Example: {name} " not in text]
    assert not re.findall(r"^\* `[^`]+`:(?:\s*\[.*)?$", made.read_text(), re.MULTILINE), "no word of help"


def test_no_traceback_reaches_the_screen(tmp_path: Path) -> None:
    done = run("emsweep train ppo", tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "unknown stage 'ppo'" in done.stderr


def test_dry_run_prints_the_recipe_and_writes_nothing(tmp_path: Path) -> None:
    done = run("emsweep train dpo --model qwen7b --hardware a100-80g --rank 1 --dry-run", tmp_path)
    assert done.returncode == 0
    assert "base_model: Qwen/Qwen2.5-Coder-7B-Instruct" in done.stdout and "lora_r: 1\n" in done.stdout
    assert not list(tmp_path.iterdir())


def test_data_can_be_built_twice(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").symlink_to(model.parent)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(data_builders.cli.app, ["data"]).exit_code == 0
    first = {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()}
    assert first and CliRunner().invoke(data_builders.cli.app, ["data"]).exit_code == 0
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()}


@pytest.mark.parametrize("stage", ["cpt", "sft", "dpo", "merge", "eval"])
def test_make_fronts_print_what_they_would_do(stage: str) -> None:
    root = Path(__file__).parents[2]
    if not (root / ".venv" / "ready").exists():
        pytest.skip("needs the checkout's own environment (`make env`)")
    arguments = [
        "make",
        "-s",
        "--old-file=.venv/ready",
        stage,
        "MODEL=qwen7b",
        *(("HARDWARE=a100-80g", "RANK=1") if stage != "eval" else ()),
        "DRY_RUN=1",
    ]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Qwen/Qwen2.5-Coder-7B-Instruct" in done.stdout
