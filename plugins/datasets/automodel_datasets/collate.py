"""Samples padded to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX, Batch

PADDED = ("input_ids", "labels")


def default_collater(
    samples: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    padding_side: Literal["right", "left"] = "right",
    pad_to_multiple_of: int | None = None,
) -> Batch:
    """Pad samples to the longest of them.

    Pads are known by their place, never by their token, so a tokenizer whose pad token also ends
    answers does no harm, and one without a pad token needs none.

    Args:
        samples: Each with `input_ids` and `labels` of one length.
        tokenizer: Its pad token fills up; else EOS, else token 0.
        padding_side: Where the pads go.
        pad_to_multiple_of: Make the length a multiple of this, as some kernels like it.

    Returns:
        `input_ids`, `labels`, `attention_mask` and `position_ids`, int64 of `[batch, sequence]`.
        Positions count from 0 at each sample's first token and are 0 on pads; a packed sample's
        own, which begin again with each document, are kept. Numbers under other keys become a
        tensor of `[batch]`; anything else a list.

    Raises:
        UserError: `pad_to_multiple_of` is no length, or samples hold no tokens.
    """
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise UserError(
            f"pad_to_multiple_of is {pad_to_multiple_of}.",
            fix="write a positive number such as 8, or leave it out",
            argument="pad_to_multiple_of",
        )
    multiple = pad_to_multiple_of or 1
    if samples and "input_ids" not in samples[0]:
        raise UserError(
            "The samples are no tokens yet, and this collator only pads.",
            fix="write collate_fn: image_text for conversations with images",
            path=("dataloader", "collate_fn"),
        )
    longest = max((len(sample["input_ids"]) for sample in samples), default=0)
    width = -(-longest // multiple) * multiple
    fills = {
        "input_ids": filler(tokenizer),
        "labels": IGNORE_INDEX,
        "attention_mask": 0,
        "position_ids": 0,
    }
    # In NumPy, where setting a part of a row costs a fraction of what it does in torch.
    shape = (len(samples), width)
    padded = {key: np.full(shape, fill, dtype=np.int64) for key, fill in fills.items()}
    for row, sample in enumerate(samples):
        length = len(sample["input_ids"])
        place = slice(0, length) if padding_side == "right" else slice(width - length, width)
        for key in PADDED:
            padded[key][row, place] = sample[key]
        padded["attention_mask"][row, place] = 1
        padded["position_ids"][row, place] = sample.get("position_ids", np.arange(length))
    batch = {key: torch.from_numpy(array) for key, array in padded.items()}
    others = [key for key in (samples[0] if samples else ()) if key not in padded]
    return batch | {key: gathered([sample[key] for sample in samples]) for key in others}


def filler(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """A token that the model knows; which one makes no difference."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if tokenizer else ():
        if token is not None:
            return token
    return 0


def gathered(values: list[Any]) -> Any:
    """Numbers as a tensor; anything else as it is."""
    return torch.tensor(values) if all(isinstance(v, int | float) for v in values) else values
