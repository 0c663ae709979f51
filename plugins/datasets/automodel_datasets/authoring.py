"""A function that yields conversations, questions, texts or tokens becomes a data set.

    @conversations
    def riddles(path: str): ...

The target takes the function's parameters and the engine's options: `Options`, and for
conversations `ConversationOptions`. What it names itself and an option's name also means, such as
`tokenizer`, is given to both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any

from automodel_core.protocols import WithOptions
from automodel_datasets.building import Preparing, TokenisedDataset, build, preparing_texts
from automodel_datasets.cache import once
from automodel_datasets.options import ConversationOptions, Options
from automodel_datasets.question_answer import preparing_answers
from automodel_datasets.streaming import TokenStream
from automodel_datasets.writing import conversation_writer, text_writer, token_writer

# Yields items; any may be wrapped in a `Placed`, and a UserError stands for a row that is broken.
Author = Callable[..., Iterable[Any]]

# From the options to who prepares what an author yields; it can be pickled.
Start = Callable[[Any], Preparing]


def conversations(author: Author) -> WithOptions[ConversationOptions]:
    """For a function that yields lists of messages, or Conversations with their tools."""
    return _target(
        author, ConversationOptions, partial(preparing_texts, conversation_writer, False)
    )


def questions(author: Author) -> WithOptions[Options]:
    """For a function that yields Examples: a question, an answer, and perhaps a context, which is
    cut where a sample is too long."""
    return _target(author, Options, preparing_answers)


def texts(author: Author) -> WithOptions[Options]:
    """For a function that yields strings, learned whole, or Completions. EOS ends each.

    A string that is too long goes on in the next sample; a Completion is left out and counted.
    """
    return _target(author, Options, partial(preparing_texts, text_writer, True))


def tokens(author: Author) -> WithOptions[Options]:
    """For a function that yields lists of tokens, or mappings of `input_ids` and `labels`.

    What is too long goes on in the next sample, or is left out and counted if labels mask some.
    """
    return _target(author, Options, partial(preparing_texts, token_writer, True))


def _target(
    author: Author,
    kind: type[Options],
    start: Start,
) -> Callable[..., TokenisedDataset | TokenStream]:
    own = inspect.signature(author).parameters
    options = inspect.signature(kind).parameters
    added = [each for name, each in options.items() if name not in own]
    # A stable sort: what only keywords reach stands behind what is positional.
    signature = inspect.Signature(
        sorted([*own.values(), *added], key=lambda each: each.kind),
        return_annotation=TokenisedDataset | TokenStream,
    )

    @wraps(author)
    def make(*positional: Any, **named: Any) -> TokenisedDataset | TokenStream:
        given = signature.bind(*positional, **named).arguments
        chosen = kind(**{name: value for name, value in given.items() if name in options})
        arguments = {name: value for name, value in given.items() if name in own}
        if chosen.streaming:
            return TokenStream(make, given, author, arguments, start, chosen)
        return once(
            author, arguments, chosen, lambda keep: build(author(**arguments), start, chosen, keep)
        )

    make.__signature__ = signature
    return make
