"""One YAML text -> a Document. Everything that a hostile or broken file can do ends here, in one
problem with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from automodel_core.config.aliases import move_aliases
from automodel_core.config.document import Document, paths_below
from automodel_core.config.report import ConfigError, Mark, Problem
from automodel_core.config.secrets import is_secret, masked_lines
from automodel_core.config.variables import read_scalar
from automodel_core.errors import ConfigPath

MAX_BYTES = 200_000
MAX_NODES = 50_000
MAX_DEPTH = 50
CORE_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("null", "bool", "int", "float", "str", "timestamp", "map", "seq", "merge", "value")
)
# As YAML's scanner counts lines, which `str.splitlines` doesn't.
LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
# A plain scalar can't begin with these; people who write patterns run into it.
INDICATORS = tuple("*&@`%|>!")


def load_files(paths: Sequence[str]) -> Document:
    """Read and merge YAML files in our spelling; later ones win.

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
    root = compose(text, path)
    if root is None:
        raise refused("The file is empty.", Mark(path), "see examples/ for a start")
    reader = Reader(path, text)
    if not isinstance(root, MappingNode):
        raise reader.error(root, "The file must be a mapping of sections, such as `model:`.")
    document = reader.read(root)
    move_aliases(document)
    return document


def read_typed(text: str, mark: Mark) -> Document:
    """A value that was typed on the command line; everything in it has the same mark."""
    try:
        root = compose(text, mark.file)
    except ConfigError as error:
        raise ConfigError([Problem(p.message, mark, p.hint) for p in error.problems]) from None
    if root is None:
        return Document(None, values={(): mark})
    return Reader(mark.file, text, mark).read(root)


def read_text(path: str) -> str:
    """The text of a file that is small enough to be a configuration."""
    mark = Mark(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refused(f"Can't read it: {error.strerror}.", mark) from None
    if len(content) > MAX_BYTES:
        raise refused(f"The file is larger than {MAX_BYTES // 1000:,} kB.", mark)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"The file is not UTF-8: byte 0x{content[error.start]:02x} in line {line}."
        raise refused(message, mark) from None


def compose(text: str, path: str) -> Node | None:
    """The YAML node graph of a text; None for an empty one."""
    parser = YAML(typ="safe", pure=True)
    parser.composer.warn_double_anchors = False  # YAML allows to use a name again
    try:
        return parser.compose(text)
    except MarkedYAMLError as error:
        raise ConfigError([syntax_problem(path, text, error)]) from None
    except ReaderError as error:
        line = len(LINE_BREAK.findall(text[: error.position])) + 1
        message = (
            f"Line {line} has the character U+{error.character:04X}, which YAML doesn't allow."
        )
        raise refused(message, Mark(path)) from None
    except (YAMLError, ValueError) as error:
        raise refused(
            f"This is not valid YAML: {str(error).splitlines()[0]}.", Mark(path)
        ) from None
    except RecursionError:
        raise refused(f"It is nested more than {MAX_DEPTH} levels deep.", Mark(path)) from None


def syntax_problem(path: str, text: str, error: MarkedYAMLError) -> Problem:
    """The parser's complaint at its place; the usual slips get a sentence of their own."""
    lines = LINE_BREAK.split(text)
    message = (error.problem or error.context or "it can't be parsed").strip()
    if message.startswith("but "):
        message = f"{error.context} {message}"
    places = [place for place in (error.problem_mark, error.context_mark) if place]
    if not places:
        return Problem(f"This is not valid YAML: {message}.", Mark(path))
    # What isn't closed is only noticed at the end of the file; the beginning tells more.
    place = next((each for each in places if lines[each.line].strip()), places[0])
    line = lines[place.line]
    mark = Mark(path, place.line + 1, place.column + 1, masked_lines(lines)[place.line])
    if "\t" in line[: place.column + 1]:
        return Problem("A tab can't indent YAML.", mark, "write spaces")
    hint = ""
    if line[place.column :].startswith(INDICATORS):
        hint = "write a text that begins like this in quotes"
    return Problem(f"This is not valid YAML: {message}.", mark, hint)


def refused(message: str, mark: Mark, hint: str = "") -> ConfigError:
    """An error of a single problem."""
    return ConfigError([Problem(message, mark, hint)])


class Reader:
    """Turns the nodes of one text into a Document, counting as it goes.

    The count is of what the text expands to, so that a few lines of aliases can't become a tree
    that fills the memory.
    """

    def __init__(self, path: str, text: str, mark: Mark | None = None) -> None:
        self.path, self.fixed_mark = path, mark
        self.lines = masked_lines(LINE_BREAK.split(text))
        self.nodes, self.open = 0, set()
        self.document = Document({})

    def read(self, root: Node) -> Document:
        self.document.tree = self.value(root, ())
        self.forget_hidden()
        return self.document

    def forget_hidden(self) -> None:
        """Drop the marks of what was merged and then replaced."""
        standing = set(paths_below(self.document.tree))
        for marks in (self.document.keys, self.document.values):
            for path in marks.keys() - standing:
                del marks[path]

    def mark(self, node: Node) -> Mark:
        line, column = node.start_mark.line, node.start_mark.column
        text = self.lines[line] if line < len(self.lines) else ""
        return self.fixed_mark or Mark(self.path, line + 1, column + 1, text)

    def error(self, node: Node, message: str, hint: str = "") -> ConfigError:
        return refused(message, self.mark(node), hint)

    def value(self, node: Node, path: ConfigPath) -> Any:
        """The plain value of a node, whose marks are noted."""
        if node.tag not in CORE_TAGS:
            raise self.error(node, f"YAML tags such as `{node.tag}` are not used here.")
        mark = self.mark(node)
        if is_secret(path) and not is_variable(node) and self.fixed_mark is None:
            mark = Mark(mark.file, mark.line, mark.column)  # not the line: it may be all secret
        self.document.values[path] = mark
        if isinstance(node, ScalarNode):
            self.count(node)
            return read_scalar(node.value, plain=node.style is None)
        if isinstance(node, SequenceNode):
            return self.sequence(node, path)
        return self.mapping(node, path)

    def count(self, node: Node) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.error(node, f"The file expands to more than {MAX_NODES:,} values.")

    def enter(self, node: Node) -> None:
        """Begin a collection; its anchor may lead to it again, but not from inside."""
        self.count(node)
        if id(node) in self.open:
            raise self.error(node, "This anchor stands for something that contains itself.")
        self.open.add(id(node))
        if len(self.open) > MAX_DEPTH:
            raise self.error(node, f"It is nested more than {MAX_DEPTH} levels deep.")

    def sequence(self, node: SequenceNode, path: ConfigPath) -> list[Any]:
        self.enter(node)
        result = [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        self.open.remove(id(node))
        return result

    def mapping(self, node: MappingNode, path: ConfigPath) -> dict[str, Any]:
        self.enter(node)
        result: dict[str, Any] = {}
        for key, value in node.value:
            if is_merge(key):
                for merged in reversed(list(self.merged(value))):  # earlier ones win
                    result |= self.mapping(merged, path)
        own: dict[str, Mark] = {}
        for key, value in node.value:
            if is_merge(key):
                continue
            name = self.key(key)
            here = (*path, name)
            if name in own:
                first = f"; first in line {own[name].line}" if own[name].line else ""
                raise self.error(key, f"`{name}` stands twice{first}.")
            own[name] = self.document.keys[here] = self.mark(key)
            result[name] = self.value(value, here)
            if is_empty(value) or is_below(value, key):
                self.document.values[here] = own[name]
        self.open.remove(id(node))
        return result

    def key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode) or node.tag not in CORE_TAGS:
            raise self.error(node, "A key must be a plain name.")
        return node.value

    def merged(self, node: Node) -> Iterator[MappingNode]:
        for each in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(each, MappingNode):
                raise self.error(each, "`<<` merges a mapping, or a list of mappings.")
            yield each


def is_empty(node: Node) -> bool:
    """Whether nothing at all is written behind a key; the mark is then of whatever comes next."""
    return node.value == "" and node.style is None


def is_below(value: Node, key: Node) -> bool:
    """Whether a collection begins in a line below its key, which people take for its place."""
    return isinstance(value, CollectionNode) and value.start_mark.line > key.start_mark.line


def is_variable(node: Node) -> bool:
    """Whether a node is a `${...}`."""
    return isinstance(node, ScalarNode) and node.value.startswith("${")


def is_merge(key: Node) -> bool:
    """Whether a key is YAML's merge key `<<`."""
    return key.value == "<<" and key.style is None
