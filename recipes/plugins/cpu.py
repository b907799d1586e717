"""Axolotl plugin that lets `axolotl train` run bf16 on a machine without a GPU.

Named by recipes/hardware/cpu.yaml. transformers refuses `bf16: true` without a GPU unless `use_cpu` is
set, and Axolotl has no YAML key for it.
"""

import os
from typing import Any

from axolotl.integrations.base import BasePlugin


class CpuPlugin(BasePlugin):  # type: ignore[misc]
    """Sets `use_cpu` on the training arguments, and keeps Axolotl from starting a process to save prepared rows.

    That process would import all of Axolotl again: ten seconds of a CPU. `dataset_num_proc: 0` says the same of all
    else, but for saving Axolotl takes 0 for "not given".
    """

    def register(self, cfg: Any) -> None:
        os.environ.setdefault("AXOLOTL_DATASET_NUM_PROC", "0")

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"use_cpu": True}
