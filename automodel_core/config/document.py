"""What the user wrote: one plain tree that remembers where everything in it stood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from automodel_core.config.report import Mark, Problem
from automodel_core.errors import ConfigPath


@attrs.define
class Document:
    """What the user wrote, from one source or from several laid over each other.

    Attributes:
        tree: Mappings, lists and scalars; Variables stay unresolved. A mapping for a file.
        keys: Where each key was written.
        values: Where each value was written.
        spellings: What the user called a key that has moved to our name for it.
        problems: What was wrong with single parts, which then were left out.
    """

    tree: Any
    keys: dict[ConfigPath, Mark] = attrs.field(factory=dict)
    values: dict[ConfigPath, Mark] = attrs.field(factory=dict)
    spellings: dict[ConfigPath, ConfigPath] = attrs.field(factory=dict)
    problems: list[Problem] = attrs.field(factory=list)

    def get(self, path: ConfigPath, default: Any = None) -> Any:
        """The value at `path`; `default` if there is none."""
        value = self.tree
        for name in path:
            try:
                value = value[name]
            except (KeyError, IndexError, TypeError):
                return default
        return value

    def has(self, path: ConfigPath) -> bool:
        """Whether anything stands at `path`, be it none."""
        missing = object()
        return self.get(path, missing) is not missing

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

    def name(self, path: ConfigPath) -> str:
        """`path` as the user spells it."""
        for length in range(len(path), 0, -1):
            if (written := self.spellings.get(path[:length])) is not None:
                return dotted((*written, *path[length:]))
        return dotted(path)

    def part(self, path: ConfigPath) -> Document:
        """What stands at `path`, as a document of its own."""
        piece = Document(self.get(path))
        for below in paths_below(piece.tree):
            for mine, theirs in zip(piece.notes(), self.notes(), strict=True):
                if (note := theirs.get((*path, *below))) is not None:
                    mine[below] = note
        return piece

    def cut(self, path: ConfigPath) -> None:
        """Remove what stands at `path`, with its marks."""
        for below in paths_below(self.get(path)):
            for notes in self.notes():
                notes.pop((*path, *below), None)
        del self.get(path[:-1])[path[-1]]

    def graft(self, path: ConfigPath, piece: Document) -> None:
        """Put `piece` to `path`, a key that its mapping lacks or the place of a list where it is to
        be inserted."""
        holder = self.get(path[:-1])
        if isinstance(holder, list):
            holder.insert(path[-1], piece.tree)
        else:
            holder[path[-1]] = piece.tree
        for mine, theirs in zip(self.notes(), piece.notes(), strict=True):
            mine.update(((*path, *below), note) for below, note in theirs.items())

    def notes(self) -> tuple[dict[ConfigPath, Any], ...]:
        """All that is known of paths."""
        return self.keys, self.values, self.spellings

    def merge(self, other: Document) -> None:
        """Lay `other` over this one: mappings are merged, everything else is replaced."""
        if () in other.values:
            self.values.setdefault((), other.values[()])
        self.problems += other.problems
        self._lay((), other)

    def _lay(self, path: ConfigPath, other: Document) -> None:
        base = self.get(path)
        for name, value in other.get(path).items():
            here = (*path, name)
            if isinstance(value, dict) and isinstance(base.get(name), dict):
                self.keys[here], self.values[here] = other.keys[here], other.values[here]
                self._lay(here, other)
                continue
            if name in base:
                self.cut(here)
            self.graft(here, other.part(here))


def paths_below(value: Any) -> Iterator[ConfigPath]:
    """The paths of everything in a value, relative to it; its own is ()."""
    yield ()
    children = value.items() if isinstance(value, dict) else []
    if isinstance(value, list):
        children = enumerate(value)
    for name, child in children:
        for path in paths_below(child):
            yield (name, *path)


def dotted(path: ConfigPath) -> str:
    """`("a", "b", 0)` -> `a.b.0`."""
    return ".".join(map(str, path))
