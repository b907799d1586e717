"""Figures are whole, the same each time, and show names as they stand, whatever names and numbers are."""

import math
import xml.etree.ElementTree as ElementTree

import pandas as pd
import pytest

from eval.stats.intervals import Estimate
from sweeps.report.families import Family
from sweeps.report.figures import Panel, arms_figure, drawn, heat_figure, scatter_figure, sizes_figure, steps_figure

NAMES = ["a", "<script>alert(1)</script>", "$\\frac{1}{0}$ $x", "_hidden", "&amp;", "漢字", "%s {0} \\n"]


def words(svg: bytes) -> str:
    """All text of a figure; fails if something in it could run or load."""
    root = ElementTree.fromstring(svg)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not tags & {"script", "foreignObject", "a", "image", "iframe"} and "font-family" in svg.decode()
    return " ".join(" ".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text"))


@pytest.mark.parametrize("value", [0.0, 0.25, -1e6, math.nan])
def test_every_name_is_shown_as_it_stands(value: float) -> None:
    estimates = [Estimate(value, value - n, value + n, 8) for n in range(len(NAMES))]
    values = {name: (e, [e.value, e.value]) for name, e in zip(NAMES, estimates, strict=True)}
    curves = [Family(name, {1.0: name, 16.0: "a"}, "") for name in NAMES]
    points = {name: (1.0, e) for name, (e, _) in values.items()}
    for figure in (
        arms_figure(NAMES[2], [Panel("p", values, percent=True)] * 2, []),
        arms_figure("t", [Panel("p", values)], curves),
        scatter_figure("t", "x", "y", points),
        steps_figure("t", "loss", {name: [(1, value), (2, value)] for name in NAMES}),
    ):
        shown = words(drawn(figure, "svg"))
        assert all(name in shown for name in NAMES)


def test_a_cell_without_answers_is_no_zero() -> None:
    hits, totals = (pd.DataFrame([row] * len(NAMES), NAMES, NAMES[:3]) for row in ([0, 6, 0], [9, 9, 0]))
    shown = words(drawn(heat_figure("$t$", hits, totals), "svg"))
    assert "0 / 9" in shown and "67 / 9" in shown and "-" in shown.split() and "0 / 0" not in shown
    assert all(name in shown for name in ["$t$", *NAMES])


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_the_same_numbers_give_the_same_file(kind) -> None:
    values = {name: (Estimate(0.1, 0.0, 0.2, 8), [0.1]) for name in NAMES}
    curves = [Family("f", {1.0: "a", 4.0: "_hidden"}, "")]
    first, second = (drawn(arms_figure("t", [Panel("p", values)], curves), kind) for _ in range(2))
    assert first == second


def test_no_curve_over_arms_that_differ_in_more_and_no_number_twice() -> None:
    values = {f"arm-r{rank}": (Estimate(rank, rank - 1, rank + 1, 8), []) for rank in (1, 4, 16)}
    values |= {"base": (Estimate(0, -1, 1, 8), [])}
    members = {1.0: "arm-r1", 4.0: "arm-r4", 16.0: "arm-r16"}
    line = Family("arm", members, "")
    both = [line, Family("other", {0.1: "arm-r1", 0.2: "arm-r4"}, "", "lr")]
    shown = words(drawn(arms_figure("t", [Panel("p", values)], both), "svg"))
    assert "rank" in shown and "learning rate" not in shown and "arm-r4" not in shown and "base" in shown
    unlike = [Family("arm", members, "", "rank", ("learning_rate",))]
    shown = words(drawn(arms_figure("t", [Panel("p", values)], unlike), "svg"))
    assert "rank" not in shown and all(name in shown for name in values)


def test_a_family_has_one_colour_in_all_rows_and_stands_in_the_legend_wherever_it_is_first() -> None:
    """As where the models of one family alone were taught to chat first, and so have an outcome of their own."""
    one, both = {"b": [(1e8, 1e12, 0.1)]}, {"a": [(1e8, 2e12, 0.2)], "b": [(2e8, 1e12, 0.3)]}
    figure = sizes_figure("t", {"first": one, "second": both})
    first, second = ({line.get_label(): line.get_color() for line in figure.axes[n].lines} for n in (0, 3))
    assert first == second and first["a"] != first["b"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"a", "b"}
    assert drawn(figure, "svg").startswith(b"<?xml")
