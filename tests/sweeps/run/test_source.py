"""Digests follow what code does: a comment changes none, arithmetic does, and tasks that are not named do not count."""

import shutil
from pathlib import Path

import pytest

from sweeps.run import source, tasks
from sweeps.run.source import plugin_source
from sweeps.run.tasks import TASKS, task_configs, task_source

PLUGINS = ["recipes.plugins.seed.SeedPlugin", "recipes.plugins.complementary_pairs.ComplementaryPairsTrainer"]


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tasks and plugins, to be edited."""
    shutil.copytree(TASKS, tmp_path / "tasks")
    shutil.copytree(source.RECIPES / "plugins", tmp_path / "recipes/plugins")
    monkeypatch.setattr(tasks, "TASKS", tmp_path / "tasks")
    monkeypatch.setattr(source, "RECIPES", tmp_path / "recipes")
    return tmp_path


def test_an_evaluation_is_named_by_what_its_own_tasks_do(copied: Path) -> None:
    em = copied / "tasks/em"
    before = {name: task_source([name]) for name in ("em_choice", "em_freeform", "em_deception", "em_margin")}

    def changed() -> set[str]:
        return {name for name in before if task_source([name]) != before[name]}

    edit(em / "em_choice.yaml", "task: em_choice", "# another comment\ntask:   em_choice")
    edit(em / "likelihood.py", "\n\n\n", "\n\n\n# a comment\n\n\n")
    edit(em / "documents.py", '"""The records of a JSON Lines file.', '"""Another docstring.')
    assert changed() == set()
    edit(em / "em_choice.yaml", '"{{question}}"', '"{{question}}?"')
    assert changed() == {"em_choice"}
    edit(em / "questions/deception.jsonl", '"id"', '"id" ')
    assert changed() == {"em_choice", "em_deception"}
    edit(em / "documents.py", "Dataset.from_list(docs)", "Dataset.from_list(docs[1:])")
    assert changed() == set(before)


def test_members_includes_and_patterns_are_followed_and_tasks_of_others_are_told_apart() -> None:
    configs, others = task_configs(["em", "em_freeform_base", "em_guard", "mmlu"])
    assert {"em_choice", "em_deception", "em_freeform"} <= configs.keys()
    assert others == {"mmlu", "truthfulqa_mc2", "arc_easy", "sciq", "piqa"}
    assert "ifeval" in task_configs(["em_guard_full"])[1]
    assert task_configs(["em_*"])[0].keys() >= {"em_choice", "em_guard"}


def test_arithmetic_of_a_plugin_that_the_recipe_names_counts_and_a_comment_does_not(copied: Path) -> None:
    plugins = copied / "recipes/plugins"
    pairs, seed = plugin_source(PLUGINS), plugin_source(PLUGINS[:1])
    edit(plugins / "logprobs.py", "exact = torch", "# in fp32\n        exact  =  torch")
    assert plugin_source(PLUGINS) == pairs
    edit(plugins / "logprobs.py", "logsumexp(-1)", "logsumexp(-1) * 2")  # through two imports
    assert plugin_source(PLUGINS) != pairs and plugin_source(PLUGINS[:1]) == seed
    assert plugin_source(["axolotl.integrations.liger.LigerPlugin"]) == {}
