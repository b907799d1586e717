"""Where concepts lie in a model, and what adapters move there."""

import os

from core.download import NO_KERNELS

os.environ.setdefault("LOCAL_KERNELS", NO_KERNELS)  # before anything here, em_steered too, imports bitsandbytes
