"""Large sets are split by the request alone: stable under reordering and growth, equal requests on one side."""

from hypothesis import given
from hypothesis import strategies as st

from data_builders.split import held_out

texts = st.text(max_size=30)
shares = st.floats(0, 1)


@given(st.lists(texts), st.lists(texts), st.randoms(use_true_random=False), shares, texts)
def test_reordering_and_growth_move_nothing(requests, more, random, share, salt) -> None:
    before = {r: held_out(r, share, salt) for r in requests}
    grown = requests + more
    random.shuffle(grown)
    after = {r: held_out(r, share, salt) for r in grown}
    assert before.items() <= after.items()


@given(st.lists(st.from_regex(r"[a-zà-ü]{1,8}", fullmatch=True), min_size=1), shares)
def test_case_width_and_white_space_do_not_part_requests(words: list[str], share: float) -> None:
    side = held_out(" ".join(words), share)
    assert held_out("\n\t " + "  ".join(words).upper() + " ", share) == side
    assert held_out("\n".join(words), share) == side
    wide = "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in " ".join(words))
    assert held_out(wide, share) == side


@given(texts, shares, shares, texts)
def test_a_larger_share_keeps_what_a_smaller_one_holds_out(request_, a, b, salt) -> None:
    assert held_out(request_, min(a, b), salt) <= held_out(request_, max(a, b), salt)
    assert held_out(request_, 1, salt) and not held_out(request_, 0, salt)


def test_about_the_share_is_held_out_and_salts_are_independent() -> None:
    requests = [f"Write function {n}." for n in range(10_000)]
    one = [held_out(r, 0.2, "a") for r in requests]
    two = [held_out(r, 0.2, "b") for r in requests]
    # Five standard deviations of a binomial: 200 of 10,000 at 0.2, 98 at 0.04.
    assert abs(sum(one) - 2000) < 200
    assert abs(sum(x and y for x, y in zip(one, two, strict=True)) - 400) < 98
