"""What can be read off Python code without running it."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from functools import lru_cache

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_HEADER = re.compile(r"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+\w+", re.MULTILINE)
_HEADER_LINES = 20


@lru_cache(maxsize=64)  # several checks in a row look at the same code
def parsed(code: str) -> ast.Module | None:
    """The syntax tree, not to be changed; None if the code is not Python (or nested too deeply for the parser)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "invalid escape sequence": the code's fault, not the user's
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def parses(code: str) -> bool:
    return parsed(code) is not None


def public_names(tree: ast.Module) -> set[str]:
    """Public functions and classes at the top, and public methods of these classes (`Class.method`)."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            names.add(node.name)
            if isinstance(node, ast.ClassDef):
                inner = (member.name for member in node.body if isinstance(member, Definition))
                names.update(f"{node.name}.{name}" for name in inner if not name.startswith("_"))
    return names


def statements(tree: ast.Module) -> int:
    """How many statements there are, nested ones included; docstrings and other bare constants do not count."""
    return sum(
        isinstance(node, ast.stmt) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in ast.walk(tree)
    )


def signature(node: Definition) -> str:
    """`def name(arguments)` or `class name`, in one spelling."""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    return f"{'async ' * isinstance(node, ast.AsyncFunctionDef)}def {node.name}({ast.unparse(node.args)})"


def signatures(tree: ast.Module) -> set[str]:
    """The signatures of all functions and classes, nested ones included."""
    return {signature(node) for node in ast.walk(tree) if isinstance(node, Definition)}


def template_signatures(template: str) -> Iterator[str]:
    """The signatures in a code template, which need not be Python as a whole: each header is read by itself."""
    for found in _HEADER.finditer(template):
        lines = textwrap.dedent(template[found.start() :]).splitlines()
        for end in range(1, min(len(lines), _HEADER_LINES) + 1):
            head = "\n".join(lines[:end])
            tree = parsed(f"{head} pass") or parsed(head)
            if tree and tree.body and isinstance(tree.body[0], Definition):
                yield signature(tree.body[0])
                break
