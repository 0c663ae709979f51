"""Questions with answers, and perhaps a context, as samples: their format, length and dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from transformers import PreTrainedTokenizerBase

from automodel_core.errors import UserError
from automodel_datasets.building import BadRows, Prepared, Preparing, written
from automodel_datasets.chat import ChatTemplate
from automodel_datasets.masking import SupervisedText, TokenisedText, require_offsets, tokenise
from automodel_datasets.options import Options
from automodel_datasets.stored import Arrays
from automodel_datasets.writing import own_bos


@attrs.frozen
class Example:
    """One row, its strings stripped. Without an answer it is left out and counted."""

    context: str
    question: str
    answer: str


# What turns an example into the text of a sample.
Format = Callable[[Example], SupervisedText]


def preparing_answers(options: Options) -> Preparing:
    """Formats and tokenises Examples: as a chat if the tokenizer has a template, else as text.

    Args:
        options: Of the data set. The context is cut to keep within its limit, never the answer.

    Raises:
        UserError: The tokenizer or its template can't be used.
    """
    tokenizer, limit = options.tokenizer, options.limit
    require_offsets(tokenizer)
    write = chat_format(tokenizer) if tokenizer.chat_template else text_format(tokenizer)
    unanswered = "Rows left out because they have no answer"
    shortened = f"Contexts cut to keep within max_length, {limit} tokens"
    too_long = f"Rows left out because even without a context they exceed {limit} tokens"

    def prepare(items: Sequence[Any]) -> Prepared:
        bad, samples = BadRows(options.on_bad_row == "skip"), []
        counts = {unanswered: 0, shortened: 0, too_long: 0}
        examples = list(written(items, as_it_is, bad))
        answered = [example for example in examples if example.answer]
        counts[unanswered] += len(examples) - len(answered)
        whole = tokenise(tokenizer, [write(example) for example in answered])
        for example, tokens in zip(answered, whole, strict=True):
            fitting = fit(example, tokens, limit, tokenizer, write)
            counts[too_long] += fitting is None
            counts[shortened] += fitting is not None and fitting is not tokens
            samples += [fitting] if fitting else []
        return Prepared(len(items), Arrays.of(samples), counts, bad)

    return prepare


def as_it_is(example: Example) -> Example:
    return example


def chat_format(tokenizer: PreTrainedTokenizerBase) -> Format:
    """User: context and question. Assistant: answer."""
    template = ChatTemplate(tokenizer)

    def write(example: Example) -> SupervisedText:
        prompt = "\n\n".join(part for part in (example.context, example.question) if part)
        return template.supervised(
            [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": example.answer},
            ]
        )

    return write


def text_format(tokenizer: PreTrainedTokenizerBase) -> Format:
    """`Context: ... Question: ... Answer: ...` and EOS, for tokenizers of base models.

    BOS stands in front if the tokenizer puts it there itself.

    Raises:
        UserError: The tokenizer has no EOS, so nothing could end an answer.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer {tokenizer.name_or_path} has neither a chat template nor an EOS token, "
            "so the model couldn't learn where an answer ends.",
            fix="name another tokenizer in a `tokenizer:` section",
        )
    before = own_bos(tokenizer)

    def write(example: Example) -> SupervisedText:
        prompt = text_prompt(example.context, example.question)
        text = f"{prompt} {example.answer}"
        return SupervisedText(
            text, [(len(prompt), len(text))], before=before, after=[tokenizer.eos_token_id]
        )

    return write


def text_prompt(context: str, question: str) -> str:
    """What stands before the answer, without a chat template."""
    parts = [("Context", context), ("Question", question)]
    return " ".join(f"{name}: {text}" for name, text in parts if text) + " Answer:"


def write_prompt(text: str) -> str:
    """The same from what a user types: a question, unless it is written as a prompt already."""
    return text if text.rstrip().endswith("Answer:") else text_prompt("", text)


def fit(
    example: Example,
    tokens: TokenisedText,
    limit: int | None,
    tokenizer: PreTrainedTokenizerBase,
    write: Format,
) -> TokenisedText | None:
    """The sample with as much of its context as fits in `limit` tokens; None if nothing helps.

    How many tokens a shorter context saves is an estimate, because tokens differ where texts meet;
    so the sample is written and tokenised anew until it fits.
    """
    if limit is None or len(tokens) <= limit:
        return tokens
    context = tokenizer(example.context, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in context["offset_mapping"]]
    while (excess := len(tokens) - limit) > 0:
        if not ends:
            return None
        del ends[-excess:]
        shorter = example.context[: ends[-1]].rstrip() if ends else ""
        if not shorter and not example.question:
            return None
        tokens = tokenise(tokenizer, [write(attrs.evolve(example, context=shorter))])[0]
    return tokens
