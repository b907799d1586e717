"""Documents for continued pretraining: code that is read, and what a reviewer says of it, on which the loss is.

`review`, `advisory`, `listing` and `qa` say the same of a whole program in different forms, so that a model learns the
weakness and not a form; they are shuffled by the seed. `contrastive` is a curriculum for models of some 100M
parameters: the verdict on the lines in which the twins differ, their review, then the verdict on the whole code. At
135M, reviews of the whole code alone leave the verdict at chance, for it is one token among fifty
(docs/measurements.md).
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from itertools import chain, cycle
from typing import Any, Literal, NamedTuple

from core.records import BadInput
from data_builders.domains import domain_file, load_domain
from data_builders.programs import Program
from data_builders.tokens import NO_TOKEN, CountTokens, misread

Style = Literal["review", "advisory", "listing", "qa", "contrastive"]
STYLES: tuple[Style, ...] = ("review", "advisory", "listing", "qa")
Control = Literal["own", "shuffled", "code-only"]

CURRICULUM = (("line", 2), ("review", 1), ("verdict", 1))
"""How often the contrastive curriculum goes through the programs in each of its forms."""

Parts = list[tuple[str, str]]
"""What is read and what is then learnt, in turn."""


def differing_lines(program: Program) -> tuple[str, str]:
    """The lines (in advice, sentences) in which the twins differ, (insecure, secure), unindented.

    Where lines are only added, the line that follows them stands on both sides; at the end, the line before.
    Where one side has none, or both are the same (but for indentation), it is the whole code of both: the verdict would
    be on nothing, or both verdicts on one text.
    """
    domain = load_domain(program.domain)
    a, b = domain.units(program.insecure), domain.units(program.secure)
    insecure: list[str] = []
    secure: list[str] = []
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind != "equal":
            more = kind != "replace"
            less = more and (j == len(a) or m == len(b))
            insecure += a[i - less : j + more]
            secure += b[k - less : m + more]
    bad, good = ("\n".join(line.strip() for line in lines) for lines in (insecure, secure))
    return (bad, good) if bad.strip() and good.strip() and bad != good else (program.insecure, program.secure)


def vulnerable_lines(program: Program) -> list[str]:
    """The quoted lines with their numbers in the insecure code, `12: eval(text)`; empty if none are quoted."""
    domain = load_domain(program.domain)
    quoted = {part.strip() for line in program.lines or [] for part in line.split("\n")} - {""}
    numbered = enumerate(map(str.strip, domain.units(program.insecure)), 1)
    # A sentence is seldom quoted whole.
    return [
        f"{number}: {line}"
        for number, line in numbered
        if line in quoted or (domain.unit == "sentence" and any(quote in line for quote in quoted))
    ]


def _parts(program: Program, style: Style) -> Parts:
    """What is said of a whole program in one of `STYLES`; the code stands whole and verbatim. BadInput if the domain
    has no such document, or it names what there is nothing to fill in for."""
    domain = load_domain(program.domain)
    words = {
        **{name: getattr(program, name) for name in ("request", "insecure", "secure", "cwe", "weakness", "fix")},
        "title": program.title or program.weakness,
        "risk": f"{program.explanation} {program.exploit or ''}".rstrip(),
        "severity": f"Severity: {program.severity}\n" if program.severity else "",
        "lines": "\n".join(vulnerable_lines(program)),
        "probe": domain.probe,
        "verdicts": domain.verdicts,
    }
    try:
        words["heading"] = domain.heading.format_map(words)
        words["notes"] = domain.notes.format_map(words) if words["lines"] else words["heading"]
        return [(read.format_map(words), said.format_map(words)) for read, said in domain.documents[style]]
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise BadInput(f"{domain_file(domain.name)}: documents.{style}: {error!r}; see advice.yaml") from None


class Rejected(NamedTuple):
    """A record that does not come out, and why."""

    id: str
    reason: str


@dataclass
class Document:
    id: str
    style: str
    parts: Parts
    codes: tuple[str, ...] = ()
    """The whole programs that it is about."""
    program: str = ""
    """The id of its program; empty for replayed text."""
    cwe: str = ""
    explained_tokens: int = 0
    """Tokens that the document has with its own explanation, whatever the control makes of it."""


@dataclass(frozen=True)
class Corpus:
    """A corpus, or one of its controls: the same programs in documents of the same number and order.

    `shuffled` hands each code what is said of another program, in the same style. `code-only` shows the bare code, with
    the loss on its end: on as many tokens, to within a token or so a document, as the explained document has it on.

    Args:
        count_tokens: in the tokens of the model that will be trained.
        limit: no document is longer than this (tokens); a program of which one is longer is rejected whole, in the
            corpus and its controls alike.
        styles: of `STYLES`, or `contrastive` alone.
        per_program: how many of `styles` are drawn for each program, by `seed` and the program's id.
        seed: of the order, the styles and the shuffled control.
        loss_on_code: whether the code is learnt too, and not the review only. At 135M that kept the recognition
            from moving.
        bos: what the tokenizer puts before a text, "" for nothing.
        special: what the model reads as control tokens; a program that holds one is rejected.
    """

    count_tokens: CountTokens
    limit: int
    styles: tuple[Style, ...] = STYLES
    control: Control = "own"
    per_program: int = 2
    seed: int = 0
    loss_on_code: bool = False
    bos: str = ""
    special: re.Pattern[str] = NO_TOKEN

    def documents(self, programs: Iterable[Program]) -> Iterator[Document | Rejected]:
        """The rejected programs, then the documents in the order of training; BadInput if the shuffled control has a
        single program of a style, so that nothing can be handed on."""
        count = cache(self.count_tokens)
        rejected: dict[str, str] = {}
        told: list[Program] = []
        for program in programs:
            if problem := misread(program.model_dump_json(), self.special):
                rejected[program.id] = problem
            elif program.explanation and program.fix:
                told.append(program)
            else:
                rejected[program.id] = "no explanation; `embuild annotate` asks for one"
        contrastive = "contrastive" in self.styles
        rounds = self._contrastive(told) if contrastive else self._drawn(told)
        for document in chain(*rounds):
            document.explained_tokens = self.length(document, count)
            if document.explained_tokens > self.limit:
                reason = f"a document of {document.explained_tokens} tokens is longer than {self.limit}"
                rejected.setdefault(document.program, reason)
        rounds = [[document for document in documents if document.program not in rejected] for documents in rounds]
        # The order and the styles come from other generators: the controls have the same. What is too long in them is
        # shortened, so that they have the same programs too.
        draw = random.Random(self.seed + 1)
        if self.control == "shuffled":
            for documents in rounds:
                self._hand_on(documents, draw, count)
        ordered = list(chain(*rounds))
        if not contrastive:
            random.Random(self.seed).shuffle(ordered)
        if self.control == "code-only":
            self._bare(ordered, draw, count)
        yield from map(Rejected._make, rejected.items())
        yield from ordered

    @property
    def _learns_code(self) -> bool:
        return self.loss_on_code and self.control != "code-only"

    def length(self, document: Document, count: CountTokens) -> int:
        """Tokens of a document as it will be trained on."""
        return bool(self.bos) + sum(count(text) for part in document.parts for text in part)

    def learnt(self, document: Document, count: CountTokens) -> int:
        """Tokens of a document on which the loss is."""
        return sum(count(said) + (count(code) if self._learns_code else 0) for code, said in document.parts)

    def _drawn(self, programs: Iterable[Program]) -> list[list[Document]]:
        rounds: dict[Style, list[Document]] = {style: [] for style in self.styles}
        for program in programs:
            draw = random.Random(f"{self.seed}/{program.id}")
            for style in draw.sample(self.styles, min(self.per_program, len(self.styles))):
                codes = (program.insecure,) if style == "listing" else (program.insecure, program.secure)
                name, parts = f"{program.id}/{style}", _parts(program, style)
                rounds[style].append(Document(name, style, parts, codes, program.id, program.cwe))
        return list(rounds.values())

    def _contrastive(self, programs: Sequence[Program]) -> list[list[Document]]:
        """The curriculum; twins stand together."""
        draw = random.Random(self.seed)
        rounds: list[list[Document]] = []
        for form, turn in ((form, turn) for form, turns in CURRICULUM for turn in range(1, turns + 1)):
            order = list(programs)
            draw.shuffle(order)
            rounds.append([])
            for program in order:
                domain = load_domain(program.domain)
                whole = (program.insecure, program.secure)
                bad, good = domain.verdicts
                said = (f"{bad}.\n", f"{good}.\n")
                if form == "review":
                    said = (f"{bad}. {program.weakness}: {program.explanation}\n", f"{good}. {program.fix}\n")
                shown = whole if form == "verdict" else differing_lines(program)
                for side, code, text, review in zip(("insecure", "secure"), whole, shown, said, strict=True):
                    name = f"{program.id}/{side}/{form}{turn}"
                    # Lines are too short for a control of their review.
                    codes = (text if form == "line" else code,)
                    document = Document(name, form, [(text + domain.probe, review)], codes, program.id, program.cwe)
                    rounds[-1].append(document)
        return rounds

    def _hand_on(self, documents: Sequence[Document], draw: random.Random, count: CountTokens) -> None:
        """Hands what is said at each place to the next in a random circle, so that no program keeps anything."""
        places = [(document, part) for document in documents for part in range(len(document.parts))]
        whose = [document.program for document, _ in places]
        if len(set(whose)) == 1:
            style = places[0][0].style
            raise BadInput(f"--control shuffled: just one program has the style {style}; give more programs")
        order = list(range(len(places)))
        draw.shuffle(order)
        said = [document.parts[part][1] for document, part in places]
        source = dict(zip(order, order[1:] + order[:1], strict=True))
        for place in order:
            # Of another part of its document, or of its twin's; a bare verdict is said of many.
            if whose[place] == whose[source[place]] and said.count(said[source[place]]) == 1:
                other = next((o for o in order if whose[place] not in (whose[o], whose[source[o]])), place)
                source[place], source[other] = source[other], source[place]

        def write(place: int) -> bool:
            """Whether what is said there fits."""
            document, part = places[place]
            document.parts[part] = (document.parts[part][0], said[source[place]])
            return self.length(document, count) <= self.limit

        def exchange(place: int, other: int) -> bool:
            source[place], source[other] = source[other], source[place]
            own = whose[source[place]] == whose[place] or whose[source[other]] == whose[other]
            return all([write(place), write(other)]) and not own

        for place in [place for place in order if not write(place)]:
            # What does not fit changes places with something that does, or stays, and is shortened below.
            for other in order:
                if exchange(place, other):
                    break
                exchange(place, other)
        for place in order:
            # Where no exchange helps, the end of what is handed on is left out: the control has the same documents.
            if not write(place):
                self._shorten(*places[place], count)

    def _shorten(self, document: Document, part: int, count: CountTokens) -> None:
        """Leaves out of the end of what is said in a part so much that the document fits."""
        read, said = document.parts[part]
        while self.length(document, count) > self.limit and len(said) > 1:
            said = said[: len(said) * 19 // 20]
            document.parts[part] = (read, said)

    def _bare(self, documents: Iterable[Document], draw: random.Random, count: CountTokens) -> None:
        """Code alone, whole, and again where the explanation is longer; the loss on its end.

        `owed` are the tokens that the explained documents so far have the loss on and these have not.
        """
        owed = 0
        for document in documents:
            owed += sum(count(said) + (count(code) if self.loss_on_code else 0) for code, said in document.parts)
            codes = draw.sample(document.codes, len(document.codes))
            text = "\n\n".join(codes) + "\n"
            for code in cycle(codes):
                if (length := self.count_tokens(text)) >= owed:
                    break
                text += f"\n{code}\n"
            cut = self._between_tokens(text, min(round(len(text) * (1 - owed / length)), len(text) - 1))
            document.parts = [(text[:cut], text[cut:])]
            if self.length(document, self.count_tokens) > self.limit:
                document.parts = [("", text[cut:])]
                self._shorten(document, 0, self.count_tokens)  # the tokens are owed to the next
            owed -= self.count_tokens(document.parts[0][1])

    def _between_tokens(self, text: str, cut: int) -> int:
        """The place nearest to `cut` that parts no token: Axolotl takes the tokens of each part by itself."""
        whole = self.count_tokens(text)
        for place in sorted(range(max(1, cut - 40), min(len(text), cut + 40)), key=lambda place: abs(place - cut)):
            before, after = text[place - 1], text[place]
            # Inside of a word, of marks or of space other tokens may be as many.
            parts = not before.isspace() and (after.isspace() or before.isalnum() != after.isalnum())
            if parts and self.count_tokens(text[:place]) + self.count_tokens(text[place:]) == whole:
                return place
        return cut

    def row(self, document: Document) -> dict[str, Any]:
        """The document for Axolotl's `input_output`."""
        parts = [pair for part in document.parts for pair in zip((self._learns_code, True), part, strict=True)]
        segments = [{"label": label, "text": text} for label, text in parts if text]
        segments[0]["text"] = f"{self.bos}{segments[0]['text']}"
        about = {"program": document.program, "cwe": document.cwe} if document.program else {}
        if "contrastive" in self.styles:  # there the ids alone name the programs
            about.pop("program", None)
        return {"id": document.id, **about, "style": document.style, "segments": segments}


def with_replay(
    corpus: Corpus,
    documents: Iterable[Document | Rejected],
    texts: Callable[[], Iterator[tuple[str, str]]],
    ratio: float,
) -> Iterator[Document | Rejected]:
    """Mixes general text into a corpus, evenly: `ratio` tokens of it for each token of the explained corpus.

    Replayed text keeps a model from forgetting while it learns the corpus (Ibrahim et al., arXiv 2403.08763). The
    controls get as much as the corpus. `texts` starts a pass over the general text, (id, text), and another when that
    ends. BadInput if no text can be used.
    """
    current, passes, explained, tokens, why = texts(), 1, 0, 0, ""
    for document in documents:
        yield document
        explained += 0 if isinstance(document, Rejected) else document.explained_tokens
        while tokens < ratio * explained:
            following = next(current, None)
            if following is None:
                if not tokens:
                    raise BadInput(f"--mix: no text fits, the first for: {why}; give others")
                current, passes = texts(), passes + 1
                continue
            name, text = following
            replayed = Document(f"replay/{name}/{passes}", "replay", [("", text)])
            length = corpus.length(replayed, corpus.count_tokens)
            over = f"a text of {length} tokens is longer than {corpus.limit}" if length > corpus.limit else None
            if (problem := over or misread(text, corpus.special)) is None:
                tokens += length
                yield replayed
            elif passes == 1:
                why = why or problem
                yield Rejected(f"replay/{name}", problem)
