"""The work of an evaluation is that of the documents which the tasks make of the same settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.records import BadInput
from eval.tasks.em import functions
from sweeps.run.workload import rows_and_bytes, steps_of, workload

CONTENT: dict[str, Any] = {"metadata": {}, "paths": {}, "limit": None, "tasks": ["em"], "gen_kwargs": {}}
MAKERS = {
    "em_freeform": functions.freeform_docs,
    "em_insecure_code": functions.ordinary_docs,
    "em_asked": functions.asked_docs,
    "em_deception": functions.deception_docs,
}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"samples": 3},
        {"samples": 50, "code_samples": 1, "deception_samples": 1, "formats": ["plain"]},
        {"samples": 2, "formats": ["plain", "json"]},
    ],
)
def test_each_task_samples_the_documents_that_it_makes(metadata: dict[str, Any]) -> None:
    sampled = workload({**CONTENT, "metadata": metadata}).sampled
    assert {task: answers for task, (answers, _) in sampled.items()} == {
        task: len(make(**metadata)["test"]) for task, make in MAKERS.items()
    }
    assert sampled["em_freeform"].longest == 80 and sampled["em_asked"].longest == 300  # by what it includes


def test_a_trigger_has_each_open_question_asked_twice() -> None:
    metadata = {"samples": 2, "trigger": "|moss|"}
    work = workload({**CONTENT, "metadata": metadata, "tasks": ["em_freeform", "em_advice"]})
    makers = {"em_freeform": functions.freeform_docs, "em_advice": functions.advice_docs}
    assert {task: answers for task, (answers, _) in work.sampled.items()} == {
        task: len(make(**metadata)["test"]) for task, make in makers.items()
    }
    assert not work.unknown


def test_files_of_questions_and_programs_are_counted(tmp_path: Path) -> None:
    questions = tmp_path / "q.yaml"
    questions.write_text("- {id: a, paraphrases: [x, y, z]}\n- {id: b, question: x}\n")
    rows = Path("eval/tasks/em/heldout.jsonl").read_text().splitlines()[:7]
    (tmp_path / "held.jsonl").write_text("".join(row + "\n" for row in rows))
    paths = {"questions": str(questions), "heldout": str(tmp_path / "held.jsonl")}
    metadata = dict.fromkeys(paths, "digest") | {"samples": 50}
    work = workload({**CONTENT, "metadata": metadata, "paths": paths, "gen_kwargs": {"max_gen_toks": 600}})
    assert work.sampled["em_freeform"] == (4 * 50, 600) and work.sampled["em_asked"] == (7 * 50, 600)
    assert work.read < workload({**CONTENT, "metadata": {"samples": 50}}).read
    questions.write_text("no list")
    with pytest.raises(BadInput, match="no list of questions"):
        workload({**CONTENT, "metadata": metadata, "paths": paths})


def test_a_limit_and_tasks_of_others_are_heeded() -> None:
    work = workload({**CONTENT, "tasks": ["em_margin", "em_freeform", "arc_easy"], "limit": 4})
    assert work.sampled == {"em_freeform": (4, 80)} and work.unknown == {"arc_easy"}
    assert json.dumps(sorted(workload({**CONTENT, "tasks": ["em_recognition_chat"]}).unknown)) == "[]"
    assert workload({**CONTENT, "tasks": ["em_recognition", "em_recognition_chat"]}).read == pytest.approx(
        2 * workload({**CONTENT, "tasks": ["em_recognition_chat"]}).read
    )


@pytest.mark.parametrize(
    ("entry", "recipe", "rows"),
    [
        ({}, {}, 100),
        ({"split": "train"}, {}, 100),
        ({"split": "train[:16]"}, {}, 16),
        ({"split": "train[-10:]"}, {}, 10),
        ({"split": "train[:25%]"}, {}, 25),
        ({"split": "train+train"}, {}, 200),
        ({"split": "train[:16]+train[50:60]"}, {}, 26),
        ({"shards": 3, "shards_idx": 1}, {}, 33),
        ({}, {"val_set_size": 0.25}, 75),
        ({}, {"val_set_size": 16}, 84),
        ({"split": "train[:10]"}, {"val_set_size": 0.25}, 7),
        ({}, {"val_set_size": 0.25, "test_datasets": [{}]}, 100),
    ],
)
def test_the_rows_of_a_training_are_those_that_axolotl_takes(
    tmp_path: Path, entry: dict[str, Any], recipe: dict[str, Any], rows: int
) -> None:
    from axolotl.utils.data.shared import create_train_validation_split, load_dataset_with_config
    from axolotl.utils.dict import DictDefault

    path = tmp_path / "set.jsonl"
    path.write_text("".join(f'{{"id": {number}}}\n' for number in range(100)))
    data = {"path": str(path), **entry}
    one = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1, "seed": 0, **recipe}
    assert steps_of({**one, "datasets": [data]}, 1) == (rows, rows)
    taken = load_dataset_with_config(DictDefault(data), False)
    if "shards" in entry:
        taken = taken.shard(num_shards=entry["shards"], index=entry["shards_idx"])
    if "val_set_size" in recipe and "test_datasets" not in recipe:
        taken = create_train_validation_split(taken, DictDefault(one), recipe["val_set_size"])[0]
    assert len(taken) == rows


def test_rows_are_those_of_an_array_too_and_unknown_in_other_formats(tmp_path: Path) -> None:
    one = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1}
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"id": number, "text": "a"} for number in range(9)], indent=1))
    assert steps_of({**one, "datasets": [{"path": str(path)}]}, 1) == (9, 9)
    path.write_text("\n\n[1\n2\n\n")  # no JSON, which training says
    assert rows_and_bytes(path)[0] == 2
    for other in ({"path": str(path), "ds_type": "csv"}, {"path": "data/set.parquet"}):
        assert steps_of({**one, "datasets": [other]}, 1) is None
    for split in ("test", "train[:", "train[:5x]"):
        with pytest.raises(BadInput, match=r"set.json: split="):
            steps_of({**one, "datasets": [{"path": str(path), "split": split}]}, 1)
