"""What a pattern over module names means.

A pattern matches whole dotted names. Dots are literal and `*` stands for any text, dots included,
so that `*.layers.1.*` is layer 1 and not layer 11. Two conveniences: a pattern without a dot is
also tried on the last part of the name (`q_proj`), and a leading `*.` may stand for nothing, so
that `*.q_proj` finds a `q_proj` at the root.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` means the module of that whole dotted name."""
    expression = _compiled(pattern)
    if expression.fullmatch(name):
        return True
    return "." not in pattern and expression.fullmatch(name.rpartition(".")[2]) is not None


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether one of `patterns` means that module."""
    return any(matches(pattern, name) for pattern in patterns)


def first_match(values: Mapping[str, Value], name: str, default: Value) -> Value:
    """The value of the first pattern that means that module, as written; else `default`."""
    return next((value for pattern, value in values.items() if matches(pattern, name)), default)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    anywhere, rest = pattern.startswith("*."), pattern.removeprefix("*.")
    text = ".*".join(re.escape(part) for part in rest.split("*"))
    return re.compile(f"(?:.*\\.)?{text}" if anywhere else text, re.DOTALL)
