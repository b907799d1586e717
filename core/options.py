"""The commands' common ground: what no option of any of them may be, and options that several share."""

import errno
import inspect
import re
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from math import isfinite
from typing import Annotated, Any, TypeVar, get_origin

import click
import typer
from typer.core import TyperCommand

from core.records import BadInput, one_line

F = TypeVar("F", bound=Callable[..., Any])
OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
OF_NAMES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}
"""A full disk, or one that may not be written; a path that can be none: what the user can mend, wherever it shows."""


class _Command(TyperCommand):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for before, word in pairwise(["", *args]):
            if not word or re.fullmatch("--[a-z-]+=", word):
                empty = word or f"{before} ''"
                raise click.UsageError(f"{empty.strip()}: an empty value, as of a variable that is not set.", ctx)
            if re.search("[\ud800-\udfff]", word):
                raise click.UsageError(f"{one_line(word)}: is no UTF-8; name it, or rename the file, otherwise.", ctx)
        rest = super().parse_args(ctx, args)
        for option in self.params:
            given = ctx.params.get(option.name or "")
            for value in given if isinstance(given, list | tuple) else [given]:
                if isinstance(value, float) and not isfinite(value):
                    raise click.BadParameter(f"{value} is no finite number.", ctx, option)
        return rest


class App(typer.Typer):
    """Commands that take finite numbers alone, and nothing empty: NaN would pass every bound, and as a limit of costs
    be none; an empty path is the working folder, an empty address OpenAI's. Nor what no file that is written holds."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        return super().command(name, **{"cls": _Command, **options})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except OSError as error:
            if error.errno not in OF_DISK | OF_NAMES:
                raise
            named = error.filename or "a file cannot be written"
            raise BadInput(f"{named}: {error.strerror}; free some space or choose another place") from None
        except ValueError as error:
            if "null byte" not in str(error):
                raise
            raise BadInput("a file is named with a NUL character, which no name can hold; mend that name") from None


def takes(*groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of each group; what the groups make of them are its first arguments.

    What is `Annotated` in the signature of a group, a dataclass or a pydantic model, is an option.
    """

    def give(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(groups) :]
        signatures = (inspect.signature(group, eval_str=True).parameters.items() for group in groups)
        theirs = [{k: p for k, p in its if get_origin(p.annotation) is Annotated} for its in signatures]

        @wraps(command)
        def whole(**given: Any) -> None:
            made = [group(**{k: given.pop(k) for k in names}) for group, names in zip(groups, theirs, strict=True)]
            command(*made, **given)

        parameters = [*own, *(parameter for names in theirs for parameter in names.values())]
        whole.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        whole.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return whole

    return give
