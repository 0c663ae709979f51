"""Tokenised texts, one after another in four arrays: in memory, or in files mapped into it, of
which nothing is read before it is asked for and what was read can be forgotten again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import numpy as np

from automodel_datasets.masking import TokenisedText

# Each a file of plain numbers.
KINDS: Mapping[str, Any] = {
    "ids": np.int32,
    "starts": np.int64,
    "spans": np.int32,
    "span_starts": np.int64,
}


@attrs.frozen(eq=False)
class Arrays:
    """The numbers of some texts.

    Attributes:
        ids: `[tokens]`, those of all texts.
        starts: `[texts + 1]`, where in `ids` each text begins, and where the last one ends.
        spans: `[spans, 2]`, the first supervised token of each span, in its text, and the one after
            its last.
        span_starts: `[texts + 1]`, where in `spans` those of each text begin.
    """

    ids: np.ndarray
    starts: np.ndarray
    spans: np.ndarray
    span_starts: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[TokenisedText]) -> Arrays:
        spans = [span for text in texts for span in text.spans]
        return cls(
            ids=np.concatenate([text.ids for text in texts] or [np.empty(0, np.int32)]),
            starts=begins(map(len, texts)),
            spans=np.array(spans, dtype=np.int32).reshape(-1, 2),
            span_starts=begins(len(text.spans) for text in texts),
        )

    @classmethod
    def joined(cls, parts: Sequence[Arrays]) -> Arrays:
        if not parts:
            return cls.of([])
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            starts=begins(np.concatenate([np.diff(part.starts) for part in parts])),
            spans=np.concatenate([part.spans for part in parts]),
            span_starts=begins(np.concatenate([np.diff(part.span_starts) for part in parts])),
        )

    @classmethod
    def read(cls, folder: Path, mapped: bool = True) -> Arrays:
        """What a Writer has written."""
        read = {name: numbers(folder / name, kind, mapped) for name, kind in KINDS.items()}
        return cls(**read | {"spans": in_pairs(read["spans"])})


class Texts(Sequence[TokenisedText]):
    """Texts in memory."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays.starts) - 1

    def __getitem__(self, index: int) -> TokenisedText:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at, of = index % len(self), self.arrays
        spans = of.spans[of.span_starts[at] : of.span_starts[at + 1]]
        ids = np.array(of.ids[of.starts[at] : of.starts[at + 1]])
        return TokenisedText(ids, [tuple(each) for each in spans.tolist()])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each text."""
        return np.diff(self.arrays.starts)


class StoredTexts(Texts):
    """The texts in a folder that a Writer filled. Copies for other processes open it anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., StoredTexts], tuple[Path]]:
        return type(self), (self.folder,)

    @cached_property
    def arrays(self) -> Arrays:
        return Arrays.read(self.folder)


class Writer:
    """Writes texts into a folder as they come; none of them stays in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts = self.tokens = self.spans = 0
        self.files: dict[str, BinaryIO] = {}
        try:
            for name in KINDS:
                self.files[name] = (folder / name).open("wb")
            self._write("starts", np.zeros(1))
            self._write("span_starts", np.zeros(1))
        except OSError:
            self.close()
            raise

    def add(self, texts: Arrays) -> None:
        self._write("ids", texts.ids)
        self._write("starts", texts.starts[1:] + self.tokens)
        self._write("spans", texts.spans)
        self._write("span_starts", texts.span_starts[1:] + self.spans)
        self.texts += len(texts.starts) - 1
        self.tokens += len(texts.ids)
        self.spans += len(texts.spans)

    def so_far(self) -> Arrays:
        """All that was added, in memory; not what a full disk has cut."""
        self.close()
        found, until = Arrays.read(self.folder, mapped=False), self.texts + 1
        return Arrays(
            ids=found.ids[: self.tokens],
            starts=found.starts[:until],
            spans=found.spans[: self.spans],
            span_starts=found.span_starts[:until],
        )

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def _write(self, name: str, values: np.ndarray) -> None:
        np.ascontiguousarray(values, dtype=KINDS[name]).tofile(self.files[name])


def numbers(file: Path, kind: Any, mapped: bool) -> np.ndarray:
    """What a file holds; an empty one can't be mapped."""
    if mapped and file.stat().st_size:
        return np.memmap(file, kind, mode="r")
    return np.fromfile(file, kind)


def in_pairs(spans: np.ndarray) -> np.ndarray:
    """`[spans, 2]`, without half a one at the end."""
    return spans[: len(spans) // 2 * 2].reshape(-1, 2)


def begins(lengths: Iterable[int]) -> np.ndarray:
    """Where each of them begins if they stand one after another, and where the last ends."""
    return np.cumsum([0, *lengths], dtype=np.int64)
