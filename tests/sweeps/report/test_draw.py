"""Plots are whole SVG, whatever the numbers and names are."""

import math
import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from eval.stats.intervals import Estimate
from sweeps.report.draw import Series, curves, dots, heat, ticks

NUMBER = st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.just(0.0))
ESTIMATE = st.builds(lambda v, d: Estimate(v, v - abs(d), v + abs(d), 8), NUMBER, st.floats(0, 10))
NAME = st.sampled_from(["a", "<script>alert(1)</script>", '"><x y="', "&amp;", "漢字"])


def parsed(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    tags = {element.tag.removeprefix("{http://www.w3.org/2000/svg}") for element in root.iter()}
    assert tags <= {"svg", "title", "rect", "text", "line", "circle", "polyline"} and "nan" not in svg
    return [element.text or "" for element in root.iter()]


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), ESTIMATE), max_size=6), NAME, st.booleans(), st.booleans())
def test_curves(points: list[tuple[float, Estimate]], name: str, log_x: bool, percent: bool) -> None:
    words = parsed(curves(name, "x", "y", [Series(name, points), Series("b", points)], log_x, percent))
    assert name in words
    assert parsed(dots(name, [(name, e, [e.value]) for _, e in points], percent))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), NAME)
def test_a_cell_without_answers_is_no_zero(hits: list[int], name: str) -> None:
    words = parsed(heat(name, [f"q{n}" for n in range(len(hits))], [(name, [(h, 9) for h in hits])]))
    assert f"{100 * hits[0] / 9:.0f} / 9" in words
    assert "-" in parsed(heat(name, ["q"], [(name, [(0, 0)])]))


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-6 * span - 1e-9 <= tick <= low + span * (1 + 1e-6) + 1e-9 for tick in found)
