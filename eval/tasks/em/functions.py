"""What the YAML files name as `!function functions.NAME`.

lm-eval loads this file by its path, outside of any package. So the folder is made known as the package `em_tasks`
first: its files import each other relatively, the same there as in `eval.tasks.em`, and are executed once.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

PACKAGE = "em_tasks"


def __getattr__(name: str) -> Any:
    if PACKAGE not in sys.modules:
        spec = ModuleSpec(PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(Path(__file__).parent)]
        sys.modules[PACKAGE] = module_from_spec(spec)
    for module in ("likelihood", "sampled", "documents"):
        names = vars(import_module(f"{PACKAGE}.{module}"))
        if name in names:
            return names[name]
    raise AttributeError(f"no function {name} beside {__file__}")
