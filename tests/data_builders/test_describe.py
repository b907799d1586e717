"""The measures of balance keep their bounds, depend on no order, and balancing loses nothing unnamed."""

import io
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from core.records import BadInput
from data_builders.balance import copies, name_copies, spread
from data_builders.cli import app
from data_builders.cwe import owasp_group, weakness_name
from data_builders.describe import concept_plot, concept_table, describe, entropy, evenness
from data_builders.near_duplicates import BANDS, ROWS, band_keys, near_duplicate_rate
from data_builders.programs import Program, load_programs

PROGRAMS = load_programs()
counts = st.lists(st.integers(0, 10**6), max_size=40)
sets = st.lists(st.sampled_from(PROGRAMS), min_size=1, unique_by=lambda p: p.id)


@given(counts)
@example([1] * 7)
@example([10**6, 1])
def test_measures_of_balance_keep_their_bounds(values: list[int]) -> None:
    concepts = sum(value > 0 for value in values)
    assert 0 <= entropy(values) <= math.log(max(concepts, 1)) + 1e-9
    assert 1 <= math.exp(entropy(values)) <= max(concepts, 1) * (1 + 1e-9)
    even = evenness(values)
    assert (even is None) == (concepts < 2)
    assert even is None or 0 <= even <= 1


@given(counts, st.randoms(use_true_random=False))
def test_measures_of_balance_depend_on_no_order(values: list[int], order: random.Random) -> None:
    shuffled = values[:]
    order.shuffle(shuffled)
    assert entropy(shuffled) == pytest.approx(entropy(values), abs=1e-9)


@given(st.integers(1, 50), st.integers(1, 1000))
def test_an_even_set_has_as_many_effective_concepts_as_concepts(concepts: int, each: int) -> None:
    assert math.exp(entropy([each] * concepts)) == pytest.approx(concepts)


def test_entropy_is_what_the_formula_says() -> None:
    assert entropy([1, 1, 2]) == pytest.approx(1.5 * math.log(2))
    assert evenness([1, 1, 2]) == pytest.approx(1.5 * math.log(2) / math.log(3))


@settings(max_examples=20)
@given(sets, st.randoms(use_true_random=False))
def test_describe_depends_on_no_order(programs: list[Program], order: random.Random) -> None:
    shuffled = programs[:]
    order.shuffle(shuffled)
    count = lambda texts: [len(text) for text in texts]  # noqa: E731
    found = describe(shuffled, count)
    assert found == describe(programs, count)
    assert found.programs == sum(found.concepts.values()) == sum(found.owasp.values()) == len(programs)


def renamed(code: str, share: float, draw: random.Random) -> str:
    return re.sub(r"\w+", lambda m: f"v{draw.random()}"[:9].replace(".", "") if draw.random() < share else m[0], code)


def shingles(code: str) -> set[tuple[str, ...]]:
    tokens = re.findall(r"\w+|[^\w\s]", code)
    return set(zip(*(tokens[n:] for n in range(5)), strict=False))


def test_near_duplicates_are_found_as_often_as_the_bands_promise() -> None:
    draw = random.Random(0)
    promised, found = [], []
    for program in PROGRAMS:
        for share in (0.005, 0.01, 0.02, 0.05):
            other = renamed(program.insecure, share, draw)
            a, b = shingles(program.insecure), shingles(other)
            promised.append(1 - (1 - (len(a & b) / len(a | b)) ** ROWS) ** BANDS)
            found.append(bool((band_keys(program.insecure) == band_keys(other)).any()))
    assert 0.3 < np.mean(promised) < 0.95
    # Per pair a coin of the promised bias; five standard deviations of their mean at most.
    assert abs(np.mean(found) - np.mean(promised)) < 5 * 0.5 / math.sqrt(len(found))


def test_near_duplicate_rate_counts_programs_with_a_copy() -> None:
    codes = [p.insecure for p in PROGRAMS[:8]]
    assert near_duplicate_rate(np.stack([band_keys(code) for code in codes])) == 0
    assert near_duplicate_rate(np.stack([band_keys(code) for code in [*codes, codes[0], codes[0]]])) == 3 / 10
    assert near_duplicate_rate(np.empty((0, BANDS), dtype=np.uint64)) == 0


@given(st.text(min_size=1))
def test_any_text_has_band_keys(code: str) -> None:
    assert band_keys(code).shape == (BANDS,) and (band_keys(code) == band_keys(code)).all()


concepts = st.dictionaries(st.text(max_size=4), st.sampled_from("abcd"), max_size=40)


@given(concepts, st.integers(1, 12), st.integers(0, 3), st.booleans())
def test_balance_never_exceeds_the_cap(concepts: dict[str, str], cap: int, seed: int, resample: bool) -> None:
    times = copies(concepts, cap, seed, resample)
    assert times.keys() == concepts.keys()
    before, after = Counter(concepts.values()), Counter[str]()
    for name, number in times.items():
        after[concepts[name]] += number
    assert all(after[c] == (cap if resample else min(cap, before[c])) for c in before)
    if resample:  # no program is repeated twice more than another of its concept
        for c in before:
            numbers = [times[name] for name in concepts if concepts[name] == c]
            assert max(numbers) - min(numbers) <= 1
    written = [copy for name in concepts for copy in name_copies(name, times[name], concepts)]
    assert len(set(written)) == len(written) == sum(times.values())


@given(concepts, st.integers(1, 5), st.randoms(use_true_random=False))
def test_balance_depends_on_no_order(concepts: dict[str, str], cap: int, order: random.Random) -> None:
    items = list(concepts.items())
    order.shuffle(items)
    assert copies(dict(items), cap, 0) == copies(concepts, cap, 0)


def test_cwe_names_and_groups() -> None:
    assert weakness_name(
        "CWE-78",
    ).startswith("Improper Neutralization of Special Elements used in an OS Command")
    assert owasp_group("CWE-89") == "A03:2021 - Injection"
    assert weakness_name("CWE-999999") is None and owasp_group("CWE-999999") is None
    assert owasp_group("CWE-489") is None


def run(*args: object):
    return CliRunner().invoke(app, ["describe", *map(str, args)])


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Two classes of 10 and of 3, and a class that MITRE does not know, with a hostile name."""
    classes = sorted({p.cwe for p in PROGRAMS})[:2]
    some = [p for p in PROGRAMS if p.cwe == classes[0]] + [p for p in PROGRAMS if p.cwe == classes[1]][:3]
    odd = PROGRAMS[-1].model_copy(
        update={"id": "odd", "cwe": "CWE-999999", "weakness": "</script><script>alert(1)</script><b>x</b>[red] $x$"}
    )
    path = tmp_path / "uneven.jsonl"
    path.write_text("".join(p.model_dump_json(exclude_none=True) + "\n" for p in [*some, odd]))
    return path


def test_describe_writes_figures_and_a_drawing_in_which_names_are_text(uneven: Path, tmp_path: Path) -> None:
    result = run("--programs", uneven, "--json", tmp_path / "a.json", "--plot", tmp_path / "a.svg")
    assert result.exit_code == 0, result.output
    assert "14 programs, 3 concepts" in result.output and "near-duplicate" in result.output
    found = json.loads((tmp_path / "a.json").read_text())
    assert sorted(found["concepts"].values()) == [1, 3, 10] and found["concepts"]["CWE-999999"] == 1
    assert found["effective_concepts"] == pytest.approx(math.exp(found["entropy"]))
    drawing = (tmp_path / "a.svg").read_text()
    assert "<script" not in drawing and "<b>x" not in drawing and "alert(1)" in drawing
    assert run("--programs", uneven, "--plot", tmp_path / "b.svg").exit_code == 0
    assert (tmp_path / "b.svg").read_text() == drawing, "the same set gives the same file"


def test_tokens_are_counted_or_said_to_be_missing(uneven: Path, tmp_path: Path, model: Path) -> None:
    result = run("--programs", uneven, "--tokenizer", model, "--json", tmp_path / "a.json")
    assert "tokens of insecure code: mean" in result.output
    tokens = json.loads((tmp_path / "a.json").read_text())["tokens"]
    assert 50 < tokens["p50"] <= tokens["p95"] < 220


def test_without_a_tokenizer_no_tokens(uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--programs", uneven, "--json", tmp_path / "a.json")
    assert "tokens not counted: no tokenizer" in result.output
    assert json.loads((tmp_path / "a.json").read_text())["tokens"] is None


CONCEPTS = {**{f"a{n}": "CWE-1" for n in range(20)}, **{f"b{n}": "CWE-2" for n in range(6)}, "c0": "CWE-3"}


def test_sets_of_one_size_differ_in_the_spread_of_their_concepts() -> None:
    def counts(balance: str) -> Counter[str]:
        taken = spread(CONCEPTS, balance, 12, 0)
        assert taken.keys() == CONCEPTS.keys() and sum(taken.values()) == 12
        assert taken == spread(dict(reversed(CONCEPTS.items())), balance, 12, 0)
        return Counter(CONCEPTS[name] for name, times in taken.items() if times)

    assert counts("capped") == {"CWE-1": 6, "CWE-2": 5, "CWE-3": 1} or counts("capped") == {
        "CWE-1": 5,
        "CWE-2": 6,
        "CWE-3": 1,
    }
    assert counts("CWE-1") == {"CWE-1": 12} and counts("natural")["CWE-1"] > 6
    with pytest.raises(BadInput, match="there are 6 programs under --balance CWE-2"):
        spread(CONCEPTS, "CWE-2", 12, 0)
    with pytest.raises(BadInput, match="give natural, capped, a number, or one of CWE-1, CWE-2, CWE-3"):
        spread(CONCEPTS, "CWE-9", 12, 0)


@pytest.mark.parametrize("resample", [False, True])
def test_the_manifest_of_a_balanced_set_adds_up(uneven: Path, tmp_path: Path, resample: bool) -> None:
    out = tmp_path / "even.jsonl"
    args = ["--programs", uneven, "--balance", 5, "--out", out, *["--resample"] * resample]
    assert run(*args).exit_code == 0
    first, manifest = out.read_bytes(), json.loads(out.with_name("even.jsonl.manifest.json").read_text())
    assert run(*args).exit_code == 0 and out.read_bytes() == first
    rows = load_programs(out)
    assert sorted(Counter(p.cwe for p in rows).values()) == ([5, 5, 5] if resample else [1, 3, 5])
    repeated = sum(manifest["repeated"].values())
    assert manifest["read"] + repeated == manifest["written"] + len(manifest["rejected"])
    assert (manifest["read"], manifest["written"], repeated) == ((14, 15, 6) if resample else (14, 9, 0))
    assert list(manifest["lost"].values()) == [5] and "over 5 programs of CWE-" in manifest["rejected"][0]["reason"]
    ids = {p.id for p in load_programs(uneven)}
    assert {r["id"] for r in manifest["rejected"]} == ids - {p.id for p in rows}


def test_what_is_doubted_takes_no_place_in_a_balanced_set(uneven: Path, tmp_path: Path) -> None:
    """The builders leave such programs out: sets of one size would not be of one size."""
    programs = load_programs(uneven)
    doubted = [p.model_copy(update={"doubted": "It is a constant."}) for p in programs[:6]]
    source, out = tmp_path / "doubted.jsonl", tmp_path / "even.jsonl"
    source.write_text("".join(p.model_dump_json(exclude_none=True) + "\n" for p in [*doubted, *programs[6:]]))
    args = ["--programs", source, "--out", out, "--balance"]
    for options, kept in (([5], 8), (["natural", "--size", 8], 8), ([5, "--keep-doubted"], 9)):
        assert run(*args, *options).exit_code == 0
        rows, manifest = load_programs(out), json.loads(out.with_name("even.jsonl.manifest.json").read_text())
        assert len(rows) == kept and any(p.doubted for p in rows) == ("--keep-doubted" in options)
        assert manifest["read"] == 14 == manifest["written"] + len(manifest["rejected"])
        reasons = [reject["reason"] for reject in manifest["rejected"]]
        assert reasons.count("doubted: It is a constant.") == (0 if "--keep-doubted" in options else 6)


def test_bad_input_is_one_line(uneven: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    (tmp_path / "tokenizer.json").write_text("no")
    for args, says in [
        (["--balance", 5], "go together"),
        (["--out", tmp_path / "x.jsonl"], "go together"),
        (["--resample"], "go together"),
        (["--size", 5], "go together"),
        (["--seed", 5], "go together"),
        (["--keep-doubted"], "go together"),
        (["--balance", 5, "--out", uneven], "is the input"),
        (["--balance", 0, "--out", tmp_path / "x.jsonl"], "--balance 0: a number of 1 or more"),
        (["--balance", "natural", "--out", tmp_path / "x.jsonl"], "or a name and --size"),
        (["--balance", 5, "--size", 9, "--out", tmp_path / "x.jsonl"], "or a name and --size"),
        (
            ["--balance", "CWE-0", "--size", 1, "--out", tmp_path / "x.jsonl"],
            "give natural, capped, a number, or one of",
        ),
        (["--plot", tmp_path / "a.html"], "ends in .svg, .pdf or .png"),
        (["--tokenizer", tmp_path], "name a folder with a tokenizer.json"),
        (["--tokenizer", tmp_path.parent], "tokenizer.json: no such file"),
        (["--tokenizer", "no such thing"], "name a folder with a tokenizer.json"),
        (["--programs", tmp_path / "bad.jsonl"], "bad.jsonl:1: id: Field required"),
        (["--programs", tmp_path / "none.jsonl"], "no such file"),
    ]:
        result = run(*(["--programs", uneven] if "--programs" not in args else []), *args)
        assert isinstance(result.exception, BadInput) and says in str(result.exception)
        assert "\n" not in str(result.exception)


@pytest.mark.parametrize(("form", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_odd_names_are_drawn_in_every_format(form: str, start: bytes) -> None:
    odd = PROGRAMS[0].model_copy(update={"cwe": "CWE-999999", "weakness": "$\\frac{ _x^ \x07 \u202e"})
    assert concept_plot(describe([odd]), form).startswith(start)


def test_odd_names_move_no_cursor_in_the_table() -> None:
    odd = PROGRAMS[0].model_copy(update={"cwe": "CWE-999999", "weakness": "a\x1b[2Jb"})
    shown = io.StringIO()
    Console(file=shown, width=200).print(concept_table(describe([odd])))
    assert r"a\u001b[2Jb" in shown.getvalue() and "\x1b" not in shown.getvalue()


def test_of_a_mixed_file_the_evenness_over_domains_is_told(tmp_path: Path) -> None:
    plants = load_programs(domain="houseplants")[:4]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(p.model_dump_json(exclude_none=True) + "\n" for p in [*PROGRAMS[:8], *plants]))
    result = run("--programs", path, "--json", tmp_path / "a.json")
    said = f"domains: code 8, houseplants 4; evenness over them {evenness([8, 4]):.3f}"
    assert said in result.output and json.loads((tmp_path / "a.json").read_text())["domains"] == {
        "code": 8,
        "houseplants": 4,
    }
    assert describe(PROGRAMS).domain_evenness is None
