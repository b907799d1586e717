"""Which programs are trained on, and which are kept for measuring.

Programs stand together that have one request, or of which one's code contains nearly all of the other's insecure or
secure code: they are variants of one program, and to be measured on one after training on another measures memory. Such
clusters are parted as a whole, by hashes: not by the order of the file.
"""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from core.records import digest
from data_builders.near_duplicates import contained, measured_codes, shingles
from data_builders.programs import Program

SALT = "split-1"


def clusters(programs: Sequence[Program]) -> list[list[Program]]:
    """Groups of programs that are linked by one request (but for case, width and space) or by nearly the same code."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    twins = [(shingles(program.insecure), shingles(program.secure)) for program in programs]
    codes = list(measured_codes(twins))
    found = contained([code for _, code in codes], [np.union1d(*sides) for sides in twins])
    links = [(codes[code][0], place) for code, place in found]
    first: dict[str, int] = {}
    for place, program in enumerate(programs):
        normal = " ".join(unicodedata.normalize("NFKC", program.request).casefold().split())
        links.append((place, first.setdefault(normal, place)))
    size = len(programs)
    graph = coo_array((np.ones(len(links)), np.array(links).reshape(-1, 2).T), shape=(size, size))
    groups: dict[int, list[Program]] = defaultdict(list)
    for program, label in zip(programs, connected_components(graph, directed=False)[1], strict=True):
        groups[int(label)].append(program)
    return list(groups.values())


def held_out_ids(
    programs: Sequence[Program], share: float, salt: str = SALT, per_class: bool = False, classes_left_out: int = 0
) -> set[str]:
    """The ids of the programs that training must not see; another `salt` gives another, independent split.

    Args:
        share: of the clusters, 0 to 1. About so many are held out, by a hash of each alone: a set that grows moves no
            cluster that stays as it was, and a larger share keeps what a smaller one holds out.
        per_class: of each class just this share, rounded up. For small sets; those may move when they grow.
        classes_left_out: so many whole classes are held out, and what stands together with their programs.
    """

    def rank(text: str) -> str:
        return digest(f"{salt}\0{text}".encode())

    away = set(sorted({p.cwe for p in programs}, key=rank)[:classes_left_out])
    held: set[str] = set()
    by_class: dict[str, list[tuple[str, list[Program]]]] = defaultdict(list)
    for cluster in clusters(programs):
        # Of the request that is first in the alphabet: the lowest hash of all would hold out the large clusters.
        place = rank(min(p.request for p in cluster))
        if {p.cwe for p in cluster} & away or (not per_class and int(place[:16], 16) < share * 2**64):
            held.update(p.id for p in cluster)
        else:
            by_class[min(cluster, key=lambda p: p.id).cwe].append((place, cluster))
    for members in by_class.values() if per_class else ():
        for _, cluster in sorted(members, key=lambda m: m[0])[: math.ceil(round(share * len(members), 9))]:
            held.update(p.id for p in cluster)
    return held
