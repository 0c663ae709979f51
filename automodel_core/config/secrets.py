"""What may not be shown: the fields that the schema marks secret, and what came from `${VAR}`.

A field is secret because the schema says so, never because of how its name ends.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from automodel_core.config.report import MASK
from automodel_core.config.schema import RunConfig
from automodel_core.config.variables import Variable
from automodel_core.errors import ConfigPath

if TYPE_CHECKING:
    from automodel_core.config.document import Document

# Hiding shorter values, such as a `${RANKS}` of 8, would also hide what came from elsewhere.
SHORTEST = 4


@functools.cache
def secret_paths() -> frozenset[ConfigPath]:
    """The fields that the schema marks secret."""
    return frozenset(secrets_in(RunConfig, ()))


def secrets_in(section: type, path: ConfigPath) -> Iterator[ConfigPath]:
    hints = typing.get_type_hints(section)
    for field in attrs.fields(section):
        if field.metadata.get("secret"):
            yield (*path, field.name)
        for inner in (hints[field.name], *typing.get_args(hints[field.name])):
            if getattr(inner, "__module__", "") == section.__module__ and attrs.has(inner):
                yield from secrets_in(inner, (*path, field.name))


def is_secret(path: ConfigPath) -> bool:
    """Whether `path` is a secret field, or in one."""
    return any(path[: len(secret)] == secret for secret in secret_paths())


@functools.cache
def secret_value() -> re.Pattern[str]:
    """Finds what is written behind the name of a secret field, unless it is a `${VAR}`.

    It works on bare lines, so that a file that can't even be parsed shows no secret either.
    """
    names = "|".join(sorted({path[-1] for path in secret_paths()}))
    key = rf"""(?<!\w)(?:{names})(?:\.[\w.-]+)?["']?\s*[:=]"""
    return re.compile(rf"""{key}\s*(?!["']?\$\{{)(?P<value>\S.*|$)""")


def masked(line: str) -> str:
    """A line of a file or of the command line, to show: what follows the name of a secret field is
    covered, each character by itself, so that a caret below still points at the right one."""
    match = secret_value().search(line)
    if match is None:
        return line
    return line[: match.start("value")] + "*" * len(match["value"])


def masked_lines(lines: Iterable[str]) -> list[str]:
    """The lines of a file, to show: what stands further in, below the name of a secret field, is
    covered like what stands beside it."""
    shown, secret_indent = [], None
    for line in lines:
        bare = line.lstrip()
        indent = len(line) - len(bare)
        if secret_indent is not None and (not bare or indent > secret_indent):
            shown.append(line[:indent] + "*" * len(bare))
            continue
        secret_indent = indent if secret_value().search(line) else None
        shown.append(masked(line))
    return shown


def masked_words(words: Sequence[str]) -> list[str]:
    """The words of a command, to show and to save."""
    options = {f"--{'.'.join(path)}" for path in secret_paths()}
    pairs = zip(["", *words], words, strict=False)
    return [MASK if before in options else masked(word) for before, word in pairs]


def redactor(document: Document, environ: Mapping[str, str]) -> Callable[[str], str]:
    """A function that puts placeholders into a text, for messages of libraries and plugins, which
    know the values but not where they came from."""
    hidden = {MASK: [literal for literal in literals(document) if len(literal) >= SHORTEST]}
    for name in {name for variable in variables_in(document.tree) for name in variable.names()}:
        if len(value := environ.get(name, "")) >= SHORTEST:
            hidden[f"${{{name}}}"] = [value]

    def redact(text: str) -> str:
        for placeholder, values in hidden.items():
            for value in values:
                text = text.replace(value, placeholder)
        return text

    return redact


def literals(document: Document) -> Iterator[str]:
    """The secrets that stand in the file itself."""
    for path in secret_paths():
        if isinstance(value := document.get(path), str):
            yield value


def variables_in(value: object) -> Iterator[Variable]:
    """Every scalar with a `${...}` in a tree."""
    if isinstance(value, Variable):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from variables_in(each)
