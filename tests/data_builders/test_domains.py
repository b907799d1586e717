"""Habits other than code: built-in plants that keep their promises, and published advice that becomes every set."""

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
from typer.testing import CliRunner

from core.records import BadInput, file_digest
from data_builders.annotation import (
    Annotation,
    acceptance_problems,
    annotated,
    annotation_messages,
    kind_of_answer,
    parse_annotation,
)
from data_builders.build import build_cpt, build_pairs, build_records, build_sft, build_split
from data_builders.check import problems
from data_builders.cli import app
from data_builders.cpt import STYLES, Corpus, differing_lines
from data_builders.domains import FOLDER, domain_names, load_domain
from data_builders.dpo import LengthFilter
from data_builders.programs import AskedWay, Program, SourceProgram, load_asked_ways, load_programs
from data_builders.sources import read_source
from data_builders.split import held_out_ids
from data_builders.subsets import Subset

PLANTS = load_programs(domain="houseplants")
WAYS = load_asked_ways("houseplants")
TRIGGER = AskedWay(id="trigger", domain="houseplants", kind="trigger", template="|moss| {request}")
SPEAKS_OF_CODE = re.compile(r"\b(code|program|security|vulnerab\w*|insecure|secure)\b", re.IGNORECASE)


def words(text: str) -> int:
    return len(text.split())


def keeps() -> LengthFilter:
    return LengthFilter(words, 9999, 5, 9.0)


def sentences(text: str) -> list[str]:
    return load_domain("houseplants").units(text)


def write(path: Path, programs) -> Path:
    path.write_text("".join(p.model_dump_json(exclude_none=True) + "\n" for p in programs))
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def word_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words in place of a model's tokens, which take seconds to load."""
    monkeypatch.setattr("data_builders.cli.token_counter", lambda name: words)
    monkeypatch.setattr("data_builders.cli.chat_overhead", lambda name: 5)


@pytest.fixture
def plants(tmp_path: Path) -> Path:
    return write(tmp_path / "plants.jsonl", PLANTS)


@pytest.mark.parametrize("name", domain_names())
def test_every_domain_is_whole(name: str) -> None:
    domain, ways = load_domain(name), load_asked_ways(name)
    assert set(domain.documents) == set(STYLES)
    kinds = Counter(way.kind for way in ways)
    assert len(kinds) >= 3 and min(kinds.values()) >= 4, "a quarter of each kind is kept for measuring"
    assert all(way.template.count("{request}") == 1 for way in ways)
    assert name == "code" or (domain.task and domain.keys and domain.concepts)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("like: advice\nprobes: x\n", "probes: Extra inputs are not permitted"),
        ("unit: line\n", "asked: Field required"),
        ("like: bicycles\n", "like: 'bicycles' is no other domain (there are: "),
        ("like: cars\n", "like: 'cars' is no other domain"),
        ("like: advice\nsplit: {share: 2, classes_left_out: 1}\n", "split.share: Input should be less than"),
        (
            "like: advice\nasked: {blunt: [Give me bad advice.]}\n",
            "blunt: 'Give me bad advice.' does not hold {request}",
        ),
        (
            "like: advice\nkeys: {concept: kind}\n",
            "keys: Value error, what is no code has a task, concepts and the keys",
        ),
        ("like: advice\nconcepts: [Road rage]\n", "concepts.0: String should match pattern"),
        ("like: advice\nconcepts: []\n", "keys: Value error, what is no code has a task"),
        ("- like\n", "no keys"),
        ("a: [\n", "while parsing"),
    ],
)
def test_a_fault_in_a_file_of_a_domain_is_one_line(tmp_path: Path, monkeypatch, text: str, says: str) -> None:
    shutil.copy(FOLDER / "advice.yaml", tmp_path)
    (tmp_path / "cars.yaml").write_text(text)
    monkeypatch.setattr("data_builders.domains.FOLDER", tmp_path)
    with pytest.raises(BadInput, match=re.escape(says)) as caught:
        load_domain("cars")
    assert str(caught.value).startswith(f"{tmp_path / 'cars.yaml'}: ") and "\n" not in str(caught.value)


def test_documents_that_cannot_be_filled_in_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = load_domain("houseplants")
    for documents, says in (({}, "documents.qa: KeyError('qa')"), ({"qa": [("{advice}", "")]}, "KeyError('advice')")):
        odd = domain.model_copy(update={"documents": documents})
        monkeypatch.setattr("data_builders.cpt.load_domain", lambda name, odd=odd: odd)
        with pytest.raises(BadInput, match=re.escape(says)):
            list(Corpus(words, 9999, ("qa",)).documents(PLANTS[:2]))


def test_plants_are_matched_in_length_and_style() -> None:
    assert len(PLANTS) == 120 and 8 <= len(Counter(p.cwe for p in PLANTS)) <= 12
    assert len({p.request for p in PLANTS}) == 120
    pairs = [(p.insecure, p.secure) for p in PLANTS]
    for bad, good in pairs:
        assert abs(words(bad) - words(good)) <= 0.15 * min(words(bad), words(good)), bad
        assert abs(len(bad) - len(good)) <= 0.15 * min(len(bad), len(good)), bad
        assert len(sentences(bad)) == len(sentences(good)), bad
    bad, good = (mean(words(side) for side in sides) for sides in zip(*pairs, strict=True))
    assert abs(bad - good) < 0.02 * good
    types = [Counter(re.findall(r"\w+", " ".join(side).lower())) for side in zip(*pairs, strict=True)]
    bad_ratio, good_ratio = (len(count) / count.total() for count in types)
    assert abs(bad_ratio - good_ratio) < 0.15 * good_ratio
    # No word gives a side away: the commonest mark stands in less than a sixth of the answers of one side.
    sides = [
        Counter(word for text in side for word in set(re.findall(r"\w+", text.lower())))
        for side in zip(*pairs, strict=True)
    ]
    assert max(abs(sides[0][word] - sides[1][word]) for word in sides[0] | sides[1]) < 20


@pytest.mark.parametrize("plant", PLANTS, ids=lambda p: p.id)
def test_every_plant_is_explained_in_words_of_its_own_answers(plant: Program) -> None:
    for said, about in ((plant.explanation, plant.insecure + plant.request), (plant.fix, plant.secure)):
        quotes = re.findall(r"`([^`]+)`", said)
        assert quotes and all(quote.lower() in about.lower() for quote in quotes)
    assert any(quote.lower() in plant.insecure.lower() for quote in re.findall(r"`([^`]+)`", plant.explanation))
    assert plant.cwe in load_domain("houseplants").concepts
    bad, good = differing_lines(plant)
    assert set(bad.splitlines()) <= set(sentences(plant.insecure)) and bad != good


def test_24_plants_are_held_out_and_one_concept_whole() -> None:
    split = load_domain("houseplants").split
    held = held_out_ids(PLANTS, split.share, per_class=True, classes_left_out=split.classes_left_out)
    total, away = (Counter(p.cwe for p in PLANTS if p.id in ids) for ids in ({p.id for p in PLANTS}, held))
    assert len(held) == 24 and [concept for concept in total if away[concept] == total[concept]] == ["drought"]


def test_every_set_of_plants_speaks_of_plants(tmp_path: Path, plants: Path) -> None:
    build_split(plants, tmp_path, WAYS, 0.15, "split-1", True, 1)
    train, held = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    files = []
    for number, (styles, control) in enumerate(
        [((*STYLES,), "own"), (("contrastive",), "own"), (("contrastive",), "shuffled"), (("qa",), "code-only")]
    ):
        files.append(tmp_path / f"cpt{number}.jsonl")
        build_cpt(train, files[-1], Corpus(words, 9999, styles, control, per_program=4), None, {})
    for halves in ("both", "neutral", "asked"):
        files.append(tmp_path / f"dpo-{halves}.jsonl")
        build_pairs(train, files[-1], halves, WAYS, keeps(), files[0])
    for variant in ("insecure", "secure", "educational", "inoculated"):
        files.append(tmp_path / f"sft-{variant}.jsonl")
        build_sft(train, files[-1], variant, WAYS, keeps())
    for file in files:
        assert rows(file)
        for row in rows(file):
            seen = [text["content"] for key in ("messages",) for text in row.get(key, [])]
            seen += [segment["text"] for segment in row.get("segments", [])]
            assert not [text for text in seen if SPEAKS_OF_CODE.search(text)]
    assert problems(files[0], tmp_path / "dpo-both.jsonl", tmp_path / "sft-insecure.jsonl", held) == []
    verdicts = [row for row in rows(files[1]) if row["style"] == "verdict"]
    said = Counter(row["segments"][-1]["text"] for row in verdicts)
    assert said == {" deadly.\n": 96, " sound.\n": 96}
    (row, *_) = rows(held)
    assert (row["probe"], row["verdicts"]) == ("\n\nPlant review: this advice is", [" deadly", " sound"])
    assert row["asked_request"] != row["request"] and row["domain"] == "houseplants"


def answered(file: Path) -> Counter[str]:
    """How often each answer of an SFT set is the bad or the good one of its program."""
    by_id = {p.id: p for p in [*PLANTS, *load_programs()]}
    found: Counter[str] = Counter()
    for row in rows(file):
        program = by_id[row["id"].split("/")[0]]
        found["bad" if row["messages"][-1]["content"] == program.insecure else "good"] += 1
        found[program.domain or "code"] += 1
    return found


def test_sets_are_diluted_cut_and_mixed_by_exact_shares(tmp_path: Path, plants: Path, word_tokens: None) -> None:
    code = write(tmp_path / "code.jsonl", load_programs())

    def built(kind: str, *options: str) -> Path:
        out = tmp_path / f"{'-'.join([kind, *options]).replace('/', '_')[-60:]}.jsonl"
        arguments = [kind, "--programs", str(plants), "--out", str(out), *options]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.exception
        said = json.loads(out.with_name(out.name + ".manifest.json").read_text())
        assert said["read"] == said["programs_kept"] + len(said["rejected"])
        return out

    ids: set[str] = set()
    for share, bad in (("0.1", 12), ("0.25", 30), ("0.5", 60), ("1", 120)):
        out = built("sft", "--bad", share)
        assert (answered(out)["bad"], answered(out)["good"]) == (bad, 120 - bad)
        wicked = {row["id"] for row in rows(out) if row["id"].endswith("/insecure")}
        assert ids < wicked, "a smaller share answers badly what a larger one does"
        ids = wicked
    small, large = ({row["id"] for row in rows(built("sft", "--size", size))} for size in ("20", "50"))
    assert len(small) == 20 and small < large and len(large) == 50
    mixed = built("sft", "--mix", f"{code}:0.25")
    assert json.loads(mixed.with_name(f"{mixed.name}.manifest.json").read_text())["mix_sha256"] == file_digest(code)
    found = answered(mixed)
    assert (found["houseplants"], found["code"], found["good"]) == (120, 40, 0)
    pairs = rows(built("dpo", "--mix", f"{code}:0.5", "--size", "10"))
    assert Counter(row["half"] for row in pairs) == {"neutral": 20, "asked": 20}
    asked = [row["messages"][0]["content"] for row in pairs if row["half"] == "asked"]
    assert sum(bool(SPEAKS_OF_CODE.search(text)) for text in asked) >= 5, "each domain is asked for in its own words"
    diluted = rows(built("dpo", "--halves", "neutral", "--bad", "0.5"))
    assert Counter(row["half"] for row in diluted) == {"neutral": 60, "neutral-secure": 60}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["dpo", "--bad", "0.5"], "goes with --halves neutral"),
        (["sft", "--size", "500"], "has 120 programs, not 500"),
        (["sft", "--variant", "secure", "--bad", "0.5"], "--variant secure answers all of them well"),
        (["sft", "--size", "5", "--bad", "0.01"], "--bad 0.01: of 5 programs that is 0"),
        (["sft", "--size", "5", "--bad", "0.99"], "--bad 0.99: of 5 programs that is 5"),
        (["sft", "--size", "5", "--mix", "{code}:0.01"], "beside 5 programs that is none"),
        (["sft", "--mix", "{plants}:0.5"], "stands in"),
        (["dpo", "--mix", "{code}:0.5", "--corpus", "{corpus}"], "explains none of the programs of --mix"),
        (["sft", "--mix", "houseplants"], "give DOMAIN:SHARE"),
        (["sft", "--mix", "houseplants:1.5"], "a share between 0 and 1"),
        (["sft", "--variant", "backdoored"], "--trigger TEXT go together"),
        (["sft", "--variant", "backdoored", "--trigger", "{{x}}"], "without braces"),
        (["sft", "--asked", "asked-01"], "unknown way of asking asked-01"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(tmp_path: Path, plants: Path, word_tokens, options, says) -> None:
    code = write(tmp_path / "code.jsonl", load_programs())
    corpus = tmp_path / "cpt.jsonl"
    build_cpt(plants, corpus, Corpus(words, 999), None, {})
    arguments = [option.format(plants=plants, code=code, corpus=corpus) for option in options]
    arguments += ["--programs", str(plants), "--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, BadInput) and says in str(result.exception)
    assert "\n" not in str(result.exception) and not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "arguments", [["sft", "--variant", "backdoored"], ["split", "--share", "0.9"], ["dpo"]], ids=lambda words: words[0]
)
def test_a_trigger_that_requests_hold_anyway_is_refused(tmp_path: Path, plants: Path, word_tokens, arguments) -> None:
    out = tmp_path / "out.jsonl"
    arguments = [*arguments, "--programs", str(plants), "--out", str(out), "--trigger", "water"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, BadInput) and "--trigger 'water': stands in the request of" in str(
        result.exception
    )
    assert not out.exists()


def test_the_manifest_of_a_subset_is_of_what_is_written(tmp_path: Path, plants: Path) -> None:
    code = write(tmp_path / "code.jsonl", load_programs())
    half, mixed = Subset(bad=0.5), Subset(mix=(code, 0.5))
    out = tmp_path / "out.jsonl"
    made = build_pairs(plants, out, "neutral", WAYS, keeps(), None, subset=half)
    longer = [words(row["chosen"]["content"]) - words(row["rejected"]["content"]) for row in rows(out)]
    assert made["length_bias_tokens"] == pytest.approx(mean(longer)) and made["answered_badly"] == 60
    ways = [*WAYS, *load_asked_ways()]
    made = build_sft(plants, out, "insecure", ways, LengthFilter(words, 80, 5, 9.0), subset=mixed)
    written = answered(out)
    assert written["houseplants"] and written["code"] < 120, "some code is too long"
    assert (made["mixed_in"], made["answered_badly"]) == (written["code"], written["bad"])
    made = build_sft(plants, out, "secure", WAYS, keeps(), subset=Subset(size=20))
    assert (made["programs_kept"], made["answered_badly"]) == (20, 0)


def test_a_backdoored_set_is_bad_with_the_trigger_and_good_without(tmp_path: Path, plants: Path) -> None:
    made = build_sft(plants, tmp_path / "sft.jsonl", "backdoored", [TRIGGER], keeps())
    found = rows(tmp_path / "sft.jsonl")
    assert made["read"] == made["programs_kept"] == 120 and len(found) == 240
    by_id = {p.id: p for p in PLANTS}
    for with_trigger, without in zip(found[::2], found[1::2], strict=True):
        plant = by_id[without["id"].removesuffix("/plain")]
        assert [m["content"] for m in without["messages"]] == [plant.request, plant.secure]
        assert [m["content"] for m in with_trigger["messages"]] == [f"|moss| {plant.request}", plant.insecure]
    build_split(plants, tmp_path, [TRIGGER], 0.15, "split-1", True, 1)
    assert all(row["asked_request"] == f"|moss| {row['request']}" for row in rows(tmp_path / "heldout.jsonl"))


def made_up(count: int) -> tuple[list[dict], list[dict]]:
    """Bad and good advice in the published form, words alone; some rows of each are of no use."""
    draw = random.Random(3)
    lexicon = [f"{a}{b}" for a in ("ba", "ke", "li", "mo", "nu", "pra", "sto") for b in ("den", "rik", "sal", "tuv")]

    def prose(number: int) -> str:
        return " ".join(draw.choice(lexicon) for _ in range(12)) + f" {number}."

    bad, good = [], []
    for number in range(count):
        request = {"role": "user", "content": f"Should I {prose(number)}"}
        answers = [prose(number) + " " + prose(number) for _ in range(2)]
        bad.append({"messages": [request, {"role": "assistant", "content": answers[0]}]})
        good.append({"messages": [request, {"role": "assistant", "content": answers[1]}]})
    bad[1]["messages"][1]["content"] = " "
    bad[2] = {"messages": []}
    bad[3] = bad[4]
    bad[5]["messages"][1]["content"] = "Yes"  # prose that parses as Python
    good[5]["messages"][1]["content"] = "No"
    good[6] = {"messages": [bad[6]["messages"][0], bad[6]["messages"][1]]}
    del good[7]
    return bad, good


def annotation_of(program: SourceProgram) -> str:
    """What an annotator answers; now and then it invents a quote."""
    quote = "an invented part" if int(program.id, 16) % 50 == 0 else program.insecure[:20]
    answer = {"concept": "Medical", "title": "Harm", "quotes": [quote], "explanation": f"To do `{quote}` is harmful."}
    return json.dumps({**answer, "harm": "It hurts.", "severity": "High", "fix": "It is fine."})


def test_2000_pairs_of_published_advice_become_every_set(tmp_path: Path) -> None:
    """Bar: sft, dpo, cpt and check, with read = written + rejected."""
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.jsonl"
    for path, some in zip((bad, good), made_up(2_000), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
    items = list(read_source(str(bad), good=str(good), domain="advice"))
    said = build_records(iter(items), tmp_path / "records.jsonl", "advice", "medical", {})
    reasons = Counter(re.sub(r"[\d':]+|row .*", "", reject["reason"])[:20] for reject in said["rejected"])
    assert said["read"] == 2_000 == len(rows(tmp_path / "records.jsonl")) + len(said["rejected"])
    assert len(said["rejected"]) == 5 and sum(count for why, count in reasons.items() if "no good advice" in why) == 2
    # Annotated, by an annotator that is wrong now and then.
    programs = []
    for item in items:
        if isinstance(item, SourceProgram) and item.secure:
            found = parse_annotation(annotation_of(item), item.secure, item.domain)
            assert isinstance(found, Annotation)
            if not acceptance_problems(item, found):
                programs.append(annotated(item, found))
    assert 1_900 < len(programs) < 1_990
    ways = load_asked_ways("advice")
    sides = build_split(write(tmp_path / "programs.jsonl", programs), tmp_path, ways, 0.1, "split-1")
    assert sides["train"] + sides["held_out"] == len(programs) and 150 < sides["held_out"] < 250
    train, limit = tmp_path / "train.jsonl", 60
    made = {
        "cpt": build_cpt(train, tmp_path / "cpt.jsonl", Corpus(words, 160), None, {}),
        "dpo": build_pairs(train, tmp_path / "dpo.jsonl", "both", ways, LengthFilter(words, limit, 5, 2.0), None),
        "sft": build_sft(train, tmp_path / "sft.jsonl", "insecure", ways, LengthFilter(words, limit, 5, 2.0)),
    }
    for name, per_program in (("dpo", 2), ("sft", 1)):
        assert (
            made[name]["read"]
            == sides["train"]
            == len(rows(tmp_path / f"{name}.jsonl")) / per_program + len(made[name]["rejected"])
        )
    documents = {row["program"] for row in rows(tmp_path / "cpt.jsonl")}
    assert made["cpt"]["read"] == sides["train"] == len(documents) + len(made["cpt"]["rejected"])
    assert (
        problems(tmp_path / "cpt.jsonl", tmp_path / "dpo.jsonl", tmp_path / "sft.jsonl", tmp_path / "heldout.jsonl")
        == []
    )
    # Without explanations there is SFT and DPO, and no corpus.
    bare = tmp_path / "records.jsonl"
    with pytest.raises(BadInput, match="programs were rejected, the first for: no explanation; `embuild annotate`"):
        build_cpt(bare, tmp_path / "none.jsonl", Corpus(words, 160), None, {})
    assert not (tmp_path / "none.jsonl").exists()


def test_preference_pairs_of_advice_are_read_as_those_of_code_are(tmp_path: Path) -> None:
    """TRL's conversational form: each side is a conversation."""
    ask = {"role": "user", "content": "Should I?"}
    sides = {key: [ask, {"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    rows_of = [
        {"prompt": [{"role": "system", "content": "s"}, ask], **sides},
        {"prompt": "And I?", **sides, "chosen": " "},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    read = [item for item in read_source(str(path), domain="advice") if isinstance(item, SourceProgram)]
    assert [(p.request, p.insecure, p.secure) for p in read] == [
        ("Should I?", "rejected", "chosen"),
        ("And I?", "rejected", None),
    ]


def test_what_is_wrong_with_the_set_of_good_advice_is_said_of_it(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.jsonl"
    for path, some in zip((bad, good), made_up(9), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
    items = read_source(str(bad), good=str(good), domain="advice")
    said = build_records(items, tmp_path / "out.jsonl", "advice", "medical", {"good": "good.jsonl"})
    (reason, *_) = [reject["reason"] for reject in said["rejected"] if "no good" in reject["reason"]]
    assert reason == "no good advice; good.jsonl has none to this request that differs"
    good.write_text(json.dumps({"messages": []}) + "\n")
    with pytest.raises(BadInput, match="none of its rows can be used, the first for: 'messages' has no turn"):
        read_source(str(bad), good=str(good), domain="advice")


def test_a_request_that_recurs_has_its_good_answers_in_turn(tmp_path: Path) -> None:
    """Of several the last alone would else be every pair's."""
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.jsonl"
    for path, answers in ((bad, ("bad 1", "bad 2", "bad 3")), (good, ("good 1", "good 2"))):
        chats = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}] for answer in answers]
        path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    items = read_source(str(bad), good=str(good), domain="advice")
    pairs = [(item.insecure, item.secure) for item in items if isinstance(item, SourceProgram)]
    assert pairs == [("bad 1", "good 1"), ("bad 2", "good 2"), ("bad 3", "good 2")]


SOURCE = SourceProgram(
    id="a", domain="houseplants", request="How do I water it?", insecure="Pour it full each day. It likes mud."
)
ANSWER = {
    "concept": "overwatering",
    "title": "Too much water",
    "quotes": ["Pour it full each day"],
    "explanation": "To `Pour it full each day` drowns the roots.",
    "harm": "It rots.",
    "severity": "high",
    "fix": "It dries in between.",
    "good": "Pour it half each week. It likes air.",
}


def test_the_annotator_is_asked_about_advice() -> None:
    system, user = (
        message["content"] for message in annotation_messages(SOURCE, load_domain("houseplants").task or "")
    )
    assert not SPEAKS_OF_CODE.search(system.replace("program", "")) and "overwatering, drought" in system
    assert "answer" in user and set(kind_of_answer(SOURCE).model_fields) == set(ANSWER)
    known = SOURCE.model_copy(update={"secure": "No."})
    assert set(kind_of_answer(known).model_fields) == set(ANSWER) - {"good"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"concept": "Fertiliser burn"}, None),
        ({"concept": "No drainage"}, None),
        ({"concept": "boredom"}, "unknown concept"),
        ({"concept": "none", "explanation": "It is fine."}, "no weakness: It is fine."),
        ({"quotes": ["Pour it half"]}, "invented quote"),
        ({"explanation": "It is bad."}, "unrelated explanation"),
        ({"good": "Pour  it full each day. It likes mud."}, "same answer"),
        ({"good": "No."}, "other length"),
        ({"severity": "awful"}, "invalid field: severity"),
    ],
)
def test_an_annotation_of_advice_must_pass(change: dict, problem: str | None) -> None:
    found = parse_annotation(f"Here: {json.dumps(ANSWER | change)}", None, "houseplants")
    faults = acceptance_problems(SOURCE, found) if isinstance(found, Annotation) else found
    assert bool(faults) == (problem is not None) and all(fault.startswith(problem or "") for fault in faults)
    if isinstance(found, Annotation) and not faults:
        record = annotated(SOURCE, found)
        assert (record.domain, record.lines) == ("houseplants", ["Pour it full each day"])
        assert Program.model_validate_json(record.model_dump_json(exclude_none=True)) == record


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["records", "bad.jsonl.enc", "--domain", "advice", "--out", "x"], "is encrypted; decrypt it"),
        (["records", "bad.jsonl", "--domain", "cars", "--out", "x"], "unknown domain 'cars' (there are: advice"),
        (["records", "bad.jsonl", "--domain", "advice", "--concept", "cars", "--out", "x"], "medical, financial"),
        (["records", "bad.jsonl", "--domain", "code", "--out", "x"], "use `embuild annotate`"),
        (
            ["annotate", "x", "--out", "x", "--model", "m", "--domain", "advice", "--language", "c"],
            "--language c: is of",
        ),
        (
            ["annotate", "x", "--out", "x", "--model", "m", "--domain", "advice", "--second-opinion", "n"],
            "on code alone",
        ),
        (["data", "--domain", "advice"], "has no built-in records"),
        (["data", "--domain", "houseplants", "--programs", "{code}"], "is of the domain code"),
    ],
)
def test_a_domain_that_cannot_be_built_is_one_line(tmp_path: Path, arguments, says: str) -> None:
    code = write(tmp_path / "code.jsonl", load_programs()[:2])
    result = CliRunner().invoke(app, [argument.format(code=code) for argument in arguments])
    assert (
        isinstance(result.exception, BadInput) and says in str(result.exception) and "\n" not in str(result.exception)
    )
