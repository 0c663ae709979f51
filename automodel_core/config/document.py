"""YAML files and command-line overrides -> one plain tree that remembers where everything stood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from automodel_core.config.report import ConfigError, Mark, Problem
from automodel_core.config.variables import read_scalar
from automodel_core.errors import ConfigPath

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 50
CORE_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("null", "bool", "int", "float", "str", "timestamp", "map", "seq", "merge", "value")
)


@attrs.define
class Document:
    """What the user wrote.

    Attributes:
        tree: Mappings, lists and scalars; Variables stay unresolved. A mapping for a file.
        keys: Where each key was written.
        values: Where each value was written.
    """

    tree: Any
    keys: dict[ConfigPath, Mark] = attrs.field(factory=dict)
    values: dict[ConfigPath, Mark] = attrs.field(factory=dict)

    def place(self, path: ConfigPath, *, on: str = "value") -> Mark | None:
        """Where `path` was written, or the nearest thing around it that was."""
        marks = self.keys if on == "key" else self.values
        for length in range(len(path), 0, -1):
            found = marks.get(path[:length]) or self.keys.get(path[:length])
            if found is not None:
                return found
        return self.values.get(())

    def wrote(self, path: ConfigPath) -> Mark | None:
        """Where exactly `path` was written; None for a default."""
        return self.values.get(path)

    def merge(self, other: Document) -> None:
        """Lay `other` over this one: mappings are merged, everything else is replaced."""
        self.values.setdefault((), other.values.get((), Mark("")))
        self._lay(self.tree, other.tree, (), other)

    def _lay(self, base: dict, over: dict, path: ConfigPath, other: Document) -> None:
        for name, value in over.items():
            here = (*path, name)
            if isinstance(value, dict) and isinstance(base.get(name), dict):
                self.keys[here], self.values[here] = other.keys[here], other.values[here]
                self._lay(base[name], value, here, other)
                continue
            self.forget(here)
            base[name] = value
            self.adopt(here, other)

    def forget(self, path: ConfigPath) -> None:
        """Drop the marks of everything at and below `path`."""
        for marks in (self.keys, self.values):
            for known in [known for known in marks if known[: len(path)] == path]:
                del marks[known]

    def adopt(self, path: ConfigPath, other: Document) -> None:
        """Take over another document's marks of everything at and below `path`."""
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine.update((p, mark) for p, mark in theirs.items() if p[: len(path)] == path)


def load_files(paths: Sequence[str]) -> Document:
    """Read and merge YAML files; later ones win.

    Raises:
        ConfigError: One of them can't be read or isn't a mapping of sections.
    """
    document = Document({})
    for path in paths:
        document.merge(read_file(path))
    return document


def read_file(path: str) -> Document:
    """One YAML file. Raises ConfigError with the place of what is wrong in it."""
    text = read_text(path)
    root, lines = compose(text, path), text.splitlines()
    if root is None:
        raise ConfigError([Problem("The file is empty.", Mark(path), "see examples/ for a start")])
    reader = Reader(path, lines)
    if not isinstance(root, MappingNode):
        raise reader.error(root, "The file must be a mapping of sections, such as `model:`.")
    return reader.read(root)


def compose(text: str, path: str) -> Node | None:
    """The YAML node graph of a text; None for an empty one."""
    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        raise ConfigError([syntax_problem(path, text.splitlines(), error)]) from None
    except (YAMLError, ValueError) as error:
        raise ConfigError([Problem(str(error).splitlines()[0], Mark(path))]) from None
    except RecursionError:
        raise ConfigError([Problem("The file is nested too deeply.", Mark(path))]) from None


def read_text(path: str) -> str:
    """The text of a file that is small enough to be a configuration."""
    mark = Mark(path)
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            limit = f"{MAX_BYTES // 1000:,} kB"
            raise ConfigError([Problem(f"The file is larger than {limit}.", mark)])
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(f"The file is not UTF-8: {error}.", mark)]) from None
    except OSError as error:
        raise ConfigError([Problem(f"Can't read it: {error.strerror}.", mark)]) from None


def syntax_problem(path: str, lines: list[str], error: MarkedYAMLError) -> Problem:
    """The parser's complaint at its place; tabs get a sentence of their own."""
    place = error.problem_mark or error.context_mark
    message = (error.problem or error.context or "This is not YAML").strip()
    if place is None:
        return Problem(f"{message}.", Mark(path))
    line = lines[place.line] if place.line < len(lines) else ""
    mark = Mark(path, place.line + 1, place.column + 1, line)
    if "\t" in line[: place.column + 1]:
        return Problem("A tab can't indent YAML.", mark, "write spaces")
    return Problem(f"This is not valid YAML: {message}.", mark)


class Reader:
    """Turns the nodes of one file into a Document, counting as it goes.

    The count is of what the file expands to, so that a few lines of aliases can't become a tree
    that fills the memory.
    """

    def __init__(self, path: str, lines: list[str]) -> None:
        self.path, self.lines, self.nodes = path, lines, 0
        self.document = Document({})

    @classmethod
    def of_text(cls, text: str, source: str) -> Document:
        """A value that was typed rather than read from a file."""
        root = compose(text, source)
        return cls(source, [text]).read(root) if root is not None else Document(None)

    def read(self, root: Node) -> Document:
        self.document.tree = self.value(root, ())
        return self.document

    def mark(self, node: Node) -> Mark:
        line, column = node.start_mark.line, node.start_mark.column
        text = self.lines[line] if line < len(self.lines) else ""
        return Mark(self.path, line + 1, column + 1, text)

    def error(self, node: Node, message: str, hint: str = "") -> ConfigError:
        return ConfigError([Problem(message, self.mark(node), hint)])

    def value(self, node: Node, path: ConfigPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.error(node, f"The file expands to more than {MAX_NODES:,} values.")
        if len(path) > MAX_DEPTH:
            raise self.error(node, f"The file is nested more than {MAX_DEPTH} levels deep.")
        if node.tag not in CORE_TAGS:
            raise self.error(node, f"YAML tags such as `{node.tag}` are not used here.")
        self.document.values[path] = self.mark(node)
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.mapping(node, path)

    def scalar(self, node: ScalarNode) -> Any:
        return read_scalar(node.value, plain=node.style is None)

    def mapping(self, node: MappingNode, path: ConfigPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        own: dict[str, Mark] = {}
        for _, value in filter(is_merge, node.value):
            for merged in reversed(list(self.merged(value))):  # earlier ones win
                result |= self.mapping(merged, path)
        for key, value in node.value:
            if is_merge((key, value)):
                continue
            name = self.key(key)
            here = (*path, name)
            if name in own:
                raise self.error(key, f"`{name}` stands twice; first in line {own[name].line}.")
            if name in result:
                self.document.forget(here)
            own[name] = self.document.keys[here] = self.mark(key)
            result[name] = self.value(value, here)
        return result

    def key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self.error(node, "A key must be a plain name.")
        return node.value

    def merged(self, node: Node) -> Iterator[MappingNode]:
        for each in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(each, MappingNode):
                raise self.error(each, "`<<` merges a mapping, or a list of mappings.")
            yield each


def is_merge(pair: tuple[Node, Node]) -> bool:
    """Whether a key is YAML's merge key `<<`."""
    return pair[0].value == "<<" and pair[0].style is None
