"""Conversations with images as a batch, by the model's own processor.

A processor writes many image tokens where the template has one placeholder, and tokenises only
then. So the answers are marked in its text by two characters that no text holds; they travel
through its expansion and are taken out just before the tokenizer, whose offsets then tell which
tokens are supervised. Nothing has to be known of how a family expands its images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase, ProcessorMixin

from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX, Batch
from automodel_datasets.image_chat import ImageChatTemplate
from automodel_datasets.images import shrunk
from automodel_datasets.masking import Span, SupervisedText, require_offsets

# Unicode's noncharacters, never used in the interchange of text.
OPEN, CLOSE = "\ufdd0", "\ufdd1"

PIXEL_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def image_text_collater(
    samples: Sequence[Mapping[str, Any]],
    processor: ProcessorMixin | None,
    start_of_response_token: str | None = None,
    padding_side: Literal["right", "left"] = "right",
    pad_to_multiple_of: int | None = None,
    max_pixels: int | None = None,
    image_size: dict[str, int] | None = None,
    pixel_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> Batch:
    """Conversations about images as the model's forward takes them, with labels.

    Labels are the assistant's words and what ends its turns; never image tokens, pads or what
    others say.

    Args:
        samples: Each with `messages`, their decoded `images` and a `place` for errors.
        processor: The run's.
        start_of_response_token: What the template writes before each answer. It is checked before
            every one of them. Answers are found without it as well.
        padding_side: Where the pads go.
        pad_to_multiple_of: Make the length a multiple of this.
        max_pixels: Larger images are made smaller, in the same proportions.
        image_size: Another `size` than the processor's, in its own terms.
        pixel_dtype: Of the pixels; half the bytes travel to the device in bfloat16.

    Returns:
        `input_ids`, `labels`, `attention_mask` and `position_ids`, int64 of `[batch, sequence]`,
        and whatever else the processor gives, such as `pixel_values`. Positions count from 0 at
        each sample's first token and are 0 on pads.

    Raises:
        UserError: There is no processor, or it or its template can't be used on a sample.
    """
    if processor is None:
        raise UserError(
            "This collator works by a processor, and the run has none: its model is one of text.",
            fix="use a model that reads images, or another collate_fn",
        )
    require_offsets(processor.tokenizer)
    if processor.tokenizer.pad_token_id is None:
        raise UserError(
            "The processor's tokenizer has no pad token.",
            fix="name a processor that has one in a `processor:` section",
        )
    if max_pixels is not None and max_pixels < 1:
        raise UserError(f"max_pixels is {max_pixels}.", argument="max_pixels")
    template = ImageChatTemplate(processor, start_of_response_token)
    texts = [template.supervised(each["messages"], each["place"]) for each in samples]
    images = [[shrunk(image, max_pixels) for image in each["images"]] for each in samples]
    reader = copy.copy(processor)
    reader.tokenizer = listener = Listener(processor.tokenizer)
    bos = processor.tokenizer.bos_token
    try:
        batch = reader(
            text=[marked(text, each["place"]) for text, each in zip(texts, samples, strict=True)],
            images=images if any(images) else None,
            padding=True,
            padding_side=padding_side,
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors="pt",
            add_special_tokens=not (bos and texts[0].text.startswith(bos)),
            **({"size": image_size} if image_size and any(images) else {}),
        )
    except ValueError as error:
        places = ", ".join(each["place"] for each in samples)
        raise UserError(f"The processor refuses {places}: {error}") from None
    return with_labels(dict(batch), listener.supervised, processor, PIXEL_DTYPES[pixel_dtype])


def with_labels(
    batch: Batch, supervised: np.ndarray, processor: ProcessorMixin, dtype: torch.dtype
) -> Batch:
    """What the processor gave, with labels and positions, and pixels in another dtype."""
    attended = batch["attention_mask"]
    learned = torch.from_numpy(supervised) & attended.bool()
    batch["labels"] = batch["input_ids"].where(learned, torch.tensor(IGNORE_INDEX))
    batch["position_ids"] = (attended.cumsum(-1) - 1) * attended
    if "image_grid_thw" in batch and "mm_token_type_ids" not in batch:
        # Older processors leave to the model what its three-dimensional positions need.
        batch["mm_token_type_ids"] = (batch["input_ids"] == processor.image_token_id).long()
    return {
        name: value.to(dtype) if name == "pixel_values" and torch.is_tensor(value) else value
        for name, value in batch.items()
    }


def marked(text: SupervisedText, place: str) -> str:
    """The text with its spans between OPEN and CLOSE.

    Raises:
        UserError: The text has such a character itself.
    """
    if OPEN in text.text or CLOSE in text.text:
        raise UserError(
            f"{place} holds the noncharacter U+FDD0 or U+FDD1.", fix="remove it from the text"
        )
    pieces, since = [], 0
    for start, stop in text.spans:
        pieces += [text.text[since:start], OPEN, text.text[start:stop], CLOSE]
        since = stop
    return "".join([*pieces, text.text[since:]])


class Listener:
    """A processor's tokenizer that takes the marks out of what it is given.

    Attributes:
        supervised: `[batch, sequence]`, whether a token holds marked characters.
    """

    supervised: np.ndarray

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Sequence[str], **settings: Any) -> BatchEncoding:
        cleaned = [unmarked(each) for each in text]
        encoding = self._tokenizer(
            [clean for clean, _, _ in cleaned], **settings, return_offsets_mapping=True
        )
        offsets = np.asarray(encoding.pop("offset_mapping"))
        self.supervised = np.stack(
            [within(row, spans) for row, (_, spans, _) in zip(offsets, cleaned, strict=True)]
        )
        # Processors that ask where a character went mean their own text, with the marks.
        char_to_token = encoding.char_to_token
        encoding.char_to_token = lambda row, char: char_to_token(
            row, char - sum(mark < char for mark in cleaned[row][2])
        )
        return encoding


def unmarked(text: str) -> tuple[str, list[Span], list[int]]:
    """The text without marks, the spans in it, and where the marks were."""
    marks = [place for place, char in enumerate(text) if char in (OPEN, CLOSE)]
    places = [mark - number for number, mark in enumerate(marks)]
    clean = text.replace(OPEN, "").replace(CLOSE, "")
    return clean, list(zip(places[::2], places[1::2], strict=True)), marks


def within(offsets: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """Which tokens have characters in a span; tokens without characters, as pads, have none."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    found = np.zeros(len(offsets), dtype=bool)
    for start, stop in spans:
        found |= (starts < stop) & (ends > start) & (ends > starts)
    return found
