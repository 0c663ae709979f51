"""How messages speak of values, and what they advise to write instead."""

from __future__ import annotations

from typing import Any

from automodel_core.config.scalars import plain_scalar

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}

# YAML 1.1 read these as booleans; YAML 1.2 reads them as text.
OLD_BOOLEANS = {
    "yes": "true",
    "on": "true",
    "y": "true",
    "no": "false",
    "off": "false",
    "n": "false",
}
LONGEST = 60


def shown(value: Any) -> str:
    """A YAML value as people speak of it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f'the text "{value if len(value) <= LONGEST else value[:LONGEST] + "..."}"'
    return str(value)


def type_hint(kind: type, value: Any) -> str:
    """What to write where a `kind` is wanted, if that is clear. Never says the value, which may be
    secret."""
    if kind is str:
        return "" if isinstance(value, dict | list) else "write it in quotes"
    if kind is bool:
        word = str(value).lower() if isinstance(value, str) else ""
        word = OLD_BOOLEANS.get(word, word)
        return f"write {word}" if word in ("true", "false") else "write true or false"
    bare = plain_scalar(value) if isinstance(value, str) else None
    if isinstance(bare, int if kind is int else int | float) and not isinstance(bare, bool):
        return "write it without quotes"
    if kind is int and isinstance(value, float) and value.is_integer():
        return "write it without a point or exponent"
    return ""
