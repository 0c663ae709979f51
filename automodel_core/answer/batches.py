"""A file of prompts answered in batches that waste little on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import attrs
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel

from automodel_core.answer.answer_file import AnswerFile
from automodel_core.answer.loading import OpenedModel, context_length
from automodel_core.answer.prompt_file import Asked
from automodel_core.answer.prompting import Prompter, room_for
from automodel_core.answer.sampling import Sampling
from automodel_core.config.report import ConfigError, Problem
from automodel_core.errors import UserError
from automodel_core.generation import chunks, end_tokens, generate

# So many batches are sorted by length together. They are written together too, which is what a kill
# can cost.
WINDOW = 8


@attrs.frozen
class Prompt:
    """A line of the file as the model gets it.

    Attributes:
        index: Of the line among the prompts.
        ids: Its tokens.
        room: How many tokens the answer may have.
    """

    index: int
    ids: list[int]
    room: int


def encode(
    asked: Sequence[Asked], prompter: Prompter, opened: OpenedModel, max_new_tokens: int
) -> list[Prompt]:
    """The prompts of all lines.

    Raises:
        ConfigError: Some lines can't be asked; each is named.
    """
    context = context_length(opened.source.config)
    prompts: list[Prompt] = []
    problems: list[Problem] = []
    for index, each in enumerate(asked):
        try:
            ids = encoded(each, prompter)
            room = room_for(ids, context, max_new_tokens)
            if room < 1:
                raise UserError(
                    f"The prompt has {len(ids):,} tokens, and the model has room for {context:,} "
                    "with its answer.",
                    fix="shorten it",
                )
            prompts.append(Prompt(index, ids, room))
        except UserError as error:
            problems.append(Problem(error.message, each.mark, error.fix))
    if problems:
        raise ConfigError(problems)
    return prompts


def encoded(asked: Asked, prompter: Prompter) -> list[int]:
    """The tokens of one line. Raises UserError if there are none, or the template refuses it."""
    record = asked.record
    if "prompt" in record:
        ids = prompter.ask(record["prompt"])
    else:
        ids = prompter.conversation(record["messages"])
    if not ids:
        raise UserError("The prompt has no tokens.")
    return ids


def batches(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    """Prompts of like lengths together.

    All of a batch have the same room: a row that went on beyond its own, because others may, would
    leave the positions that the model has.
    """
    ordered = sorted(prompts, key=lambda each: (-each.room, len(each.ids)))
    for _, same_room in groupby(ordered, key=lambda each: each.room):
        yield from chunks(list(same_room), size)


def answer_prompts(
    model: PreTrainedModel,
    prompter: Prompter,
    asked: Sequence[Asked],
    prompts: Sequence[Prompt],
    file: AnswerFile,
    *,
    batch_size: int,
    sampling: Sampling,
) -> None:
    """Answer `prompts`, which are some of `asked`, and append them to the file in their order."""
    ends = end_tokens(model, prompter.tokenizer)
    screen = Console(stderr=True)
    with Progress(console=screen, disable=not screen.is_terminal) as progress:
        task = progress.add_task("answering", total=len(asked), completed=prompts[0].index)
        for window in chunks(prompts, batch_size * WINDOW):
            answers = {}
            for batch in batches(window, batch_size):
                answers |= answer_batch(model, prompter, batch, ends, sampling)
                progress.advance(task, len(batch))
            file.append({**asked[each.index].record, **answers[each.index]} for each in window)


def answer_batch(
    model: PreTrainedModel,
    prompter: Prompter,
    batch: Sequence[Prompt],
    ends: Sequence[int],
    sampling: Sampling,
) -> dict[int, dict[str, str]]:
    """What each line gets, by its index."""
    processors = sampling.processors([each.index for each in batch])
    found = generate(
        model, [each.ids for each in batch], ends, batch[0].room, processors=processors
    )
    return {
        prompt.index: {
            "answer": prompter.answer(each.ids),
            "finish_reason": "stop" if each.ended else "length",
        }
        for prompt, each in zip(batch, found, strict=True)
    }
