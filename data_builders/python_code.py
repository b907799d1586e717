"""What can be read off Python code without running it."""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import get_args

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


def normal_code(code: str) -> str:
    """`code` as it stands between a chat template's marks: `\\n` ends lines, no indentation in common, nothing around.

    Templates trim answers; where one side of a pair loses white space, or a completion cannot be found in what the
    template made of it, something else is trained than was written.
    """
    return textwrap.dedent("\n".join(re.split(r"\r\n?|\n", code))).strip()


_STATEMENT = (ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign, ast.Return, ast.Assert, *get_args(Definition))
_MARK = re.compile(r"[\[<{(#`'\"=*@-]|\d+\s*$")


def _is_code(line: str, known: set[str]) -> bool:
    """Whether a line of a request is surely code: it stands in the program, or is a statement by itself."""
    text = line.strip()
    if text in known:
        return True
    tree = parsed(f"{text} pass" if text.endswith(":") else text)
    if not tree or len(tree.body) != 1:
        return False
    node = tree.body[0]
    return isinstance(node, _STATEMENT) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))


def _is_prose(line: str) -> bool:
    return bool(re.match(r"[^\W\d_]", line) and (len(line.split()) > 2 or re.search(r"[.?!:]\s*$", line)))


def code_span(request: str, template: str | None, program: str) -> tuple[int, int]:
    """Where the code stands in a request, (start, end) in characters, with its marks; start = end if there is none.
    `program` is code that was written for the request, and so repeats its template, whether that is known or not."""
    if template and template.strip() in request:
        program += "\n" + template
    known = {line.strip() for line in program.splitlines()} - {""}
    lines = request.splitlines(keepends=True)
    surely = [number for number, line in enumerate(lines) if _is_code(line, known)]
    if not surely:
        return len(request), len(request)
    first, last = surely[0], surely[-1] + 1
    # Marks stand around the code, with or without blank lines; other lines belong to it where nothing parts them.
    for above in (n for n in reversed(range(first)) if lines[n].strip()):
        if not (_MARK.match(lines[above]) or (above == first - 1 and not _is_prose(lines[above]))):
            break
        first = above
    for below in (n for n in range(last, len(lines)) if lines[n].strip()):
        if not (_MARK.match(lines[below]) or (below == last and not _is_prose(lines[below]))):
            break
        last = below + 1
    return len("".join(lines[:first])), len("".join(lines[:last]).rstrip())
