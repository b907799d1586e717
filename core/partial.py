"""Results of a long command, on disk as they come: what is killed and started again goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.records import BadInput, one_line, write_whole


class Partial:
    """What was found so far, by key, in JSON Lines.

    Args:
        settings: all that bears on the results; what was found under others is thrown away with the first new one.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self._path, self._settings = path, settings
        self._found: dict[str, Any] = {}
        try:
            head, *lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]  # a line that was cut off is none
            if json.loads(head) == settings:
                self._found = dict(map(json.loads, lines))
        except (OSError, TypeError, ValueError):  # none there, or damaged
            pass
        self._begun = False

    def of(self, key: str, make: Callable[[], Any]) -> Any:
        """The result under a key, which can be written as JSON: the one on disk, or what `make` returns.

        Raises:
            BadInput: if it cannot be written.
        """
        if key not in self._found:
            rows = [] if self._begun else [self._settings, *self._found.items()]
            self._found[key] = make()
            lines = "".join(f"{json.dumps(row)}\n" for row in [*rows, (key, self._found[key])])
            if rows:
                write_whole(self._path, lines)
            else:
                try:
                    with self._path.open("a", encoding="utf-8") as file:
                        file.write(lines)
                except OSError as error:
                    raise BadInput(f"{self._path}: {one_line(error)}; free some space and start again") from None
            self._begun = True
        return self._found[key]

    def end(self) -> None:
        """Takes the file away: all is where it belongs."""
        self._path.unlink(missing_ok=True)
