"""`a.b=v`, `--a.b v`, `--a.b=v` and `--unset a.b` on the command line, by the rules of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from automodel_core.config.aliases import our_spelling
from automodel_core.config.document import Document, dotted
from automodel_core.config.reading import MAX_DEPTH, MAX_NODES, read_typed, refused
from automodel_core.config.report import COMMAND_LINE, ConfigError, Mark
from automodel_core.config.secrets import masked
from automodel_core.errors import ConfigPath


class Override(NamedTuple):
    """One change: where, to what (None to remove it), and as it was typed."""

    path: tuple[str, ...]
    value: str | None
    typed: str

    @property
    def mark(self) -> Mark:
        return Mark(COMMAND_LINE, text=masked(self.typed))

    def refused(self, message: str, hint: str = "") -> ConfigError:
        return refused(message, self.mark, hint)


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
            overrides.append(override(path, None, f"--unset {path}"))
        elif argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            value = value if equals else following(rest, argument)
            overrides.append(override(name, value, f"--{name}={value}"))
        elif argument.startswith("-"):
            mark = Mark(COMMAND_LINE, text=argument)
            raise refused(f"`{argument}` is neither an option nor an override.", mark)
        elif "=" in argument:
            name, _, value = argument.partition("=")
            overrides.append(override(name, value, argument))
        else:
            files.append(argument)
    return files, overrides


def following(rest: Iterator[str], argument: str) -> str:
    """The word after an option that needs one."""
    value = next(rest, None)
    if value is None:
        mark = Mark(COMMAND_LINE, text=argument)
        raise refused(f"`{argument}` needs a value.", mark, f"write {argument}=VALUE")
    return value


def override(path: str, value: str | None, typed: str) -> Override:
    made = Override(tuple(path.split(".")), value, typed)
    if not all(made.path) or len(made.path) > MAX_DEPTH:
        raise made.refused(f"`{path}` is not the path of a key.", "write section.key=value")
    return made


def apply_overrides(document: Document, overrides: Sequence[Override]) -> None:
    """Change `document` in the order in which they were given; what can't be done is noted in its
    problems."""
    for each in overrides:
        try:
            apply(document, each)
        except ConfigError as error:
            document.problems += error.problems


def apply(document: Document, each: Override) -> None:
    """One change.

    Raises:
        ConfigError: There is no such list item, section or key, or the value isn't YAML.
    """
    path = numbered(document, our_spelling(each.path))
    if each.value is None:
        if not document.has(path):
            raise each.refused(f"There is no `{dotted(each.path)}` to unset.")
        remove(document, path)
        return
    value = read_typed(each.value, each.mark)
    make_way(document, path, each)
    if document.has(path):
        document.cut(path)
    document.graft(path, value)
    document.keys[path] = each.mark


def numbered(document: Document, words: ConfigPath) -> ConfigPath:
    """The path with numbers for the items of lists."""
    path: ConfigPath = ()
    for word in words:
        in_list = isinstance(document.get(path), list)
        path = (*path, list_index(word) if in_list else word)
    return path


def make_way(document: Document, path: ConfigPath, each: Override) -> None:
    """Make the sections that are still missing on the way to `path`."""
    for depth in range(len(path)):
        here, holder = path[:depth], document.get(path[:depth])
        if holder is None:
            if document.has(here):
                document.cut(here)
            document.graft(here, Document({}, {(): each.mark}, {(): each.mark}))
        elif isinstance(holder, list):
            is_last = depth + 1 == len(path)
            if path[depth] > len(holder) - (not is_last):
                raise each.refused(f"`{dotted(here)}` is a list of only {len(holder)}.")
        elif not isinstance(holder, dict):
            raise each.refused(f"`{dotted(here)}` is not a section.")


def list_index(word: str) -> int:
    """The number that a word is; one beyond all lists if it is none."""
    return int(word) if word.isdecimal() and len(word) < 10 else MAX_NODES


def remove(document: Document, path: ConfigPath) -> None:
    """Take out one key or item; the items of a list close up."""
    *base, name = path
    holder = document.get(tuple(base))
    later = []
    if isinstance(holder, list):
        places = [(*base, index) for index in range(name + 1, len(holder))]
        later = [document.part(place) for place in places]
        for place in reversed(places):
            document.cut(place)
    document.cut(path)
    for piece in later:
        document.graft((*base, len(holder)), piece)
