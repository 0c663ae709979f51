"""Which tokens are learned: text with supervised characters becomes tokens with labels.

The whole text is tokenised once, and the tokenizer's character offsets tell which tokens hold the
supervised characters. Pieces are never tokenised apart from each other: their tokens would differ
from those of the whole where they meet.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX, Sample

# From the first supervised character or token to just after the last.
Span = tuple[int, int]


@attrs.frozen
class SupervisedText:
    """A whole sample before tokenisation.

    Attributes:
        text: All of it, special tokens of a chat template included.
        spans: The supervised characters, in order.
        before: Tokens in front of the text, such as BOS.
        after: Supervised tokens behind the text, such as EOS.
        dropped: How often something of the conversation is not learned because the chat template
            leaves it out, by what it is.
    """

    text: str
    spans: Sequence[Span]
    before: Sequence[int] = ()
    after: Sequence[int] = ()
    dropped: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen(eq=False)
class TokenisedText:
    """A whole sample as tokens; compact, because a data set keeps all of them in memory.

    Attributes:
        ids: `[sequence]`, int32.
        spans: The supervised tokens, in order.
    """

    ids: np.ndarray
    spans: Sequence[Span]

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self) -> Sample:
        """Its tokens, and its labels aligned with them."""
        input_ids = self.ids.tolist()
        labels = [IGNORE_INDEX] * len(input_ids)
        for start, stop in self.spans:
            labels[start:stop] = input_ids[start:stop]
        return {"input_ids": input_ids, "labels": labels}


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse, by name, a tokenizer that can't say which characters a token stands for."""
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path} gives no "
            "character offsets, so the answers can't be told from the prompts exactly.",
            fix="use one that has a tokenizer.json (a `tokenizer:` section can name it)",
        )


def tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[SupervisedText]
) -> list[TokenisedText]:
    """Tokenise whole texts and find their supervised tokens.

    Special tokens that a text spells out are recognised; none is added beside `before` and `after`.
    A token belongs to a span if any of its characters does.
    """
    if not texts:
        return []
    encoded = tokenizer(
        [each.text for each in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    rows = zip(texts, encoded["input_ids"], encoded.encodings, strict=True)
    return [_with_spans(text, ids, encoding) for text, ids, encoding in rows]


def _is_whole(text: SupervisedText, encoding: Encoding) -> bool:
    """Whether every token is learned, which two of its offsets tell: all of them are a list that
    takes longer to make than the tokens."""
    if list(text.spans) != [(0, len(text.text))] or not len(encoding):
        return False
    first, last = encoding.token_to_chars(0), encoding.token_to_chars(len(encoding) - 1)
    return first is not None and last is not None and first[1] > 0 and last[0] < len(text.text)


def _with_spans(text: SupervisedText, ids: Sequence[int], encoding: Encoding) -> TokenisedText:
    shift = len(text.before)
    if _is_whole(text, encoding):
        spans = [(shift, shift + len(ids))]
    else:
        offsets = encoding.offsets
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        spans = [
            (shift + bisect_right(ends, start), shift + bisect_left(starts, stop))
            for start, stop in text.spans
        ]
    if text.after:
        end = shift + len(ids)
        spans.append((end, end + len(text.after)))
    return TokenisedText(np.array([*text.before, *ids, *text.after], dtype=np.int32), spans)
