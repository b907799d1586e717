"""`em_steered`, an lm-eval model: transformers with a direction added at index N, so that any task can be run steered.

    python -m eval.inside.em_steered run --model em_steered --include_path eval/tasks --tasks em_choice \\
      --model_args pretrained=MODEL,direction=FILE,layer=20,dose=1,dtype=float32 --apply_chat_template

All arguments of lm-eval's `hf` hold, `peft` too. Index N is the residual behind N blocks, 0 the embeddings. (lm-eval's
own `steered` cannot be started: its registry names a class that is not there.)
"""

import sys
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from core.records import BadInput, printable
from eval.inside.activations import residual_shape
from eval.inside.steering import steered
from eval.inside.vectors import chosen_layer, model_digest, read_directions


@register_model("em_steered")
class SteeredModel(HFLM):  # type: ignore[misc]
    """`hf` with `dose` times the direction of a file added at `layer`, the file's own if not given.

    BadInput if the file is of another model, or has no such layer; if layer or dose is no such number.
    """

    def __init__(
        self,
        pretrained: str,
        direction: str = "",
        layer: int | None = None,
        dose: float = 1.0,
        revision: str = "main",
        **options: Any,
    ):
        if not direction:
            raise BadInput("without direction=FILE nothing is steered; give one, or take the model hf")
        # lm-eval hands on what it cannot read as a number, and 1.5 as one.
        try:
            given, amount = None if layer is None else int(str(layer).removesuffix(".0")), float(dose)
        except ValueError:
            raise BadInput(f"layer={layer}, dose={dose}: give a whole number and a number") from None
        if not isfinite(amount):
            raise BadInput(f"dose={dose}: a dose is a finite number")
        super().__init__(pretrained=pretrained, revision=revision, **{**options, "use_safetensors": True})
        directions = read_directions(Path(direction), residual_shape(self.model), model_digest(pretrained, revision))
        at = chosen_layer(Path(direction), directions, given)
        self._hooks = ExitStack()
        self._hooks.enter_context(steered(self.model, at, directions.at(at), amount))


def main() -> None:
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except BadInput as error:
        print(f"em_steered: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
