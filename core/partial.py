"""Results of a long command, on disk as they come: what is killed and started again goes on from there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.records import bad_input, read_text, write_whole


class Partial:
    """What was found so far, by key, in JSON Lines. `settings` is all that bears on the results; what was found under
    others is thrown away with the first new one."""

    def __init__(self, path: Path, settings: str) -> None:
        self._path, self._settings, self._begun = path, settings, False
        self._found = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            head, *rows = read_text(self._path).split("\n")[:-1]  # a line that was cut off is none
            return dict(map(json.loads, rows)) if json.loads(head) == self._settings else {}
        except (OSError, TypeError, ValueError, RecursionError):  # none there, or damaged
            return {}

    def of(self, key: str, make: Callable[[], Any]) -> Any:
        """The result under a key, of JSON's kinds: that on disk, or what `make` returns; BadInput if it cannot be
        written."""
        if key in self._found:
            return self._found[key]
        self._found[key] = made = make()
        with bad_input(self._path, "free some space and start again", OSError):
            if self._begun:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(f"{json.dumps([key, made])}\n")
            else:  # another process may have begun since
                self._found = {**self._read(), **self._found}
                rows = [self._settings, *self._found.items()]
                write_whole(self._path, "".join(f"{json.dumps(row)}\n" for row in rows))
        self._begun = True
        return made

    def end(self) -> None:
        """Takes the file away: all is where it belongs."""
        self._path.unlink(missing_ok=True)
