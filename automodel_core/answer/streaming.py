"""Text that grows while a model writes it."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

# What a decoder writes for bytes that are no whole character yet: at most three of four.
INCOMPLETE = re.compile("\N{REPLACEMENT CHARACTER}{1,3}$")

# Control characters other than tab and newline: a terminal would obey them.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class TextStream(BaseStreamer):
    """Hands on the text of each new token, as soon as its characters are whole.

    Everything is decoded again with each token: what a token looks like depends on those before it.

    Attributes:
        text: All of it so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], object]) -> None:
        self.tokenizer, self.write = tokenizer, write
        self.text = ""
        self._ids: list[int] = []
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt `[1, sequence]` first, which isn't shown, and then token by token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += value.flatten().tolist()
        self._hand_on(INCOMPLETE.sub("", self._decoded()))

    def end(self) -> None:
        """Hand on what is left."""
        self._hand_on(self._decoded())

    def _decoded(self) -> str:
        return self.tokenizer.decode(self._ids, skip_special_tokens=True).lstrip()

    def _hand_on(self, text: str) -> None:
        if len(text) > len(self.text):
            new, self.text = text[len(self.text) :], text
            self.write(shown(new))


def shown(text: str) -> str:
    """A model's words without what a terminal might obey."""
    return CONTROL.sub("", text)
