"""Tokenised texts in files that are mapped into memory: nothing of them is read before it is asked
for, and what was read can be forgotten again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from automodel_datasets.masking import TokenisedText

# One file for each; texts and their spans stand one after another, and two files say where.
IDS, STARTS, SPANS, SPAN_STARTS = "ids.npy", "starts.npy", "spans.npy", "span_starts.npy"


class StoredTexts(Sequence[TokenisedText]):
    """The texts in a folder that `write` filled. Copies for other processes open it anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., StoredTexts], tuple[Path]]:
        return StoredTexts, (self.folder,)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> TokenisedText:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = index % len(self)
        spans = self._spans[self._span_starts[at] : self._span_starts[at + 1]]
        ids = np.array(self._ids[self._starts[at] : self._starts[at + 1]])
        return TokenisedText(ids, [tuple(each) for each in spans.tolist()])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each text."""
        return np.diff(self._starts)

    @cached_property
    def _ids(self) -> np.ndarray:
        return np.load(self.folder / IDS, mmap_mode="r")

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.load(self.folder / STARTS, mmap_mode="r")

    @cached_property
    def _spans(self) -> np.ndarray:
        return np.load(self.folder / SPANS, mmap_mode="r")

    @cached_property
    def _span_starts(self) -> np.ndarray:
        return np.load(self.folder / SPAN_STARTS, mmap_mode="r")


def write(texts: Sequence[TokenisedText], folder: Path) -> None:
    """Write texts into a folder, one after another."""
    starts = begins(len(each) for each in texts)
    span_starts = begins(len(each.spans) for each in texts)
    np.save(folder / STARTS, starts)
    np.save(folder / SPAN_STARTS, span_starts)
    ids = np.lib.format.open_memmap(folder / IDS, "w+", np.int32, (int(starts[-1]),))
    spans = np.lib.format.open_memmap(folder / SPANS, "w+", np.int32, (int(span_starts[-1]), 2))
    for number, text in enumerate(texts):
        ids[starts[number] : starts[number + 1]] = text.ids
        if text.spans:
            spans[span_starts[number] : span_starts[number + 1]] = text.spans
    ids.flush()
    spans.flush()


def begins(lengths: Iterable[int]) -> np.ndarray:
    """Where each of them begins if they stand one after another, and where the last ends."""
    return np.cumsum([0, *lengths], dtype=np.int64)
