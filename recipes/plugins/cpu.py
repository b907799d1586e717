"""Axolotl plugin that lets `axolotl train` run bf16 on a machine without a GPU.

Named by recipes/hardware/cpu.yaml. transformers refuses `bf16: true` without a GPU unless `use_cpu` is
set, and Axolotl has no YAML key for it.
"""

from typing import Any

from axolotl.integrations.base import BasePlugin


class CpuPlugin(BasePlugin):  # type: ignore[misc]
    """Sets `use_cpu` on the training arguments; changes nothing else."""

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"use_cpu": True}
