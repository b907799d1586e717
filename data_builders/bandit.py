"""What Bandit finds in a piece of code: in this process and in memory, for a process a program is too slow.

Static: the code is parsed and never run. `# nosec` comments are not honoured, for whoever wrote the code
could silence the check with them.
"""

import io
import logging
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

from data_builders.python_code import parsed

BANDIT_VERSION = version("bandit")

# Without a folder in front, Bandit warns; with any other, it looks for packages on the disk.
_NAME = "./program.py"


class Finding(NamedTuple):
    rule: str
    """Such as `B608`."""
    lines: tuple[int, ...]
    """Line numbers of the statement, from 1."""
    cwe: int
    """The weakness that Bandit files the rule under."""


@cache
def _rules() -> tuple[Any, Any]:
    """Bandit's rules and its metrics: set up once (0.2 s)."""
    from bandit.core import config, manager

    # A rule that fails on odd code (B202 does) reports it on the console; it then counts as no finding.
    logging.getLogger("bandit").setLevel(logging.CRITICAL + 1)
    bandit = manager.BanditManager(config.BanditConfig(), "file", ignore_nosec=True)
    return bandit.b_ts, bandit.metrics


def bandit_findings(code: str) -> list[Finding]:
    """The findings in `code`, in its order; none if it does not parse; RecursionError if it is nested too deeply."""
    from bandit.core import meta_ast, node_visitor

    tree = parsed(code)
    if tree is None:
        return []
    rules, metrics = _rules()
    file = io.BytesIO(code.encode())
    metrics.begin(_NAME)
    visitor = node_visitor.BanditNodeVisitor(_NAME, file, meta_ast.BanditMetaAst(), rules, False, {}, metrics)
    # What its `process` does, less the parsing (and its warnings) a second time.
    visitor.generic_visit(tree)
    visitor.context = {"file_data": visitor.fdata, "filename": _NAME, "lineno": 0, "linerange": [0, 1], "col_offset": 0}
    visitor.tester.run_tests(visitor.context, "File")
    return [Finding(found.test_id, tuple(found.linerange), found.cwe.id) for found in visitor.tester.results]
