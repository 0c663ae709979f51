"""Tokens as text that can be printed: each with what it is for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs
from transformers import PreTrainedTokenizerBase

from automodel_core.data_report.documents import Document, Row

Role = Literal["learned", "context", "pad", "boundary"]


@attrs.frozen
class Piece:
    """One token, or a few that only together are text.

    Attributes:
        text: What they stand for.
        ids: The tokens.
        role: Whether they are learned.
    """

    text: str
    ids: tuple[int, ...]
    role: Role


def pieces_of(row: Row, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    """A row from its first document to its padding; documents are parted by a boundary."""
    for number, document in enumerate(row.documents):
        if number:
            yield Piece("", (), "boundary")
        yield from _tokens(document, tokenizer)
    if row.pads:
        yield Piece(f"{row.pads} x pad", (), "pad")


def _tokens(document: Document, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    held: list[int] = []
    supervised = document.supervised
    for place, token in enumerate(document.ids.tolist()):
        held.append(token)
        text = tokenizer.decode(held)
        ends = place + 1 == len(document.ids) or supervised[place + 1] != supervised[place]
        # A character may take several tokens; until its last there is no text.
        if not text.endswith("\ufffd") or len(held) > 8 or ends:
            yield Piece(text, tuple(held), "learned" if supervised[place] else "context")
            held = []
