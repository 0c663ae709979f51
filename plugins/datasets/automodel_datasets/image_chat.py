"""Conversations with images rendered by a processor's template, and where the assistant speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers import ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from automodel_core.errors import UserError
from automodel_datasets.chat import GENERATION_MARKER, end_of_turn, refused
from automodel_datasets.masking import Span, SupervisedText
from automodel_datasets.veiling import PLACEHOLDER

Message = Mapping[str, Any]


class ImageChatTemplate:
    """A processor's chat template, or its tokenizer's.

    Args:
        processor: One with a template.
        marker: What stands just before the words of each answer, as `<start_of_turn>model`; the
            answers start right behind it. If left out they are found by the template alone.

    Raises:
        UserError: There is no template.
    """

    def __init__(self, processor: ProcessorMixin, marker: str | None = None) -> None:
        self.tokenizer, self.marker = processor.tokenizer, marker
        own = getattr(processor, "chat_template", None)
        own = own.get("default") if isinstance(own, dict) else own
        if not own and not self.tokenizer.chat_template:
            raise UserError(
                f"The processor {type(processor).__name__} has no chat template, so conversations "
                "can't be written as its model reads them.",
                fix="name another processor in a `processor:` section",
            )
        self.source: str = own or self.tokenizer.get_chat_template()
        self.marked = GENERATION_MARKER.search(self.source) is not None
        self.end_of_turn = end_of_turn(self.tokenizer)

    def supervised(self, messages: Sequence[Message], place: str) -> SupervisedText:
        """The conversation as text; the words of each answer and what ends the turn supervised.

        Image placeholders stand in the text as the template writes them. Where the template ends
        the last turn with no special token, EOS is appended.

        Args:
            messages: Their contents are lists of parts.
            place: The sample, for errors.

        Raises:
            UserError: The template refuses the conversation or alters it, or the marker is absent.
        """
        messages = [whole_answer(each) if speaks(each) else each for each in messages]
        text, marked = self._render(messages)
        self._check_complete(text, messages, place)
        answers = [i for i, message in enumerate(messages) if speaks(message)]
        if self.marked:
            spans = list(marked)
        else:
            spans = [self._span(text, messages, i, place) for i in answers]
        if len(spans) != len(answers):
            raise UserError(
                f"{place}: the chat template marks {len(spans)} spans for {len(answers)} answers."
            )
        starts = self._starts(text, spans, place)
        ends = [self._end(text, stop) for _, stop in spans]
        eos = self.tokenizer.eos_token
        if eos and not self._ended(text, spans[-1]) and not text[ends[-1] :].strip():
            text = text + eos
            ends[-1] = len(text)
        return SupervisedText(text, list(zip(starts, ends, strict=True)))

    def _end(self, text: str, stop: int) -> int:
        found = self.end_of_turn.match(text, stop)
        return found.end() if found else stop

    def _ended(self, text: str, span: Span) -> bool:
        """Whether a turn ends with a special token, inside its span or behind it."""
        start, stop = span
        inside = max((match.end() for match in self.end_of_turn.finditer(text, start, stop)),
                     default=-1)  # fmt: skip
        return self._end(text, stop) > stop or (inside >= 0 and not text[inside:stop].strip())

    def _span(self, text: str, messages: Sequence[Message], index: int, place: str) -> Span:
        """Where the words of message `index` stand, by rendering a placeholder in their stead."""
        veiled = list(messages)
        veiled[index] = answer(PLACEHOLDER)
        before, found, after = self._render(veiled)[0].partition(PLACEHOLDER)
        start, stop = len(before), len(text) - len(after)
        same = text.startswith(before) and text.endswith(after) and start < stop
        if not found or not same or PLACEHOLDER in after:
            raise UserError(
                f"{place}: the chat template does more with an answer than to insert it, so its "
                f"words can't be told from the template's: {text_of(messages[index])!r:.80}",
                fix="put {% generation %} markers around the answer in the chat template",
            )
        return start, stop

    def _starts(self, text: str, spans: Sequence[Span], place: str) -> list[int]:
        """Where supervision of each turn starts: behind the marker, if there is one.

        Raises:
            UserError: Before some turn's words there is no marker. Without it the turn's start
                would be a guess.
        """
        if self.marker is None:
            return [start for start, _ in spans]
        starts, since = [], 0
        for number, (start, stop) in enumerate(spans, start=1):
            found = text.rfind(self.marker, since, start)
            behind = found + len(self.marker)
            if found < 0:
                # A template may write white space of the marker as a part of the answer.
                inside = text.find(self.marker, since, stop)
                if 0 <= inside <= start and not text[start : inside + len(self.marker)].strip():
                    found, behind = inside, inside + len(self.marker)
            if found < 0 or text[behind:start].strip():
                there = text[max(0, start - 40) : start]
                raise UserError(
                    f"{place}: start_of_response_token {self.marker!r} doesn't stand before the "
                    f"assistant's turn {number}; there it reads {there!r}.",
                    fix="write what the chat template puts there, or leave it out: answers are "
                    "found without it",
                    argument="start_of_response_token",
                )
            starts.append(behind)
            since = stop
        return starts

    def _check_complete(self, text: str, messages: Sequence[Message], place: str) -> None:
        """Refuse a template that silently drops a text."""
        for message in messages:
            for part in message["content"]:
                if part["type"] == "text" and part["text"].strip() not in text:
                    raise UserError(
                        f"{place}: the chat template leaves out or alters a text of the "
                        f"{message['role']}: {part['text']!r:.60}"
                    )

    def _render(self, messages: Sequence[Message]) -> tuple[str, Sequence[Span]]:
        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.source,
                return_assistant_tokens_mask=self.marked,
                **self.tokenizer.special_tokens_map,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise refused(error) from None
        return texts[0], spans[0] if self.marked else ()


def speaks(message: Message) -> bool:
    return message["role"] == "assistant"


def text_of(message: Message) -> str:
    return "".join(part["text"] for part in message["content"])


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def whole_answer(message: Message) -> dict[str, Any]:
    """Several texts as one."""
    return answer(text_of(message))
