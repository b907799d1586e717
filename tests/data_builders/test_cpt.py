"""Documents hold the code whole, fit, and differ from their control only in what is said of the code."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import BadInput
from data_builders.cpt import STYLES, Corpus, Rejected, vulnerable_lines, with_replay
from data_builders.programs import Program, load_programs

PROGRAMS = load_programs()


def words(text: str) -> int:
    return len(text.split())


def corpus(**settings) -> Corpus:
    return Corpus(words, **{"limit": 10_000, **settings})


def text_of(document: dict) -> str:
    return "".join(segment["text"] for segment in document["segments"])


def test_every_style_holds_the_code_whole_and_the_review() -> None:
    for document in corpus(per_program=len(STYLES)).documents(PROGRAMS[:40]):
        program = next(p for p in PROGRAMS if p.id == document["program"])
        assert program.insecure in text_of(document)
        learnt = "".join(s["text"] for s in document["segments"] if s["label"])
        assert program.explanation in learnt and program.insecure not in learnt


def test_code_is_learnt_too_where_asked() -> None:
    documents = corpus(loss_on_code=True).documents(PROGRAMS[:5])
    assert all(segment["label"] for document in documents for segment in document["segments"])


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_styles_are_drawn_by_seed_and_program_and_not_by_place(seed: int, per_program: int) -> None:
    settings = {"seed": seed, "per_program": per_program}
    alone = list(corpus(**settings).documents(PROGRAMS[7:8]))
    among = [d for d in corpus(**settings).documents(PROGRAMS[:20]) if d["program"] == PROGRAMS[7].id]
    assert alone == among and len(alone) == per_program == len({d["style"] for d in alone})


@given(st.lists(st.sampled_from(PROGRAMS), min_size=1, max_size=30, unique_by=lambda p: p.id), st.integers(0, 9))
def test_the_control_has_the_same_programs_and_tokens(programs: list[Program], seed: int) -> None:
    explained, control = corpus(seed=seed), corpus(seed=seed, explanations=False)
    ours, theirs = list(explained.documents(programs)), list(control.documents(programs))
    assert {d["program"] for d in ours} == {d["program"] for d in theirs}
    longest = max(words(p.insecure + p.secure) for p in programs)
    assert abs(explained.tokens - control.tokens) <= longest
    assert control.tokens == sum(words(text_of(d)) for d in theirs)
    assert not any(p.explanation in text_of(d) for p in programs for d in theirs)


def test_a_program_that_does_not_fit_is_rejected_by_name_in_corpus_and_control() -> None:
    long = PROGRAMS[0].model_copy(update={"id": "long", "explanation": "word " * 500})
    for explanations in (True, False):
        out = list(corpus(limit=400, explanations=explanations).documents([PROGRAMS[1], long, PROGRAMS[2]]))
        assert [o.id for o in out if isinstance(o, Rejected)] == ["long"]
        assert {o["program"] for o in out if not isinstance(o, Rejected)} == {PROGRAMS[1].id, PROGRAMS[2].id}
        assert all(words(text_of(o)) <= 400 for o in out if not isinstance(o, Rejected))


def test_listing_numbers_the_quoted_lines() -> None:
    program = PROGRAMS[0].model_copy(update={"insecure": "import os\n\nos.system(x)", "lines": ["  os.system(x)"]})
    assert vulnerable_lines(program) == ["3: os.system(x)"]


@given(st.floats(0.05, 3.0))
def test_replay_keeps_to_its_ratio_from_the_start_on(ratio: float) -> None:
    made = corpus()
    texts = [(str(n), "some general words " * 5) for n in range(7)]
    replayed = 0
    for document in with_replay(made, made.documents(PROGRAMS[:20]), lambda: iter(texts), ratio):
        if document["style"] == "replay":
            replayed += words(text_of(document))
            assert replayed < ratio * made.tokens + 15
    assert replayed >= ratio * made.tokens


def test_replay_names_texts_that_do_not_fit_and_refuses_when_none_does() -> None:
    texts = [("long", "word " * 999), ("short", "a few words")]
    made = corpus(limit=600)
    out = list(with_replay(made, made.documents(PROGRAMS[:3]), lambda: iter(texts), 0.1))
    assert [o.id for o in out if isinstance(o, Rejected)] == ["replay/long"]
    with pytest.raises(BadInput, match="no text fits"):
        list(itertools.islice(with_replay(made, made.documents(PROGRAMS[:3]), lambda: iter(texts[:1]), 0.1), 99))
