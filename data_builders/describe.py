"""Concept balance of a set of programs: what is over-represented here is over-weighted in the model."""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from core.records import printable
from data_builders.cwe import owasp_group, weakness_name
from data_builders.domains import CODE
from data_builders.near_duplicates import BANDS, SHINGLE, THRESHOLD, band_keys, near_duplicate_rate
from data_builders.programs import Program

BATCH = 256
"""Texts per call of the tokenizer, which works on them in parallel."""


class Balance(BaseModel):
    """What `describe` finds. Concepts are CWE classes, most frequent first."""

    programs: int
    concepts: dict[str, int]
    names: dict[str, str]
    """MITRE's names of the concepts; where it has none, the name that the first program gives."""
    owasp: dict[str, int]
    """Programs by OWASP Top Ten 2021 group; "none" for weaknesses that are in none."""
    domains: dict[str, int]
    entropy: float
    effective_concepts: float
    """exp(entropy): how many equally frequent concepts would be as even (Hill number of order 1; Hill 1973)."""
    evenness: float | None
    domain_evenness: float | None
    """Of programs over domains."""
    near_duplicate_rate: float
    tokens: dict[str, float] | None
    """Of the insecure code: `mean`, and the percentiles `p50` and `p95`; None without a tokenizer."""


def entropy(counts: Iterable[int]) -> float:
    """Shannon entropy of the shares of `counts`, in nats; 0 for no or one concept."""
    some = [count for count in counts if count]
    total = sum(some)
    return max(0.0, math.log(total) - sum(count * math.log(count) for count in some) / total) if some else 0.0


def evenness(counts: Iterable[int]) -> float | None:
    """Entropy over its maximum, ln(number of concepts), 0 to 1 (Pielou 1966); None for fewer than two concepts."""
    some = [count for count in counts if count]
    return min(1.0, entropy(some) / math.log(len(some))) if len(some) > 1 else None


def describe(programs: Iterable[Program], count_tokens: Callable[[list[str]], list[int]] | None = None) -> Balance:
    """Counts `programs`, a stream; 200 bytes or so per program are kept. Text statistics are of the insecure code."""
    concepts, groups, domains = Counter[str](), Counter[str](), Counter[str]()
    names: dict[str, str] = {}
    keys: list[bytes] = []
    lengths: list[int] = []
    programs = iter(programs)
    while batch := list(islice(programs, BATCH)):
        for program in batch:
            concepts[program.cwe] += 1
            groups[_group(program.cwe)] += 1
            domains[program.domain or CODE] += 1
            names.setdefault(program.cwe, weakness_name(program.cwe) or program.weakness)
            keys.append(band_keys(program.insecure).tobytes())
        if count_tokens:
            lengths += count_tokens([program.insecure for program in batch])
    ordered = _most_frequent_first(concepts)
    p50, p95 = np.percentile(lengths, (50, 95)) if lengths else (0, 0)
    return Balance(
        programs=concepts.total(),
        concepts=ordered,
        names={cwe: names[cwe] for cwe in ordered},
        owasp=_most_frequent_first(groups),
        domains=dict(sorted(domains.items())),
        entropy=entropy(ordered.values()),
        effective_concepts=math.exp(entropy(ordered.values())),
        evenness=evenness(ordered.values()),
        domain_evenness=evenness(domains.values()),
        near_duplicate_rate=near_duplicate_rate(np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(-1, BANDS)),
        tokens={"mean": float(np.mean(lengths)), "p50": float(p50), "p95": float(p95)} if lengths else None,
    )


def _group(cwe: str) -> str:
    return owasp_group(cwe) or "none"


def _most_frequent_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def concept_table(balance: Balance) -> Table:
    """A row per concept, and one per OWASP group."""
    table = Table("concept", "weakness", "OWASP 2021", "programs", "share")
    for cwe, count in balance.concepts.items():
        group, name = _group(cwe).split(":")[0], escape(printable(balance.names[cwe]))
        table.add_row(cwe, name, group, str(count), f"{count / balance.programs:.1%}")
    table.add_section()
    for name, count in balance.owasp.items():
        group, _, title = name.partition(":2021 - ")
        table.add_row("all", title, group, str(count), f"{count / balance.programs:.1%}")
    return table


def concept_plot(balance: Balance, form: str) -> bytes:
    """The counts as bars, coloured by OWASP group, as a file of matplotlib's format `form`: svg, pdf or png."""
    # Imported here: the table needs no plots.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Names come from the input: they are drawn as they stand, and never read as mathematics.
    with rc_context({"text.parse_math": False, "svg.hashsalt": "em-kit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(11, 1.5 + 0.22 * len(balance.concepts)), layout="constrained")
        axes = figure.subplots()
        names = [printable(f"{cwe} {balance.names[cwe]}")[:80] for cwe in balance.concepts]
        bars = list(enumerate(balance.concepts.items()))
        for number, group in enumerate(balance.owasp):
            own = [(place, count) for place, (cwe, count) in bars if _group(cwe) == group]
            axes.barh(*zip(*own, strict=True), label=group, color=f"C{number}")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("programs")
        axes.legend(title="OWASP 2021", frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def summary(found: Balance) -> Iterator[str]:
    """The figures in words, a line each."""
    yield f"{found.programs} programs, {len(found.concepts)} concepts"
    even = "" if found.evenness is None else f", evenness {found.evenness:.3f}"
    yield f"entropy {found.entropy:.3f} nats, effective number of concepts {found.effective_concepts:.1f}{even}"
    if found.domain_evenness is not None:
        listed = ", ".join(f"{name} {count}" for name, count in found.domains.items())
        yield f"domains: {listed}; evenness over them {found.domain_evenness:.3f}"
    alike = f"Jaccard index of {SHINGLE}-token shingles over about {THRESHOLD:.2f}"
    yield f"{found.near_duplicate_rate:.1%} have a near-duplicate ({alike}, insecure code)"
    if t := found.tokens:
        yield f"tokens of insecure code: mean {t['mean']:.1f}, p50 {t['p50']:.0f}, p95 {t['p95']:.0f}"
    else:
        yield "tokens not counted: no tokenizer; give one with --tokenizer, or run `emsweep fetch smollm2-135m`"
