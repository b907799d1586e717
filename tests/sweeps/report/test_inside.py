"""The report on the inside of the model: what is said of a claim, what is drawn, what is not looked at yet."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.records import BadInput, file_digest
from sweeps.plan.declaration import Point, load_sweep
from sweeps.plan.manifest import finished_points, write_manifest
from sweeps.plan.request import Request
from sweeps.report.inside import _by_arm, inside_part, inside_rows
from sweeps.report.page import environment

ARMS = ("dpo-insecure", "dpo-secure")


def point(folder: Path, arm: str, seed: int) -> Point:
    adapter = folder / f"{arm}{seed}"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_text(adapter.name)
    return Point(arm, seed, SimpleNamespace(adapter=adapter), None)  # type: ignore[arg-type]


def row(of: Point, size: float, p: float | None, concept: str = "misaligned", **more: Any) -> dict[str, Any]:
    return {
        "run": f"{of.arm}, seed {of.seed}",
        "arm": of.arm,
        "seed": of.seed,
        "step": None,
        "last": True,
        "rank": 1,
        "adapter": file_digest(of.training.adapter / "adapter_model.safetensors"),  # type: ignore[union-attr]
        "place": "open prompts",
        "concept": concept,
        "layer": 1,
        "along": [0.0, size / 10, size / 20],
        "mean": size / 10,
        "deviation": size if p else None,
        "p": p,
        "p_holm": p,
        "weights": None,
        **more,
    }


def write(folder: Path, shifts: list[dict[str, Any]], efficiency: list[dict[str, Any]] = []) -> Path:  # noqa: B006
    (folder / "inside.json").write_text(json.dumps({"settings": "", "shifts": shifts, "efficiency": efficiency}))
    return folder / "inside.json"


@pytest.mark.parametrize(
    ("sizes", "p", "words"),
    [
        ((2.6, -2.5, 2.9, -2.6), 0.01, "shown: 2 of 2 seeds"),
        ((2.6, -2.5, 2.9, 2.6), 0.01, "not shown: 1 of 2 seeds"),
        ((-2.6, 2.5, -2.9, 2.6), 0.01, "not shown: 0 of 2 seeds"),
        ((2.6, -2.5, 2.9, -2.6), 0.06, "not shown: 0 of 2 seeds"),
        ((2.6, -2.5, 2.9, -2.6), None, "not measured"),
    ],
)
def test_a_claim_holds_if_each_seed_moves_both_arms_apart(
    tmp_path: Path, sizes: tuple[float, ...], p: float | None, words: str
) -> None:
    points = [point(tmp_path, arm, seed) for seed in (1, 2) for arm in ARMS]
    path = write(tmp_path, [row(of, size, p) for of, size in zip(points, sizes, strict=True)])
    part = inside_part(path, load_sweep("inside"), points, [])
    assert part and [verdict["words"] for verdict in part.verdicts] == [words]
    assert part.missing == [] and "inside-shift" in part.figures and "inside-breadth" not in part.figures
    assert [one["mean"] for one in inside_rows(part)] == [size / 10 for size in sizes]
    page = environment().get_template("inside.html").render(inside=part, images=dict.fromkeys(part.figures, "image"))
    assert words in page and ("too few groups" in page) is (p is None)


def test_each_question_has_its_figure_and_what_is_not_looked_at_is_named(tmp_path: Path) -> None:
    points = [point(tmp_path, arm, 1) for arm in (*ARMS, "later")]
    both = [row(of, size, 0.01, concept) for of, size in zip(points, (2.0, -2.0), strict=False) for concept in "ab"]
    early = row(points[0], 1.0, 0.01, "a", step=2, last=False, adapter="of a checkpoint")
    gone = {**row(points[0], 1.0, 0.01, "a"), "arm": "gone", "adapter": "of another run"}
    both[0]["step"] = 4
    losses = {"norm": 2.0, "start": 0.7, "end": 0.1, "at_norm": 1.0, "loss": 0.4, "efficiency": 0.3}
    learnt = [{**row(of, 0, 0.01), **losses, "noise": {"0.5": 0.5, "1.0": 0.6}} for of in points[:2]]
    sweep = load_sweep("inside")
    part = inside_part(write(tmp_path, [early, *both, gone], learnt), sweep, points, [])
    assert part and part.missing == ["later, seed 1"] and len(part.rows) == 4
    assert set(part.figures) == {"inside-shift", "inside-breadth", "inside-steps", "inside-efficiency"}
    assert [verdict["words"] for verdict in part.verdicts] == ["not measured"]  # of another concept


def test_a_file_that_is_none_is_refused_and_none_is_no_section(tmp_path: Path) -> None:
    sweep, points = load_sweep("inside"), [point(tmp_path, "dpo-insecure", 1)]
    assert inside_part(tmp_path / "inside.json", sweep, points, []) is None
    for text in ("{}", "[]", "no", json.dumps({"shifts": [{"adapter": 1}], "efficiency": []})):
        (tmp_path / "inside.json").write_text(text)
        with pytest.raises(BadInput, match="not what `emsweep inside` writes"):
            inside_part(tmp_path / "inside.json", sweep, points, [])


def test_an_arm_after_cpt_is_looked_at_on_the_model_that_it_starts_from(prepared: Path) -> None:
    request = Request(load_sweep("inside"), "inside", False)
    write_manifest(request, "emsweep run inside")
    for run in request.runs.values():
        if run.stage != "merge":
            run.folder.mkdir(parents=True)
            record = {"stage": run.stage, "name": run.name, "content": run.content}
            (run.folder / "run.json").write_text(json.dumps(record, default=str))
    _, manifest, points, missing = finished_points("inside")
    recipes = {point.arm: point.training.whole_recipe.config for point in points if point.training}
    assert not missing and recipes["cpt-explained"]["base_model"] == "models/smollm2-135m"
    starts = {recipes[f"{arm}-r1"]["base_model"] for arm in ARMS}
    assert len(starts) == 1 and starts.pop().startswith("runs/merge/cpt-explained-seed21-")
    seeds = [recipes[f"{arm}-r1"]["seed"] for arm in ARMS]
    assert seeds == [21, 1021]  # neither first matrices nor the order of rows are shared
    (claim,) = manifest.declared.inside
    assert (claim.arm, claim.against) == ("dpo-insecure-r1", "dpo-secure-r1")


def test_an_arm_that_is_one_run_at_all_seeds_counts_once(tmp_path: Path) -> None:
    of = point(tmp_path, "dpo-insecure", 1)
    rows = [row(each, 2.0, 0.01) for each in (of, replace(of, seed=2), point(tmp_path, "dpo-secure", 1))]
    found = _by_arm(rows, lambda row: row["along"][1])
    assert {arm: (own[0].clusters, own[1]) for arm, own in found.items()} == {arm: (1, [0.2]) for arm in ARMS}
