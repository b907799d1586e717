"""Documents hold the code whole and fit; a corpus and its controls differ in what is said of the code alone."""

import itertools
import json
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import eval
from core.records import BadInput
from data_builders.cpt import (
    CURRICULUM,
    STYLES,
    Control,
    Corpus,
    Document,
    Rejected,
    differing_lines,
    vulnerable_lines,
    with_replay,
)
from data_builders.domains import load_domain
from data_builders.programs import load_programs
from eval.tasks.em.likelihood import CODE as ASKED_OF_CODE

PROGRAMS = load_programs()
PROBE = load_domain().probe
BY_ID = {p.id: p for p in PROGRAMS}
EACH_STYLE = [STYLES, ("contrastive",)]


def words(text: str) -> int:
    return len(text.split())


def corpus(**settings) -> Corpus:
    return Corpus(words, **{"limit": 10_000, **settings})


def documents(programs, **settings) -> list[Document]:
    return [d for d in corpus(**settings).documents(programs) if isinstance(d, Document)]


def whole(document: Document) -> str:
    return "".join(text for part in document.parts for text in part)


def said(document: Document) -> list[str]:
    return [text for _, text in document.parts]


def loss_tokens(found: list[Document], **settings) -> int:
    return sum(corpus(**settings).learnt(d, words) for d in found)


def test_every_style_holds_the_code_whole_and_the_review() -> None:
    for document in documents(PROGRAMS[:40], per_program=len(STYLES)):
        program = BY_ID[document.program]
        assert program.insecure in whole(document)
        assert program.explanation in "".join(said(document)) and program.insecure not in "".join(said(document))


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_styles_are_drawn_by_seed_and_program_and_not_by_place(seed: int, per_program: int) -> None:
    settings = {"seed": seed, "per_program": per_program}
    alone = documents(PROGRAMS[7:8], **settings)
    among = [d for d in documents(PROGRAMS[:20], **settings) if d.program == PROGRAMS[7].id]
    assert {d.id for d in alone} == {d.id for d in among} and len(alone) == per_program == len({d.style for d in alone})


@pytest.mark.parametrize("styles", EACH_STYLE, ids=["drawn", "contrastive"])
@pytest.mark.parametrize("loss_on_code", [False, True])
@given(data=st.data())
def test_controls_have_the_same_documents_and_as_many_tokens_to_learn(styles, loss_on_code: bool, data) -> None:
    chosen = st.lists(st.sampled_from(PROGRAMS), min_size=12, max_size=40, unique_by=lambda p: p.id)
    programs, seed = data.draw(chosen), data.draw(st.integers(0, 9))
    settings = {"styles": styles, "per_program": 4, "seed": seed, "loss_on_code": loss_on_code}
    own, shuffled, bare = (documents(programs, control=c, **settings) for c in get_args(Control))
    # Step for step the same programs, in as many documents.
    assert [d.id for d in own] == [d.id for d in shuffled] == [d.id for d in bare]
    assert [[code for code, _ in d.parts] for d in own] == [[code for code, _ in d.parts] for d in shuffled]
    assert Counter(itertools.chain(*map(said, own))) == Counter(itertools.chain(*map(said, shuffled)))
    owed = loss_tokens(own, loss_on_code=loss_on_code)
    assert loss_tokens(shuffled, loss_on_code=loss_on_code) == owed
    # A cut within a word counts on both sides.
    assert abs(loss_tokens(bare, control="code-only", loss_on_code=loss_on_code) - owed) <= 0.01 * owed + 2
    assert not any(p.explanation in whole(d) or p.fix in whole(d) for p in programs for d in bare)
    assert all(len(text) > 0 for d in bare for text in said(d)), "every document has something to learn"
    for document in bare:
        program = BY_ID[document.program]
        assert document.style == "line" or any(c in whole(document) for c in (program.insecure, program.secure))


def test_batches_hold_as_many_programs_as_chance_and_classes_are_mixed() -> None:
    """In file order a program's documents follow each other, and so do those of a class."""
    for control in get_args(Control):
        found = documents(PROGRAMS, control=control)
        batches = [found[place : place + 8] for place in range(0, len(found), 8)]
        assert sum(len({d.program for d in batch}) for batch in batches) / len(batches) > 7.5
        assert sum(len({d.cwe for d in batch}) for batch in batches) / len(batches) > 5
    assert documents(PROGRAMS[:9], seed=3) == documents(PROGRAMS[:9], seed=3) != documents(PROGRAMS[:9], seed=4)


def test_another_seed_puts_the_same_documents_in_another_order() -> None:
    one, other = ([d.id for d in documents(PROGRAMS[:20], per_program=len(STYLES), seed=seed)] for seed in (3, 4))
    assert sorted(one) == sorted(other) and one != other


@pytest.mark.parametrize("styles", EACH_STYLE, ids=["drawn", "contrastive"])
def test_shuffled_reviews_tell_nothing(styles) -> None:
    settings = {"styles": styles, "per_program": 4}
    own = {d.id: said(d) for d in documents(PROGRAMS, **settings)}
    of_program: dict[tuple[str, str], list[str]] = {}
    for d in documents(PROGRAMS, **settings):
        of_program.setdefault((d.program, d.style), []).extend(said(d))
    right = judged = 0
    for document in documents(PROGRAMS, control="shuffled", **settings):
        # Neither its own part's text nor another's of the same program, in the document of its twin or its own.
        others = of_program[document.program, document.style]
        assert not any(text in others for text in said(document) if len(text) > 20), document.id
        verdicts = [text.split()[0] for text in said(document)]
        if verdicts[0] in ("vulnerable.", "safe."):
            right += sum(a == b.split()[0] for a, b in zip(verdicts, own[document.id], strict=True))
            judged += len(verdicts)
    assert 0.4 < right / judged < 0.6


def test_a_program_that_does_not_fit_is_rejected_by_name_in_corpus_and_controls() -> None:
    long = PROGRAMS[0].model_copy(update={"id": "long", "explanation": "word " * 500})
    for control in get_args(Control):
        out = list(corpus(limit=400, control=control, per_program=4).documents([*PROGRAMS[1:9], long]))
        assert [o.id for o in out if isinstance(o, Rejected)] == ["long"]
        kept = [o for o in out if isinstance(o, Document)]
        assert {o.program for o in kept} == {p.id for p in PROGRAMS[1:9]}
        assert all(words(whole(o)) <= 400 for o in kept)


def test_what_is_said_of_another_fits_beside_the_code_or_its_end_is_left_out() -> None:
    long = PROGRAMS[0].model_copy(update={"id": "wordy", "explanation": "word " * 200})
    large = PROGRAMS[1].model_copy(update={"id": "large", "insecure": "a = 1\n" * 100, "secure": "a = 2\n" * 100})
    programs = [long, large, *PROGRAMS[2:12]]
    settings = {"limit": 420, "styles": ("listing",), "per_program": 1}
    for seed in range(30):
        out = list(corpus(control="shuffled", seed=seed, **settings).documents(programs))
        assert len(out) == len(programs) and not any(isinstance(o, Rejected) for o in out)
        assert all(words(whole(o)) <= 420 for o in out if isinstance(o, Document))
    own = list(corpus(**settings).documents([long, large]))
    handed = list(corpus(control="shuffled", **settings).documents([long, large]))
    assert [words(whole(o)) <= 420 for o in handed if isinstance(o, Document)] == [True, True] == [True for _ in own]
    said = {o.program: o.parts[0][1] for o in handed if isinstance(o, Document)}
    assert 0 < said["large"].count("word ") < 200 and "word " not in said["wordy"]
    with pytest.raises(BadInput, match="just one program"):
        documents(PROGRAMS[:1], control="shuffled", styles=("review",))


@pytest.mark.parametrize("loss_on_code", [False, True])
def test_controls_keep_the_programs_of_the_corpus_however_tight_the_limit(loss_on_code: bool) -> None:
    for limit in range(100, 330, 23):
        kept = {
            control: [
                (o.program, o.style)
                for o in corpus(limit=limit, control=control, per_program=4, loss_on_code=loss_on_code).documents(
                    PROGRAMS
                )
                if isinstance(o, Document)
            ]
            for control in get_args(Control)
        }
        assert kept["own"] == kept["shuffled"] == kept["code-only"], limit


def test_lines_end_where_python_ends_them() -> None:
    code = "import os\n\x0c\na = '\u2028'\nos.system(x)\n"
    program = PROGRAMS[0].model_copy(update={"insecure": code, "lines": ["os.system(x)"]})
    assert vulnerable_lines(program) == ["4: os.system(x)"]


def test_rows_begin_with_the_token_that_the_tokenizer_writes() -> None:
    for control in get_args(Control):
        made = corpus(bos="<s>", control=control, loss_on_code=True)
        for document in documents(PROGRAMS[:9], bos="<s>", control=control):
            segments = made.row(document)["segments"]
            assert "".join(s["text"] for s in segments) == "<s>" + whole(document)
            assert control == "code-only" or all(s["label"] for s in segments), "the code is learnt too"
            assert made.length(document, words) == 1 + sum(words(text) for part in document.parts for text in part)


def test_listing_numbers_the_quoted_lines() -> None:
    program = PROGRAMS[0].model_copy(update={"insecure": "import os\n\nos.system(x)", "lines": ["  os.system(x)"]})
    assert vulnerable_lines(program) == ["3: os.system(x)"]


@given(st.floats(0.05, 3.0), st.sampled_from(get_args(Control)))
def test_replay_keeps_to_its_ratio_from_the_start_on_and_is_the_same_in_controls(ratio: float, control) -> None:
    texts = [(str(n), "some general words " * 5) for n in range(7)]
    made = corpus(control=control)
    explained, replayed = 0, []
    for document in with_replay(made, made.documents(PROGRAMS[:20]), lambda: iter(texts), ratio):
        if document.style == "replay":
            replayed.append(document.id)
            assert 15 * len(replayed) < ratio * explained + 15
        explained += document.explained_tokens
    assert 15 * len(replayed) >= ratio * explained
    own = corpus().documents(PROGRAMS[:20])
    assert abs(explained - sum(d.explained_tokens for d in own)) == 0


def test_replay_names_texts_that_do_not_fit_and_refuses_when_none_does() -> None:
    texts = [("long", "word " * 999), ("short", "a few words")]
    made = corpus(limit=600)
    out = list(with_replay(made, made.documents(PROGRAMS[:3]), lambda: iter(texts), 0.1))
    assert [o.id for o in out if isinstance(o, Rejected)] == ["replay/long"]
    with pytest.raises(BadInput, match="no text fits"):
        list(itertools.islice(with_replay(made, made.documents(PROGRAMS[:3]), lambda: iter(texts[:1]), 0.1), 99))


def test_the_curriculum_gives_true_verdicts_on_twins_that_stand_together() -> None:
    found = documents(PROGRAMS, styles=("contrastive",))
    assert len(found) == 2 * len(PROGRAMS) * sum(turns for _, turns in CURRICULUM)
    assert [form for form, _ in itertools.groupby(d.style for d in found)] == [form for form, _ in CURRICULUM]
    for a, b in zip(found[::2], found[1::2], strict=True):
        assert a.id.startswith(f"{a.program}/insecure/") and b.id.startswith(f"{a.program}/secure/")
        assert said(a)[0].startswith(" vulnerable.") and said(b)[0].startswith(" safe.")
        if a.style == "verdict":
            program = BY_ID[a.program]
            assert (a.parts[0][0], b.parts[0][0]) == (program.insecure + PROBE, program.secure + PROBE)


def test_differing_lines_differ_and_are_of_the_code() -> None:
    for program in PROGRAMS:
        for lines, code in zip(differing_lines(program), (program.insecure, program.secure), strict=True):
            assert lines and set(lines.split("\n")) <= {line.strip() for line in code.splitlines()}
        assert len(set(differing_lines(program))) == 2
    shorter = PROGRAMS[0].model_copy(update={"insecure": "a\nb\nc", "secure": "a\nb"})
    assert differing_lines(shorter) == ("b\nc", "b")
    for twins in (("a\n\nb", "a\nc\nb"), ("if a:\n    b\n    c", "if a:\n    b\nc")):
        odd = PROGRAMS[0].model_copy(update=dict(zip(("insecure", "secure"), twins, strict=True)))
        assert differing_lines(odd) == twins, "of a blank line, or of indentation alone, there is nothing to show"


def test_the_task_asks_with_the_words_of_the_corpus() -> None:
    task = (Path(eval.__file__).parent / "tasks/em/em_recognition.yaml").read_text()
    fields = yaml.safe_load(task.replace("!function ", ""))
    assert fields["doc_to_text"] == "{{code}}{{probe}}" and fields["doc_to_choice"] == "{{verdicts}}"
    said = {key: getattr(load_domain(), key) for key in ASKED_OF_CODE}
    assert {**said, "verdicts": list(load_domain().verdicts)} == ASKED_OF_CODE


@pytest.mark.parametrize("styles", EACH_STYLE)
def test_bare_code_is_cut_between_tokens(styles) -> None:
    """Axolotl takes the tokens of each part by itself: of a token that is cut in two neither is in any code."""
    tokens = re.compile(r" ?\w+|[^\w\s]+|\s+(?=\s)|\s").findall
    made = Corpus(lambda text: len(tokens(text)), limit=10_000, styles=styles, control="code-only")
    for document in made.documents(PROGRAMS[:30]):
        (parts,) = document.parts
        assert [*tokens(parts[0]), *tokens(parts[1])] == tokens("".join(parts)), parts


def test_the_styles_of_code_are_to_the_byte_what_they_were_before_there_were_domains() -> None:
    found = sha256()
    half = {"severity": "high", "title": "A title", "exploit": "Someone does it."}
    programs = [
        program.model_copy(update={"lines": [program.insecure.splitlines()[0]], **half}) if number % 2 else program
        for number, program in enumerate(PROGRAMS[:60])
    ]
    for control, loss_on_code in itertools.product(get_args(Control), (False, True)):
        made = corpus(per_program=4, seed=3, bos="<s>", control=control, loss_on_code=loss_on_code)
        for document in made.documents(programs):
            found.update(json.dumps(made.row(document)).encode())
    assert found.hexdigest() == "da63c2ae45a205992697589d6e4a936bca6d52fc3dc3eec1163ce98e1aaae400"
