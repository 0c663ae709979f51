"""Values as words of a shell script: each is one word, whatever is in it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from automodel_core.errors import UserError


def check_printable(arguments: Mapping[str, Any]) -> None:
    """Refuse values that would end a line of the script, or that a terminal would obey.

    Raises:
        UserError: at the argument with a newline or another control character.
    """
    for name, value in arguments.items():
        for text in texts_in(value):
            if not text.isprintable():
                raise UserError(
                    f"`{name}` holds a newline or another control character.",
                    fix="write one line of plain text",
                    argument=name,
                )


def texts_in(value: Any) -> list[str]:
    """Every text in a value, keys of mappings included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for each in item for text in texts_in(each)]
    if isinstance(value, list | tuple):
        return [text for each in value for text in texts_in(each)]
    return []


def path_word(path: str) -> str:
    """A path as a word; a leading `~` is the home of whoever the shell runs for."""
    if path == "~" or path.startswith("~/"):
        return '"$HOME"' + (shlex.quote(path[1:]) if path[1:] else "")
    return shlex.quote(path)
