"""Which tokens are learned: text with supervised characters becomes tokens with labels.

The whole text is tokenised once, and the tokenizer's character offsets tell which tokens hold the
supervised characters. Pieces are never tokenised apart from each other: their tokens would differ
from those of the whole where they meet.
"""

from __future__ import annotations

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
    A token belongs to a span if any of its characters does; of a text that is supervised from its
    first character to its last, every token is.
    """
    if not texts:
        return []
    tokenizer("", add_special_tokens=False)  # readies its backend: nothing is cut or padded
    backend = tokenizer.backend_tokenizer
    # Where every token is supervised nobody asks for offsets, and without them it is twice as fast.
    encode = backend.encode_batch_fast if all(map(is_whole, texts)) else backend.encode_batch
    encoded = encode([each.text for each in texts], add_special_tokens=False)
    return [_with_spans(*each) for each in zip(texts, encoded, strict=True)]


def is_whole(text: SupervisedText) -> bool:
    return list(text.spans) == [(0, len(text.text))]


def _with_spans(text: SupervisedText, encoding: Encoding) -> TokenisedText:
    ids, shift = encoding.ids, len(text.before)
    inner = [(0, len(ids))] if is_whole(text) else [_tokens_of(encoding, *s) for s in text.spans]
    spans = [(shift + start, shift + stop) for start, stop in inner]
    if text.after:
        end = shift + len(ids)
        spans.append((end, end + len(text.after)))
    return TokenisedText(np.array([*text.before, *ids, *text.after], dtype=np.int32), spans)


def _tokens_of(encoding: Encoding, start: int, stop: int) -> Span:
    """The tokens that hold any of the characters from `start` to before `stop`.

    The encoding is asked for single characters: a list of all its offsets takes longer to make than
    the tokens.
    """
    tokens = map(encoding.char_to_token, range(start, stop))
    first = next((token for token in tokens if token is not None), None)
    if first is None:  # at most tokens whose white space the tokenizer doesn't count
        met = [i for i, (a, b) in enumerate(encoding.offsets) if a < stop and b > start]
        return (met[0], met[-1] + 1) if met else (0, 0)
    tokens = map(encoding.char_to_token, range(stop - 1, start - 1, -1))
    last = next(token for token in tokens if token is not None)
    # Beside them such tokens, and of a character that is several the ones after the first.
    while first and encoding.token_to_chars(first - 1)[1] > start:
        first -= 1
    while (chars := encoding.token_to_chars(last + 1)) is not None and chars[0] < stop:
        last += 1
    return first, last + 1
