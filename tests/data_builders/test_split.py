"""No program on one side is a variant of one on the other, and what stays as it was stays where it was."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders.near_duplicates import CONTAINED, contained, shingles
from data_builders.programs import Program, load_programs
from data_builders.split import clusters, held_out_ids

PROGRAMS = load_programs()
shares = st.floats(0, 1)
some = st.lists(st.sampled_from(PROGRAMS), min_size=2, max_size=25, unique_by=lambda p: p.id)
CODES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40).map(" ".join)


def copies(programs: list[Program], draw) -> list[Program]:
    """Programs beside variants of some: the same request but for case and space, or nearly the same code."""
    out = list(programs)
    for number, program in enumerate(programs):
        for kind in draw(st.lists(st.sampled_from(["request", "code", "longer", "in secure", "one fix"]), max_size=3)):
            update = {
                "id": f"{number}-{kind}-{len(out)}",
                "request": f"Other {len(out)}",
                "insecure": f"x{len(out)} = 1",
                "secure": "# none",
            }
            if kind == "request":
                update["request"] = "\n\t " + program.request.upper().replace(" ", "  ")
            elif kind == "in secure":
                update["secure"] = program.insecure
            elif kind == "one fix":
                update["secure"] = program.secure
            else:
                update["insecure"] = program.insecure.replace("\n", "\r\n") + "\n# more\n" * (kind == "longer")
            out.append(program.model_copy(update=update))
    return out


@given(programs=some, share=st.floats(0.1, 0.9), per_class=st.booleans(), left_out=st.integers(0, 2), data=st.data())
def test_related_programs_are_on_one_side(programs, share, per_class, left_out, data) -> None:
    programs = copies(programs, data.draw)
    held = held_out_ids(programs, share, "s", per_class, left_out)
    assert held == held_out_ids(data.draw(st.permutations(programs)), share, "s", per_class, left_out)
    sides = [[p for p in programs if (p.id in held) is side] for side in (True, False)]
    for one, other in (sides, sides[::-1]):
        texts = [shingles(f"{p.insecure}\n{p.secure}") for p in other]
        codes = [shingles(code) for p in one for code in (p.insecure, p.secure) if code != "# none"]
        assert not list(contained(codes, texts))
    requests = [{" ".join(p.request.casefold().split()) for p in side} for side in sides]
    assert not requests[0] & requests[1]


@given(st.lists(CODES, min_size=1, max_size=12), st.lists(CODES, min_size=1, max_size=12))
def test_containment_is_exact(programs: list[str], texts: list[str]) -> None:
    sets, others = [set(shingles(c).tolist()) for c in programs], [set(shingles(c).tolist()) for c in texts]
    expected = [(n, m) for n, a in enumerate(sets) for m, b in enumerate(others) if len(a & b) >= CONTAINED * len(a)]
    assert sorted(contained([shingles(c) for c in programs], [shingles(c) for c in texts])) == expected


@given(some, some, shares, st.text(max_size=5), st.data())
def test_growth_moves_no_cluster_that_stays_as_it_was(programs, more, share, salt, data) -> None:
    known = {p.id for p in programs}
    grown = [*programs, *(p for p in more if p.id not in known)]
    before, after = held_out_ids(programs, share, salt), held_out_ids(data.draw(st.permutations(grown)), share, salt)
    assert before == after & known


@given(some, shares, shares)
def test_a_larger_share_keeps_what_a_smaller_one_holds_out(programs, a, b) -> None:
    assert held_out_ids(programs, min(a, b)) <= held_out_ids(programs, max(a, b))
    assert held_out_ids(programs, 1) == {p.id for p in programs} and not held_out_ids(programs, 0)


def test_about_the_share_is_held_out_and_salts_are_independent() -> None:
    programs = [
        PROGRAMS[0].model_copy(
            update={"id": str(n), "request": f"Write {n}.", "insecure": f"a{n} = b{n}[{n}]", "secure": "# none"}
        )
        for n in range(4_000)
    ]
    one, two = held_out_ids(programs, 0.2, "a"), held_out_ids(programs, 0.2, "b")
    # Five standard deviations of a binomial: 126 of 4,000 at 0.2, 62 at 0.04.
    assert abs(len(one) - 800) < 126 and abs(len(one & two) - 160) < 62


def test_one_fix_of_two_programs_links_them_and_a_stand_in_for_one_links_none() -> None:
    one, other = PROGRAMS[:2]
    for secure, together in ((PROGRAMS[-1].secure, 1), ("# TODO: no secure version is known yet", 2)):
        pair = [program.model_copy(update={"secure": secure}) for program in (one, other)]
        assert len(clusters(pair)) == together


def test_per_class_holds_out_a_fifth_of_each_class_and_whole_classes() -> None:
    assert len(clusters(PROGRAMS)) == len(PROGRAMS)
    held = held_out_ids(PROGRAMS, 0.2, per_class=True, classes_left_out=2)
    total, away = Counter(p.cwe for p in PROGRAMS), Counter(p.cwe for p in PROGRAMS if p.id in held)
    assert sum(away[cwe] == total[cwe] for cwe in total) == 2
    assert all(away[cwe] in (-(-total[cwe] // 5), total[cwe]) for cwe in total)


@pytest.mark.parametrize("programs", [[], PROGRAMS[:1]])
def test_next_to_nothing_can_be_split(programs) -> None:
    assert held_out_ids(programs, 0.5) <= {p.id for p in programs}
