"""What the headers of safetensors files say, read without torch, which would stay in the memory of `emsweep`."""

import json
from pathlib import Path
from typing import Any

from core.records import open_file


def tensors(path: Path) -> dict[str, dict[str, Any]]:
    """A safetensors file's header: of each tensor its dtype, its shape, and where its bytes begin and end in the file.

    ValueError if the file is cut short or is none.
    """
    whole = path.stat().st_size
    try:
        with open_file(path) as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= whole - 8:
                raise ValueError
            header: dict[str, dict[str, Any]] = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for tensor in header.values():
            begin, end = tensor["data_offsets"]
            numbers = [begin, end, *tensor["shape"]]
            if any(type(n) is not int or n < 0 for n in numbers) or not isinstance(tensor["dtype"], str):
                raise ValueError
            if not begin <= end <= whole - 8 - size:
                raise ValueError
            tensor["bytes"] = [8 + size + begin, 8 + size + end]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path}: not a whole safetensors file") from None
    return header


def stored(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Of each tensor in a model's folder the file that has it, and what that says of it."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: (path, tensor) for path in files for name, tensor in tensors(path).items()}
