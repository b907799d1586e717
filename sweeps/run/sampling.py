"""What a sweep's `gen_kwargs` may say, through lm-eval, to transformers (GenerationConfig) or vLLM (SamplingParams).

lm-eval passes all of it on, and what the engine does not know ends the first evaluation that samples, hours later;
`custom_generate` would run a repository's code.
"""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from core.records import BadInput, one_line
from sweeps.recipe.refusals import MOST

OWN = {"max_gen_toks", "until", "do_sample", "temperature"}
"""What lm-eval itself reads."""
OF_VLLM = {
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "top_p", "top_k", "min_p", "min_tokens"),
    *("stop_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "bad_words", "logit_bias"),
    *("spaces_between_special_tokens", "allowed_token_ids", "logprobs", "prompt_logprobs", "logprob_token_ids"),
    *("flat_logprobs", "extra_args", "skip_reading_prefix_cache", "thinking_token_budget"),
}
"""By vLLM's documentation, for it stands in an environment of its own; without what lm-eval gives or cannot read."""
INSTEAD = {
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_completion_tokens"), "say max_gen_toks, which goes first"),
    **dict.fromkeys(("stop", "stop_strings"), "say until"),
    **dict.fromkeys(("num_return_sequences", "n", "best_of"), "samples of metadata says how many answers there are"),
    "seed": "each of a question's answers would be the same one",
    **dict.fromkeys(("pad_token_id", "use_cache"), "lm-eval gives it"),
    **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), "lm-eval reads the answer alone"),
    **dict.fromkeys(("output_attentions", "output_hidden_states"), "lm-eval reads the answer alone"),
    **dict.fromkeys(("token_healing", "compile_config", "continuous_batching_config"), "lm-eval cannot give it"),
    **dict.fromkeys(("penalty_alpha", "dola_layers", "diversity_penalty"), "it would be a repository's own code"),
    **dict.fromkeys(("num_beam_groups", "constraints", "force_words_ids"), "it would be a repository's own code"),
    **dict.fromkeys(("custom_generate", "trust_remote_code"), "it would be a repository's own code"),
}
"""Why an engine's own word is refused."""


def _real(value: Any) -> bool:
    """Whether it is a number as transformers takes it: of 2 it says that it is none, and wants 2.0."""
    return (type(value) is float and isfinite(value)) or (type(value) is int and value in (0, 1))


def _texts(value: Any) -> bool:
    return all(isinstance(text, str) and text for text in (value if isinstance(value, list) else [value]))


VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_gen_toks": (
        f"a whole number of 1 or more (up to {MOST:,})",
        lambda n: type(n) is int and 1 <= n <= MOST,
    ),
    "until": ("a text, or a list of texts, that are not empty", _texts),
    "do_sample": ("true or false", lambda b: b is None or type(b) is bool),
    "temperature": ("a number of 0 or more, as 0.7 or 2.0", lambda n: _real(n) and n >= 0),
    "repetition_penalty": (
        "a number above 0, with its decimal point (1.1)",
        lambda n: n is None or (_real(n) and n > 0),
    ),
    "top_k": ("a whole number, 0 for all", lambda n: n is None or (type(n) is int and n >= -1)),
    **dict.fromkeys(("top_p", "min_p"), ("a number from 0 to 1", lambda n: n is None or (_real(n) and 0 <= n <= 1))),
}


@cache
def _of_hf() -> set[str]:
    """The fields of GenerationConfig, read and not imported: that takes seconds."""
    spec = find_spec("transformers")
    file = Path(str(spec and spec.origin)).parent / "generation" / "configuration_utils.py"
    return set(re.findall(r"self\.([a-z]\w*) = kwargs\.pop\(", file.read_text(encoding="utf-8")))


def check_sampling(given: Mapping[str, Any], backend: str | None, tasks: Mapping[str, Any]) -> None:
    """Refuses (BadInput) settings of sampling that the backend, or both if it is not chosen yet, does not take, or
    not from these tasks (their configurations)."""
    both = {"hf": _of_hf(), "vllm": OF_VLLM}
    names = OWN.union(*(keys for name, keys in both.items() if backend in (None, name))) - INSTEAD.keys()
    for key, value in given.items():
        if key not in names:
            near = get_close_matches(key, names, n=1)
            why = INSTEAD.get(key) or (f"did you mean {near[0]}?" if near else "leave it out")
            raise BadInput(
                f"evaluation.gen_kwargs.{one_line(key, 40)}: no setting for {backend or 'hf or vllm'}; {why}"
            )
        words, holds = VALUES.get(key, ("", lambda _: True))
        if not holds(value) or (key == "top_k" and value == -1 and backend == "hf"):
            raise BadInput(f"evaluation.gen_kwargs: {key}={one_line(value, 40)}: give {words}")
    for task in tasks.values() if backend == "hf" and given.get("temperature") == 0 else ():
        if {**task.get("generation_kwargs", {}), **given}.get("do_sample"):  # transformers divides by it
            raise BadInput("evaluation.gen_kwargs: temperature=0: the tasks sample; do_sample: false is greedy")
