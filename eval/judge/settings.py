"""Settings of a judge: what a sweep file or a command says about the model that scores answers."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field
from typer import Option


class Judging(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How a judge is asked; options of the commands that ask one, and keys of a sweep's `judge:`."""

    base_url: Annotated[str | None, Option(help="OpenAI-compatible endpoint; OpenAI's if not given.")] = None
    key_variable: Annotated[str, Option(help="Environment variable that holds the API key.")] = "OPENAI_API_KEY"
    sampled: Annotated[bool, Option("--sampled", help="Read a sampled number: for servers without logprobs.")] = False
    concurrency: Annotated[int, Option(min=1, max=1000, help="Requests in flight at most."), Field(ge=1, le=1000)] = 32
    timeout: Annotated[float, Option(min=0.1, help="Seconds that one reply may take."), Field(gt=0)] = 60.0
    price_in: Annotated[float | None, Option(min=0, help="USD per million tokens read."), Field(ge=0)] = None
    price_out: Annotated[float | None, Option(min=0, help="USD per million tokens written."), Field(ge=0)] = None
    max_cost: Annotated[float | None, Option(min=0, help="USD to stop at, for all that is judged."), Field(ge=0)] = None
    extra_body: Annotated[str | None, Option(help="JSON object of further fields to send; null leaves one out.")] = None


class JudgeSettings(Judging, frozen=True):
    """A model behind an OpenAI-compatible endpoint that scores stored answers."""

    model: str
    prompts: Path | None = None
    """A judge's file, or one of ours by name, or published questions with judge prompts; ours if not given."""
