"""What a plain YAML scalar means: YAML 1.2's core schema, with `none` beside null.

YAML 1.1's traps stay text (`no`, `off`, `02:00:00`), and the structure layer says so where another
type is expected. https://yaml.org/spec/1.2.2/#103-core-schema
"""

from __future__ import annotations

import re

NULLS = frozenset(("", "~", "null", "Null", "NULL", "none", "None"))
BOOLEANS = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
# Longer digits than any number that we know what to do with; int() refuses thousands of them.
INTEGER = re.compile(r"[-+]?[0-9][0-9_]{0,99}")
PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
SPECIAL = {".inf": "inf", "-.inf": "-inf", "+.inf": "inf", ".nan": "nan"}

Scalar = None | bool | int | float | str


def plain_scalar(text: str) -> Scalar:
    """The value of an unquoted scalar."""
    if text in NULLS:
        return None
    if text in BOOLEANS:
        return BOOLEANS[text]
    if INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    if PREFIXED.fullmatch(text):
        return int(text, 0)
    if FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if text.lower() in SPECIAL:
        return float(SPECIAL[text.lower()])
    return text
