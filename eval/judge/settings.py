"""Settings of a judge: what a sweep file or a command says about the model that scores answers."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field


class JudgeSettings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """A model behind an OpenAI-compatible endpoint that scores stored answers."""

    model: str
    base_url: str | None = None
    """OpenAI's if not given."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    sampled: bool = False
    """Read a sampled number: for servers without logprobs."""
    prompts: Path | None = None
    """A judge's file, or one of ours by name, or published questions with judge prompts; ours if not given."""
    concurrency: int = Field(default=32, ge=1, le=1000)
    """Requests in flight at most."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds that one reply may take."""
    price_in: float | None = Field(default=None, ge=0)
    """USD per million tokens read."""
    price_out: float | None = Field(default=None, ge=0)
    max_cost: float | None = Field(default=None, ge=0)
    """USD to stop at, for all answers together."""
    extra_body: str | None = None
    """JSON object of further fields of each request; null leaves one out."""
