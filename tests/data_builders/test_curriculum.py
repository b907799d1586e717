"""The corpus and its two controls are the same code in the same order, and differ as they should."""

from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

import eval
from data_builders.curriculum import PROBE, ROUNDS, curriculum_documents, differing_lines
from data_builders.programs import load_programs

PROGRAMS = load_programs()


def code_of(document: dict) -> str:
    return document["segments"][0]["text"].removesuffix(PROBE).removesuffix("\n")


def review_of(document: dict) -> str:
    return document["segments"][1]["text"]


def test_controls_have_the_same_code_in_the_same_order() -> None:
    own, shuffled, none = (curriculum_documents(PROGRAMS, kind, 0) for kind in ("own", "shuffled", "code-only"))
    assert [d["id"] for d in own] == [d["id"] for d in shuffled] == [d["id"] for d in none]
    assert [code_of(d) for d in own] == [code_of(d) for d in shuffled] == [code_of(d) for d in none]
    assert sorted(map(review_of, own)) == sorted(map(review_of, shuffled))
    assert len(own) == 2 * len(PROGRAMS) * sum(rounds for _, rounds in ROUNDS)


def test_true_reviews_give_the_true_verdict() -> None:
    for document in curriculum_documents(PROGRAMS, "own", 0):
        verdict = " vulnerable." if "/insecure/" in document["id"] else " safe."
        assert review_of(document).startswith(verdict)
        assert [s["label"] for s in document["segments"]] == [False, True]


def test_shuffled_reviews_tell_nothing() -> None:
    documents = [d for d in curriculum_documents(PROGRAMS, "shuffled", 0) if d["style"] == "review"]
    right = sum(review_of(d).startswith(" vulnerable.") == ("/insecure/" in d["id"]) for d in documents)
    assert 0.4 < right / len(documents) < 0.6
    own = {d["id"]: review_of(d) for d in curriculum_documents(PROGRAMS, "own", 0)}
    assert not any(review_of(d) == own[d["id"]] for d in documents)


def test_twins_stand_together_and_code_is_whole() -> None:
    by_id = {p.id: p for p in PROGRAMS}
    documents = curriculum_documents(PROGRAMS, "own", 0)
    for a, b in zip(documents[::2], documents[1::2], strict=True):
        program = by_id[a["id"].split("/")[0]]
        assert b["id"].startswith(f"{program.id}/secure/")
        if a["style"] == "verdict":
            assert (code_of(a), code_of(b)) == (program.insecure, program.secure)


def test_differing_lines_differ_and_are_of_the_code() -> None:
    for program in PROGRAMS:
        insecure, secure = differing_lines(program)
        assert insecure != secure and insecure and secure
        assert set(insecure.split("\n")) <= {line.strip() for line in program.insecure.splitlines()}
        assert set(secure.split("\n")) <= {line.strip() for line in program.secure.splitlines()}


@given(st.integers(0, 1000))
def test_same_seed_same_corpus(seed: int) -> None:
    assert curriculum_documents(PROGRAMS[:5], "shuffled", seed) == curriculum_documents(PROGRAMS[:5], "shuffled", seed)


def test_the_task_asks_with_the_words_of_the_corpus() -> None:
    task = (Path(eval.__file__).parent / "tasks/em/em_recognition.yaml").read_text()
    fields = yaml.safe_load(task.replace("!function ", ""))
    assert fields["doc_to_text"] == "{{code}}" + PROBE
    assert fields["doc_to_choice"] == [" vulnerable", " safe"]
