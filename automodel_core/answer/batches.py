"""A file of prompts answered in batches that waste little on padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel

from automodel_core.answer.answer_file import AnswerFile
from automodel_core.answer.loading import OpenedModel, context_length
from automodel_core.answer.prompt_file import Asked
from automodel_core.answer.prompting import Prompt, Prompter, room_for
from automodel_core.answer.sampling import Sampling
from automodel_core.config.report import ConfigError, Problem
from automodel_core.errors import UserError
from automodel_core.generation import chunks, end_tokens, generate

# So many batches are sorted by length together. They are written together too, which is what a kill
# can cost.
WINDOW = 8


@attrs.frozen
class Line:
    """A line of the file as the model gets it.

    Attributes:
        index: Of the line among the prompts.
        ids: Its tokens.
        room: How many tokens the answer may have.
        alone: Whether it shows images, so that it shares no batch and is made again when it is
            answered: the pixels of all lines would not fit in memory.
    """

    index: int
    ids: list[int]
    room: int
    alone: bool


def encode(
    asked: Sequence[Asked], prompter: Prompter, opened: OpenedModel, max_new_tokens: int
) -> list[Line]:
    """The prompts of all lines.

    Raises:
        ConfigError: Some lines can't be asked; each is named.
    """
    context = context_length(opened.source.config)
    lines: list[Line] = []
    problems: list[Problem] = []
    for index, each in enumerate(asked):
        try:
            prompt = prompted(each, prompter)
            room = room_for(prompt, context, max_new_tokens)
            if room < 1:
                raise UserError(
                    f"The prompt has {len(prompt.ids):,} tokens, and the model has room for "
                    f"{context:,} with its answer.",
                    fix="shorten it",
                )
            lines.append(Line(index, prompt.ids, room, alone=bool(prompt.seen)))
        except UserError as error:
            problems.append(Problem(error.message, each.mark, error.fix))
    if problems:
        raise ConfigError(problems)
    return lines


def prompted(asked: Asked, prompter: Prompter) -> Prompt:
    """The prompt of one line; its image files are found beside the file of prompts.

    Raises:
        UserError: It has no tokens, the template refuses it, or an image can't be read.
    """
    record = asked.record
    if "prompt" in record:
        prompt = prompter.ask(record["prompt"])
    else:
        prompt = prompter.conversation(record["messages"], Path(asked.mark.file).parent)
    if not prompt.ids:
        raise UserError("The prompt has no tokens.")
    return prompt


def batches(lines: Sequence[Line], size: int) -> Iterator[Sequence[Line]]:
    """Prompts of like lengths together, those with images alone.

    All of a batch have the same room: a row that went on beyond its own, because others may, would
    leave the positions that the model has.
    """
    yield from ([each] for each in lines if each.alone)
    ordered = sorted(
        (each for each in lines if not each.alone), key=lambda each: (-each.room, len(each.ids))
    )
    for _, same_room in groupby(ordered, key=lambda each: each.room):
        yield from chunks(list(same_room), size)


def answer_prompts(
    model: PreTrainedModel,
    prompter: Prompter,
    asked: Sequence[Asked],
    lines: Sequence[Line],
    file: AnswerFile,
    *,
    batch_size: int,
    sampling: Sampling,
) -> None:
    """Answer `lines`, which are some of `asked`, and append them to the file in their order."""
    ends = end_tokens(model, prompter.tokenizer)
    screen = Console(stderr=True)
    with Progress(console=screen, disable=not screen.is_terminal) as progress:
        task = progress.add_task("answering", total=len(asked), completed=lines[0].index)
        for window in chunks(lines, batch_size * WINDOW):
            answers = {}
            for batch in batches(window, batch_size):
                first = batch[0]
                seen = prompted(asked[first.index], prompter).seen if first.alone else {}
                answers |= answer_batch(model, prompter, batch, seen, ends, sampling)
                progress.advance(task, len(batch))
            file.append({**asked[each.index].record, **answers[each.index]} for each in window)


def answer_batch(
    model: PreTrainedModel,
    prompter: Prompter,
    batch: Sequence[Line],
    seen: Mapping[str, Any],
    ends: Sequence[int],
    sampling: Sampling,
) -> dict[int, dict[str, str]]:
    """What each line gets, by its index; `seen` is what a single line shows."""
    found = generate(
        model,
        [each.ids for each in batch],
        ends,
        batch[0].room,
        processors=sampling.processors([each.index for each in batch]),
        seen=seen,
    )
    return {
        line.index: {
            "answer": prompter.answer(each.ids),
            "finish_reason": "stop" if each.ended else "length",
        }
        for line, each in zip(batch, found, strict=True)
    }
