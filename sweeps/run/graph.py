"""The runs of a sweep as a graph, keyed by content: what builds on what, what is to be done, what is lost."""

from collections import Counter
from collections.abc import Iterable, Mapping

from sweeps.run.folder import Run

Graph = Mapping[str, Run]
"""Runs by digest, each after all that it builds on."""


def with_all_before(last: Iterable[Run]) -> dict[str, Run]:
    """Runs and what they build on, each once, in an order in which they can be executed."""
    runs: dict[str, Run] = {}
    for run in last:
        for each in (*with_all_before(run.after).values(), run):
            runs.setdefault(each.digest, each)
    return runs


def shared(runs: Graph) -> int:
    """How many runs several others build on, evaluations aside."""
    uses = Counter(before.digest for run in runs.values() if run.stage != "evaluate" for before in run.after)
    return sum(count > 1 for count in uses.values())


def wanted(runs: Graph) -> set[str]:
    """The runs that are to be done: those not done, less merges of which all that builds on them is done.

    A merged model may have been deleted (`emsweep clean`) when all that builds on it was done.
    """
    todo: set[str] = set()
    needed: set[str] = set()
    used = {before.digest for run in runs.values() for before in run.after}
    for digest, run in reversed(list(runs.items())):
        if not run.done and (run.stage != "merge" or digest in needed or digest not in used):
            todo.add(digest)
            needed |= {before.digest for before in run.after}
    return todo


def lost(runs: Graph, failed: str) -> list[str]:
    """The digests of all runs that build on a failed one, through others too."""
    gone = [failed]
    for digest, run in runs.items():
        if any(before.digest in gone for before in run.after):
            gone.append(digest)
    return gone[1:]
