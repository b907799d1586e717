"""Tokens and USD: what was spent, and whether the next request can be paid for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from core.llm.journal import Answer
from data_builders.outcome import Question
from core.records import BadInput

FIRST_GUESS = 3_000
"""Tokens that an answer is taken to have before one has come; a prompt is taken at four characters a token."""


class Prices(NamedTuple):
    """USD per million tokens. The Batch API costs half."""

    tokens_in: float
    tokens_out: float


def prices_of(tokens_in: float | None, tokens_out: float | None, options: str) -> Prices | None:
    """The prices given by two options; None if neither is.

    Raises:
        BadInput: if one is given without the other.
    """
    if tokens_in is None and tokens_out is None:
        return None
    if tokens_in is None or tokens_out is None:
        raise BadInput(f"{options} belong together; give both")
    return Prices(tokens_in, tokens_out)


class Spent(Exception):
    """Nothing more can be asked within the limit."""


class Money:
    """`prices` by model label; a model without them costs an unknown sum. `most` is in USD.

    A request is lent the price of the dearest one so far, so that those in flight cannot overspend together.
    """

    def __init__(self, prices: dict[str, Prices | None], most: float | None = None) -> None:
        self.known = None not in prices.values()
        self.tokens_in = self.tokens_out = 0
        self.usd = 0.0
        self._prices = prices
        self._most = most
        self._dearest = 0.0
        self._lent = 0
        self._changed = asyncio.Condition()

    def count(self, answer: Answer) -> None:
        """Adds an answer; those of other models are not this job's."""
        if answer.key.model in self._prices:
            self.tokens_in += answer.tokens_in
            self.tokens_out += answer.tokens_out
            cost = self._cost(answer.key.model, answer.tokens_in, answer.tokens_out) / (2 if answer.batch else 1)
            self.usd += cost
            self._dearest = max(self._dearest, cost)

    def _cost(self, model: str, tokens_in: int, tokens_out: int) -> float:
        prices = self._prices[model] or Prices(0.0, 0.0)
        return (tokens_in * prices.tokens_in + tokens_out * prices.tokens_out) / 1e6

    def _loan(self, question: Question) -> float:
        size = sum(len(message["content"]) for message in question.messages) // 4
        return self._dearest or self._cost(question.key.model, size, FIRST_GUESS)

    def affordable(self, questions: list[Question]) -> list[Question]:
        """As many of the questions as can be asked at once."""
        loans = 0.0
        for number, question in enumerate(questions):
            loans += self._loan(question)
            if self._most is not None and self.usd + loans > self._most:
                return questions[:number]
        return questions

    @asynccontextmanager
    async def lend(self, question: Question) -> AsyncIterator[None]:
        """Waits until the question can be paid for beside those in flight.

        Raises:
            Spent: if it cannot, even alone.
        """
        async with self._changed:
            while self._most is not None and self.usd + (self._lent + 1) * self._loan(question) > self._most:
                if not self._lent:
                    raise Spent
                await self._changed.wait()
            self._lent += 1
        try:
            yield
        finally:
            self._lent -= 1
            async with self._changed:
                self._changed.notify_all()

    def __str__(self) -> str:
        spent = f", ${self.usd:.2f} spent" if self.known else ""
        left = f", ${max(0.0, self._most - self.usd):.2f} left" if self._most is not None else ""
        return f"{self.tokens_in + self.tokens_out:,} tokens{spent}{left}"
