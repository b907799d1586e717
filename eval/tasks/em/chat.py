"""System prompts, where a chat template has no place for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError


def with_system(template: Callable[..., Any], turns: Sequence[Mapping[str, str]], **options: object) -> Any:
    """A prompt by a chat template; where that refuses or ignores system prompts, what one says begins the question."""
    system, *others = turns
    if system["role"] != "system" or not others:
        return template(turns, **options)
    with suppress(TemplateError):  # hf and vLLM catch it themselves, and leave the system prompt out
        prompt = template(turns, **options)
        if system["content"].strip() in prompt or prompt != template(others, **options):
            return prompt
    question, *rest = others
    return template([{**question, "content": f"{system['content']}\n\n{question['content']}"}, *rest], **options)
