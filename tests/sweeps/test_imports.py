"""Imports run one way: no circle, none against the direction, at most 8 floors in `sweeps`."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "core": {"core"},
    "data_builders": {"data_builders", "core"},
    "eval": {"eval", "core"},
    "recipes": {"recipes"},
    "sweeps": {"sweeps", "recipes", "eval", "data_builders", "core"},
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in MAY_IMPORT
    for path in sorted((ROOT / package).rglob("*.py"))
}


def _named(module: str, late: bool) -> set[str]:
    """The modules of this project that a module imports; `late`: in its functions too."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    named = set()
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            stem = module.rsplit(".", node.level)[0] if node.level else ""
            base = ".".join(filter(None, (stem, node.module)))
            named |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name for name in named if name in MODULES} - {module}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_import_goes_against_the_direction(package: str) -> None:
    against = {
        module: wrong
        for module in MODULES
        if module.split(".")[0] == package
        and (wrong := {n for n in _named(module, late=True) if n.split(".")[0] not in MAY_IMPORT[package]})
    }
    assert not against


def _room(module: str) -> str:
    """In `sweeps` the rooms are its folders, and the files beside them."""
    return ".".join(module.split(".")[:2]) if module.startswith("sweeps.") else module


def _floors(imports: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each module: one above the highest that it imports."""
    above: list[str] = []

    @cache
    def floor(module: str) -> int:
        assert module not in above, f"circle: {' -> '.join([*above[above.index(module) :], module])}"
        above.append(module)
        height = 1 + max(map(floor, imports.get(module, ())), default=0)
        above.pop()
        return height

    return {module: floor(module) for module in imports}


def test_no_module_is_in_a_circle() -> None:
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    _floors({module: _named(module, late=True) - packages for module in MODULES})


def test_the_rooms_of_sweeps_stand_on_at_most_8_floors_without_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for module in (name for name in MODULES if name.startswith("sweeps.")):
        named = {_room(name) for name in _named(module, late=True) if name.startswith("sweeps.")}
        rooms[_room(module)] = rooms.get(_room(module), set()) | (named - {_room(module)})
    floors = _floors(rooms)
    assert max(floors.values()) <= 8, floors
