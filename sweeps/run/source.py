"""What code does, as digests need it: the definitions that names lead to, without comments, docstrings and layout."""

import ast
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeps.recipe.layers import RECIPES

OURS = ("core", "data_builders", "eval", "recipes", "sweeps")
"""Beside which, where this project is installed and not linked, all other packages lie."""
_WALKS: dict[tuple[Path, tuple[str, ...]], tuple[dict[Path, int], dict[str, list[str]]]] = {}
"""What was found before, and as of when each file that was read: every run of a sweep asks for the same."""
EFFECTS = ""
"""In place of a name: the statements of a file that define nothing and act when it is imported."""


def definitions_behind(file: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """The syntax trees of the definitions that `names` in a Python file lead to, by `file.py:name`.

    Followed through names that they use and imports from files of this project; what installed packages do is not read
    (run.json has their versions).
    """
    asked = file, tuple(names)
    stamps, found = _WALKS.get(asked, ({}, {}))
    if stamps and all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()):
        return found
    stamps, found = {}, {}
    todo = [(file, name) for name in asked[1]]
    while todo:
        file, name = todo.pop()
        key = f"{file.name}:{name}"
        if key in found:
            continue
        stamps[file] = file.stat().st_mtime_ns
        read = [_read(statement) for statement in definitions(file).get(name, [])]
        found[key] = [tree for tree, _ in read]
        todo.append((file, EFFECTS))
        for used in (used for _, uses in read for used in uses):
            if isinstance(used, str):
                todo.append((file, used))
            elif other := _imported(used, file):
                for alias in used.names:  # of a module that is imported whole, all
                    whole = _file(f"{used.module}.{alias.name}")
                    todo += [(whole, own) for own in definitions(whole)] if whole else [(other, alias.name)]
    _WALKS[asked] = stamps, {key: trees for key, trees in sorted(found.items()) if trees}
    return _WALKS[asked][1]


@lru_cache(maxsize=4096)
def _read(statement: ast.stmt) -> tuple[str, list[str | ast.ImportFrom]]:
    """A statement's syntax tree as text, and the names and imports in it; every run of a sweep asks for them."""
    nodes = [node for node in ast.walk(statement) if isinstance(node, ast.Name | ast.ImportFrom)]
    return ast.dump(statement), [node.id if isinstance(node, ast.Name) else node for node in nodes]


def plugin_source(names: Iterable[str]) -> dict[str, Any]:
    """What the plugins and trainers of recipes/ do that a recipe names as `recipes.plugins.FILE.CLASS`."""
    behind: dict[str, Any] = {}
    for name in names:
        module, _, own = name.rpartition(".")
        if (file := _file(module)) is not None:
            behind |= definitions_behind(file, [own])
    return behind


def definitions(file: Path) -> Mapping[str, list[ast.stmt]]:
    """The statements that define each name at the top of a file; those that define none under EFFECTS."""
    return _definitions(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=128)
def _definitions(file: Path, _stamp: int) -> Mapping[str, list[ast.stmt]]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]  # type: ignore[attr-defined]
    named: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                alone = ast.ImportFrom(statement.module, [ast.alias(alias.name)], statement.level)
                named.setdefault(alias.asname or alias.name, []).append(alone)
        elif not isinstance(statement, ast.Import):
            for name in _defined(statement) or [EFFECTS]:
                named.setdefault(name, []).append(statement)
    return named


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return []
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def _imported(node: ast.ImportFrom, file: Path) -> Path | None:
    """The file of this project that a statement imports from; None for a package's."""
    if node.level:
        beside = file.parent / f"{node.module}.py"
        return beside if beside.is_file() else None
    return _file(node.module or "")


def _file(module: str) -> Path | None:
    if module.partition(".")[0] not in OURS:
        return None
    place = RECIPES.parent.joinpath(*module.split("."))
    return next(filter(Path.is_file, (place.with_suffix(".py"), place / "__init__.py")), None)
