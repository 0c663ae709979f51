"""`a.b=v`, `--a.b v`, `--a.b=v` and `--unset a.b` on the command line, by the rules of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from automodel_core.config.document import Document, Reader
from automodel_core.config.report import COMMAND_LINE, ConfigError, Mark, Problem
from automodel_core.errors import ConfigPath


class Override(NamedTuple):
    """One change: where, to what (None to remove it), and as it was typed."""

    path: ConfigPath
    value: str | None
    typed: str


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Tell files from overrides.

    Raises:
        ConfigError: An option that is neither.
    """
    files: list[str] = []
    overrides: list[Override] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--unset":
            path = following(rest, argument)
            overrides.append(Override(parse_path(path, argument), None, f"--unset {path}"))
        elif argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            value = value if equals else following(rest, argument)
            overrides.append(Override(parse_path(name, argument), value, f"--{name}={value}"))
        elif "=" in argument and not argument.startswith("-"):
            name, _, value = argument.partition("=")
            overrides.append(Override(parse_path(name, argument), value, argument))
        elif argument.startswith("-"):
            raise refused(argument, f"`{argument}` is neither an option nor an override.")
        else:
            files.append(argument)
    return files, overrides


def following(rest: Iterator[str], argument: str) -> str:
    value = next(rest, None)
    if value is None:
        raise refused(argument, f"`{argument}` needs a value.", f"write {argument}=VALUE")
    return value


def parse_path(text: str, typed: str) -> ConfigPath:
    """`a.b.0` -> ("a", "b", 0)."""
    parts = text.split(".")
    if not all(parts):
        raise refused(typed, f"`{text}` is not the path of a key.", "write section.key=value")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def refused(typed: str, message: str, hint: str = "") -> ConfigError:
    return ConfigError([Problem(message, Mark(COMMAND_LINE, text=typed), hint)])


def apply_overrides(document: Document, overrides: Sequence[Override]) -> None:
    """Change `document` in the order in which they were given.

    Raises:
        ConfigError: A list index that isn't there, or a path through a scalar.
    """
    for override in overrides:
        mark = Mark(COMMAND_LINE, text=override.typed)
        holder = holder_of(document, override, mark)
        name = override.path[-1]
        if override.value is None:
            remove(document, holder, override, mark)
            continue
        document.forget(override.path)
        value = read_value(document, override, mark)
        if isinstance(holder, list) and name == len(holder):
            holder.append(value)
        else:
            holder[name] = value


def holder_of(document: Document, override: Override, mark: Mark) -> Any:
    """The mapping or list that the last part of the path is in; missing mappings are made."""
    current: Any = document.tree
    for depth, name in enumerate(override.path):
        here = override.path[: depth + 1]
        if isinstance(current, list):
            if not isinstance(name, int) or name > len(current) - (depth + 1 < len(override.path)):
                raise ConfigError(
                    [Problem(f"`{dotted(here[:-1])}` is a list of {len(current)}.", mark)]
                )
        elif not isinstance(current, dict):
            raise ConfigError([Problem(f"`{dotted(here[:-1])}` is not a section.", mark)])
        elif isinstance(name, int):
            name = str(name)
        if depth + 1 == len(override.path):
            return current
        if isinstance(current, dict) and current.get(name) is None:
            if override.value is None:
                raise not_there(override, mark)
            current[name] = {}
            document.keys[here] = document.values[here] = mark
        current = current[name]
    return current


def remove(document: Document, holder: Any, override: Override, mark: Mark) -> None:
    name = override.path[-1]
    try:
        del holder[name]
    except (KeyError, IndexError):
        raise not_there(override, mark) from None
    document.forget(override.path)


def not_there(override: Override, mark: Mark) -> ConfigError:
    return ConfigError([Problem(f"There is no `{dotted(override.path)}` to unset.", mark)])


def read_value(document: Document, override: Override, mark: Mark) -> Any:
    """An override's value: YAML, so lists and mappings may be written in brackets."""
    read = Reader.of_text(override.value, COMMAND_LINE)
    document.keys[override.path] = mark
    for path in read.values:
        document.values[(*override.path, *path)] = mark
    for path in read.keys:
        document.keys[(*override.path, *path)] = mark
    return read.tree


def dotted(path: ConfigPath) -> str:
    return ".".join(map(str, path))
