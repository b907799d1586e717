"""Tokens and USD: what was spent, and whether the next request can be paid for."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from core.llm.journal import Answer, Journal
from core.records import BadInput

FIRST_GUESS = 500
"""Tokens that an answer is taken to have before one has come."""


def prompt_tokens(request: Mapping[str, Any]) -> int:
    """About how many tokens the messages of a request have: one for four bytes, as other scripts take more."""
    return sum(len(message["content"].encode(errors="replace")) for message in request["messages"]) // 4


class Prices(NamedTuple):
    """USD per million tokens."""

    tokens_in: float
    tokens_out: float


def prices_of(tokens_in: float | None, tokens_out: float | None, options: str) -> Prices | None:
    """The prices given by two options; None if neither is, BadInput if one is without the other."""
    if tokens_in is None and tokens_out is None:
        return None
    if tokens_in is None or tokens_out is None:
        raise BadInput(f"{options} belong together; give both")
    return Prices(tokens_in, tokens_out)


class Spent(Exception):
    """The next request cannot be paid for within the limit."""


class Money:
    """`prices` by model; a model without them costs an unknown sum. `limit` is in USD; BadInput for one without prices.

    A request is lent what the dearest one so far has cost, or its prompt if that is more, so that those in flight
    cannot overspend together. `lost` are requests without an answer, which this run alone knows of.
    """

    def __init__(self, prices: Mapping[str, Prices | None], limit: float | None = None) -> None:
        self.known = None not in prices.values()
        if limit is not None and not self.known:
            raise BadInput("--max-cost needs the prices: give --price-in and --price-out, and those of the other model")
        self.tokens_in = self.tokens_out = 0
        self.usd = 0.0
        self.lost = 0
        self._prices = prices
        self._limit = limit
        self._highest: dict[str, float] = {}
        self._lent: list[float] = []
        self._journals: set[Path] = set()
        self._changed = asyncio.Condition()

    def count(self, answer: Answer) -> None:
        """Adds an answer; those of other models are not this job's."""
        if answer.model in self._prices:
            self.tokens_in += answer.tokens_in
            self.tokens_out += answer.tokens_out
            cost = self._cost(answer.model, answer.tokens_in, answer.tokens_out)
            self.usd += cost
            self._highest[answer.model] = max(self._highest.get(answer.model, 0.0), cost)

    async def lose(self, loan: list[float], request: Mapping[str, Any]) -> None:
        """Counts a request that was sent and brought no answer that can be read, for it may be billed all the same, and
        waits until it can be paid for once more; Spent if it cannot, even alone."""
        await self._give_back(loan)
        self.lost += 1
        self.usd += self._price(request)
        await self._borrow(loan, request)

    def _price(self, request: Mapping[str, Any]) -> float:
        """What a request is taken to cost before its answer is there."""
        model, tokens = request["model"], prompt_tokens(request)
        if model in self._highest:
            return max(self._highest[model], self._cost(model, tokens, 0))
        return self._cost(model, tokens, min(FIRST_GUESS, request.get("max_tokens", FIRST_GUESS)))

    def begin(self, journal: Journal) -> None:
        """Starts a run over a journal: adds what earlier runs have paid for, once."""
        self._changed = asyncio.Condition()  # of the loop that runs
        if (path := journal.path.resolve()) not in self._journals:
            self._journals.add(path)
            for answers in journal.answers.values():
                for answer in answers:
                    self.count(answer)

    def _cost(self, model: str, tokens_in: int, tokens_out: int) -> float:
        prices = self._prices.get(model) or Prices(0.0, 0.0)
        return (tokens_in * prices.tokens_in + tokens_out * prices.tokens_out) / 1e6

    @asynccontextmanager
    async def lend(self, request: Mapping[str, Any]) -> AsyncIterator[list[float]]:
        """Waits until the request can be paid for beside those in flight; Spent if it cannot, even alone."""
        loan: list[float] = []
        await self._borrow(loan, request)
        try:
            yield loan
        finally:
            await self._give_back(loan)

    async def _borrow(self, loan: list[float], request: Mapping[str, Any]) -> None:
        price = self._price(request)
        async with self._changed:
            while self._limit is not None and self.usd + sum(self._lent) + price > self._limit:
                if not self._lent:
                    raise Spent
                await self._changed.wait()
            self._lent.append(price)
        loan.append(price)

    async def _give_back(self, loan: list[float]) -> None:
        async with self._changed:
            while loan:
                self._lent.remove(loan.pop())
            self._changed.notify_all()

    def __str__(self) -> str:
        spent = f", ${self.usd:.2f} spent" if self.known else ""
        spent += f" ({self.lost} requests without an answer taken as paid for)" if self.known and self.lost else ""
        left = f", ${max(0.0, self._limit - self.usd):.2f} left" if self._limit is not None else ""
        return f"{self.tokens_in + self.tokens_out:,} tokens{spent}{left}"
