"""Conversations, texts and tokens as samples: what is written, and what of it is learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from transformers import PreTrainedTokenizerBase

from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX
from automodel_datasets.chat import ChatTemplate
from automodel_datasets.masking import Span, SupervisedText, TokenisedText
from automodel_datasets.messages import Conversation, conversation
from automodel_datasets.options import ConversationOptions, Options
from automodel_datasets.rows import is_unicode


@attrs.frozen
class Completion:
    """A text of which only the end is learned."""

    prompt: str
    completion: str


def conversation_writer(options: ConversationOptions) -> Callable[[Any], SupervisedText]:
    """From a conversation, or its list of messages, to its text.

    Raises:
        UserError: The tokenizer has no chat template.
    """
    if not options.tokenizer.chat_template:
        raise UserError(
            f"The tokenizer {options.tokenizer.name_or_path} has no chat template, so it can't be "
            "told how a conversation is written.",
            fix="name one that has in a `tokenizer:` section",
        )
    template = ChatTemplate(options.tokenizer)

    def write(item: Any) -> SupervisedText:
        if isinstance(item, Conversation):
            talk = conversation(item.messages, item.tools)
        else:
            talk = conversation(item)
        return supervised(template, talk, options)

    return write


def supervised(
    template: ChatTemplate, talk: Conversation, options: ConversationOptions
) -> SupervisedText:
    """The conversation as text; `train_on` and each message's `train` say what is learned."""
    everything = options.train_on == "all"
    for message, train in zip(talk.messages, talk.train, strict=True):
        if message["role"] != "assistant" and train is not None and train is not everything:
            raise UserError(
                f"`train: {str(train).lower()}` stands at a message of the role {message['role']}, "
                f"which `train_on: {options.train_on}` can't do.",
                fix="write it at the assistant's messages only",
            )
    roles = [message["role"] for message in talk.messages]
    last_question = len(roles) - 1 - roles[::-1].index("user")
    first = last_question if options.train_on == "last_turn" else 0

    def learn(index: int) -> bool:
        return index >= first and talk.train[index] is not False

    wanted = template.supervised(talk.messages, talk.tools, learn, options.mask_reasoning)
    if not everything:
        return wanted
    spoken = template.supervised(talk.messages, talk.tools)
    left_out = without(spoken.spans, wanted.spans)
    return attrs.evolve(wanted, spans=without([(0, len(wanted.text))], left_out))


def without(spans: Sequence[Span], holes: Sequence[Span]) -> list[Span]:
    """The parts of `spans` that are in none of `holes`; both in order, and so is the result."""
    left = []
    for start, stop in spans:
        for hole_start, hole_stop in holes:
            if hole_stop > start and hole_start < stop:
                left.append((start, max(start, hole_start)))
                start = hole_stop
        left.append((start, stop))
    return [(start, stop) for start, stop in left if start < stop]


def text_writer(options: Options) -> Callable[[Any], SupervisedText]:
    """From a string or a Completion to its text, with EOS at its end.

    BOS stands in front if the tokenizer puts it there itself.

    Raises:
        UserError: The tokenizer has no EOS, so nothing could end a text.
    """
    tokenizer = options.tokenizer
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer {tokenizer.name_or_path} has no EOS token, so the model couldn't learn "
            "where a text ends.",
            fix="name another tokenizer in a `tokenizer:` section",
        )
    before = own_bos(tokenizer)

    def write(item: Any) -> SupervisedText:
        pair = item if isinstance(item, Completion) else Completion("", item)
        for part in (pair.prompt, pair.completion):
            if not is_unicode(part):
                raise UserError(f"The text is not text but {part!r:.60}.")
        if not pair.completion.strip():
            raise UserError("The text is empty.", fix="fill it in or remove the row")
        text = pair.prompt + pair.completion
        learned = [(len(pair.prompt), len(text))]
        return SupervisedText(text, learned, before=before, after=[tokenizer.eos_token_id])

    return write


def own_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """BOS, if the tokenizer puts it in front of texts itself."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in tokenizer("")["input_ids"] else []


def token_writer(options: Options) -> Callable[[Any], TokenisedText]:
    """From a list of tokens, or a mapping with `input_ids` and perhaps `labels`, to a sample."""
    config = options.model_config
    known = config.get_text_config().vocab_size if config else len(options.tokenizer)

    def write(item: Any) -> TokenisedText:
        pair = item if isinstance(item, Mapping) else {"input_ids": item}
        ids = integers(pair.get("input_ids"), "input_ids")
        outside = [token for token in ids if not 0 <= token < known]
        if outside:
            raise UserError(
                f"input_ids holds {outside[0]}, but the model knows tokens from 0 to {known - 1}."
            )
        if pair.get("labels") is None:
            return TokenisedText(np.array(ids, dtype=np.int32), [(0, len(ids))])
        labels = integers(pair["labels"], "labels")
        same = [label == token for label, token in zip(labels, ids, strict=False)]
        masked = [label == IGNORE_INDEX for label in labels]
        if len(labels) != len(ids) or not all(map(max, same, masked)):
            raise UserError(
                "labels are not those of input_ids: each must be the token in its place, or "
                f"{IGNORE_INDEX}.",
                fix="write labels aligned with input_ids; the shift to the next token comes later",
            )
        return TokenisedText(np.array(ids, dtype=np.int32), runs([not each for each in masked]))

    return write


def integers(value: Any, name: str) -> list[int]:
    """Raises UserError if it is anything but a list of whole numbers, and not empty."""
    if not isinstance(value, list | tuple | np.ndarray) or not len(value):
        raise UserError(f"{name} is no list of tokens but {value!r:.60}.")
    plain = value.tolist() if isinstance(value, np.ndarray) else list(value)
    other = [each for each in plain if not isinstance(each, int) or isinstance(each, bool)]
    if other:
        raise UserError(f"{name} holds {other[0]!r:.40}, which is no token.")
    return plain


def runs(flags: Sequence[bool]) -> list[Span]:
    """Where the flags are set without a break."""
    edges = np.flatnonzero(np.diff([0, *map(int, flags), 0])).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
