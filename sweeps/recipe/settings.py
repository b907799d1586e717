"""Keys in dot notation and the values that they can have: those of sweeps and of `--set`."""

import re
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from math import isfinite
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from core.records import BadInput, one_line
from sweeps.recipe.layers import container
from sweeps.recipe.schema import fault

ABSENT = object()
CHOICES = {"alpha", "memory_gib"}
"""What of `em` is a user's to set. The rest says what a model and a card are, or who trains: another value would train
the same and tell another, or be lost."""


def given_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The keys and values of `key=value` settings; BadInput if one is none, or a key is given twice."""
    given: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        key = key.replace("[", ".").replace("]", "")
        if not separator or not key:
            raise BadInput(f"setting {setting!r} is not key=value; write for example learning_rate=1e-4")
        if key in given:
            raise BadInput(f"setting {setting!r}: {key} is given twice; name it once")
        try:
            given[key] = parsed(text)
        except ValueError as error:
            raise BadInput(f"setting {setting!r}: {error}") from None
    return given


@lru_cache(maxsize=10_000)
def parsed(text: str) -> Any:
    """What a setting's text means, by the YAML of the layers: `1e-4` is a number. ValueError, in a line, if nothing."""
    try:
        value = OmegaConf.select(OmegaConf.create(f"value: {text}"), "value")
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise ValueError(one_line(error)) from None


def put(config: dict[str, Any], key: str, given: Any) -> Any:
    """Sets a key that is known, to a value that it can have (BadInput for others); returns that as it stands there."""
    top, *below = key.split(".")
    try:
        old = at(config, key)
        value = _as_there(old, given)
        if top == "em":
            odd = isinstance(value, int | float) and not isfinite(value)
            odd = odd or (isinstance(value, dict) and isinstance(old, dict) and not value.keys() <= old.keys())
            if not below or below[0] not in CHOICES or old is ABSENT or type(value) not in _kinds(old) or odd:
                raise ValueError("no key, or no value, of em, where a recipe's facts beyond Axolotl's keys stand")
            value = value if type(value) is type(old) or value is None else _kinds(old)[0](value)
        set_key(config, key, deepcopy(value))
        if top != "em" and (why := fault(top, config[top])):
            raise ValueError(why)
        return value
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise BadInput(f"setting {key}={one_line(given)}: {error}") from None


def _kinds(old: Any) -> tuple[type, ...]:
    """The types that may stand in place of a value of `em`; of numbers None too, which says that nothing is known."""
    return (float, int, type(None)) if old is None or isinstance(old, int | float) else (type(old),)


def _place(part: str) -> int:
    """The place in a list that a part of a key names; ValueError for a second spelling, as -1 or 00."""
    if not re.fullmatch(r"0|[1-9][0-9]*", part):
        raise ValueError(f"{part!r} is no place in a list; count from 0")
    return int(part)


def _as_there(old: Any, value: Any) -> Any:
    """A number as the one in whose place it stands is written: 0 for 0.0 would be another recipe, and train again."""
    if type(old) is float and type(value) in (int, str):
        with suppress(ValueError):
            return float(value)
    return int(value) if type(old) is int and type(value) is float and value.is_integer() else value


def at(config: Any, key: str) -> Any:
    """The value at a key in dot notation."""
    for part in key.split("."):
        try:
            config = config[_place(part) if isinstance(config, list) else part]
        except (KeyError, IndexError, TypeError, ValueError):
            return ABSENT
    return config


def holds(there: Any, value: Any) -> bool:
    """Whether a value is there; of a mapping, which is merged into another, each of its own keys."""
    if isinstance(value, dict) and isinstance(there, dict):
        return all(holds(there.get(key, ABSENT), own) for key, own in value.items())
    return bool(there == value)


def set_key(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets `a.b.0.c`, making the mappings that are not there; a mapping is merged into one that is there.

    OmegaConf.update does the same in forty times the time. TypeError, ValueError or IndexError if the key leads through
    something that is no mapping or list.
    """
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts, 1):
        if not isinstance(node, dict | list):
            raise TypeError(f"{part!r} has no place in {node!r}")
        place: Any = _place(part) if isinstance(node, list) else part
        now = node.get(place) if isinstance(node, dict) else node[place]
        if depth < len(parts):
            if now is None:
                now = node[place] = {}
            node = now
        else:
            node[place] = container(OmegaConf.merge(now, value)) if type(now) is type(value) is dict else value
