"""Conversations rendered by a chat template, and where in the text the assistant speaks.

Most templates don't mark the assistant's words, so they are found by rendering the conversation a
second time with a placeholder in their place: what stands before and after it is the template's.
What the model writes beside its words (a thought, tool calls and what encloses them) begins where
the template's generation prompt ends.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from automodel_core.errors import UserError
from automodel_datasets.masking import SupervisedText
from automodel_datasets.veiling import (
    CLOSED_THOUGHT,
    EMPTY_THOUGHT,
    INLINE_THOUGHT,
    NUMBER,
    PLACEHOLDER,
    THOUGHT,
    Message,
    as_json,
    thought_of,
    veil,
    with_arguments,
    with_parsed_arguments,
    without_thought,
    words_of,
)

GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: One that has a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.source = tokenizer.get_chat_template()
        self.marked = GENERATION_MARKER.search(self.source) is not None
        self.end_of_turn = end_of_turn(tokenizer)
        self._arguments_as_json = False

    def supervised(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        learn: Callable[[int], bool] = lambda index: True,
        mask_reasoning: bool = False,
    ) -> SupervisedText:
        """The conversation as text; each assistant message and its end-of-turn token supervised.

        Neither headers nor what follows the end of the turn are, nor an empty thought that the
        template writes. A template with `{% generation %}` markers decides for itself.

        Args:
            messages: In OpenAI's form, with `tool_calls` and `reasoning_content` if there are any.
            tools: The JSON schemas of the tools that the conversation may use.
            learn: Whether the assistant's message of this index is supervised.
            mask_reasoning: Supervise answers and tool calls, not the thoughts before them.

        Raises:
            UserError: The template refuses the conversation, or alters it beyond recognition.
        """
        speaking = [i for i, each in enumerate(messages) if each["role"] == "assistant"]
        messages = [with_parsed_arguments(message) for message in messages]
        text = self._render(messages, tools)
        dropped: Counter[str] = Counter()
        try:
            spans = [
                self._span(text, messages, index, tools, mask_reasoning, dropped)
                for index in speaking
                if learn(index)
            ]
        except UserError:
            if not self.marked:
                raise
            return self._as_marked(messages, tools, list(map(learn, speaking)), mask_reasoning)
        if self.marked:
            # Markers of real templates enclose headers, line ends and a second EOS as well.
            marked = self._marked_spans(messages, tools)[1]
            words = [(start, end) for start, _, end in spans]
            return SupervisedText(text, overlaps(marked, words), dropped=dropped)
        return self._ended(text, spans, dropped)

    def _ended(
        self, text: str, spans: Sequence[tuple[int, int, int]], dropped: Mapping[str, int]
    ) -> SupervisedText:
        """Each turn with its end-of-turn token; EOS where a template ends the last one with none.

        White space between is supervised too: the model has to write it to reach the end.

        Args:
            text: The whole conversation.
            spans: Where each turn starts, where its words stop, and where its end token does.
        """
        ended = [(start, end) for start, _, end in spans]
        eos = self.tokenizer.eos_token_id
        bare = bool(spans) and self._ending is None and not text[spans[-1][2] :].strip()
        if not bare or eos is None:
            return SupervisedText(text, ended, dropped=dropped)
        last = (spans[-1][0], len(text))
        return SupervisedText(text, [*ended[:-1], last], after=[eos], dropped=dropped)

    @cached_property
    def _ending(self) -> re.Pattern[str] | None:
        """What ends a turn of words, wherever it stands; None if only the next header follows.

        An answer is rendered as the last message and with a question behind it: what both have is
        the turn's own end, several tokens in some families (Cohere). Where they end in different
        tokens (gpt-oss), it is the first one.
        """
        plain = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACEHOLDER}]
        try:
            alone = self._render(plain).partition(PLACEHOLDER)[2]
            followed = self._render([*plain, plain[0]]).partition(PLACEHOLDER)[2]
        except UserError:
            return self.end_of_turn
        if not self.end_of_turn.match(alone):
            return None
        shared, end = alone[: in_common(alone, followed)], 0
        while found := self.end_of_turn.match(shared, end):
            if end and shared[end : found.end()].lstrip() != shared[end : found.end()]:
                break
            end = found.end()
        return re.compile(r"\s*" + re.escape(shared[:end].strip())) if end else self.end_of_turn

    def _end_of_turn(self, text: str, stop: int) -> int:
        """Just after the token that ends the turn whose words end at `stop`, or there if none."""
        if self._ending is None:
            return stop
        found = self._ending.match(text, stop) or self.end_of_turn.match(text, stop)
        return found.end() if found else stop

    def _span(
        self,
        text: str,
        messages: Sequence[Message],
        index: int,
        tools: Any,
        mask: bool,
        dropped: Counter[str],
    ) -> tuple[int, int, int]:
        """Where in `text` the model's part of message `index` starts, stops, and its turn ends.

        What the template leaves out of the message is counted in `dropped`.
        """
        message = messages[index]
        veiled = [*messages[:index], veil(message), *messages[index + 1 :]]
        shown = self._render(veiled, tools)
        calls = message.get("tool_calls")
        if calls and str(NUMBER) not in shown:
            raise calls_left_out()
        start, stop, words = self._difference(text, shown, message)
        if thought_of(message) and THOUGHT not in shown:
            dropped["thoughts"] += 1
        if words_of(message).strip() and PLACEHOLDER not in shown:
            dropped["words beside tool calls"] += 1
        end = self._end_of_calls(text, stop, messages[: index + 1], tools) if calls else None
        end = self._end_of_turn(text, stop) if end is None else end
        if THOUGHT not in shown:  # the template leaves it out here, as Qwen3 in earlier turns
            message = without_thought(message)
        elif mask:
            if words is None:
                words = self._after_thought(text, shown, messages[:index], message, tools)
            return words, stop, end
        first = start
        if self._writes_more or calls or thought_of(message):
            opening = self._opening([*messages[:index], message], tools, PLACEHOLDER)
            if not text.endswith(opening, 0, start):
                # An empty thought that stays only in the last turn, as in Qwen3.
                opening = CLOSED_THOUGHT.sub("", EMPTY_THOUGHT.sub("", opening))
            if not text.endswith(opening, 0, start):
                raise unmappable(message)
            start -= len(opening)
        for empty in EMPTY_THOUGHT.finditer(text, max(0, start - 20), stop):
            if not text[start : empty.start()].strip():
                dropped["empty thoughts"] += 1
                start = max(start, min(empty.end(), first))
        return start, stop, end

    def _after_thought(
        self, text: str, shown: str, before: Sequence[Message], message: Message, tools: Any
    ) -> int:
        """Where the first tool call begins after a thought with no words in between.

        What closes the thought is what the same message doesn't have without it.
        """
        place = shown.index(THOUGHT)
        rest = shown[place + len(THOUGHT) :]
        thought = thought_of(message).strip()
        if not text.startswith(thought, place):
            raise unmappable(message)
        silent = self._render([*before, veil(without_thought(message))], tools)
        alone = self._render([*before, veil(message)], tools)
        tail = alone[alone.index(THOUGHT) + len(THOUGHT) :]
        closing = len(tail) - in_common(tail[::-1], silent[::-1])
        closed = CLOSED_THOUGHT.match(rest)
        closing = max(closing, closed.end() if closed else 0)
        closing += len(rest[closing:]) - len(rest[closing:].lstrip())
        return place + len(thought) + closing

    def _end_of_calls(self, text: str, stop: int, messages: Sequence[Message], tools: Any) -> int:
        """The end of a turn of tool calls whose values end at `stop`.

        What encloses the calls is no token that a turn ends with, so it is read off the
        conversation up to here, where nothing follows it.
        """
        alone = self._render(messages, tools)
        veiled = self._render([*messages[:-1], veil(messages[-1])], tools)
        closing = alone[self._difference(alone, veiled, messages[-1])[1] :].rstrip()
        if not text.startswith(closing, stop):
            raise unmappable(messages[-1])
        return stop + len(closing)

    def _difference(self, text: str, veiled: str, message: Message) -> tuple[int, int, int | None]:
        """First and last place that the message fills, and where its words begin, if it has any."""
        marks = [veiled.find(mark) for mark in (THOUGHT, PLACEHOLDER)]
        found = [mark for mark in marks if mark >= 0]
        last = max(veiled.rfind(mark) + len(mark) for mark in (THOUGHT, PLACEHOLDER))
        start, tail = min(found, default=len(veiled)), len(veiled) - last if found else len(veiled)
        same_start = in_common(text, veiled)
        same_end = in_common(text[::-1], veiled[::-1])
        calls = message.get("tool_calls")
        if calls:  # without arguments, a call may differ by nothing of its own
            start, tail = min(start, same_start), min(tail, same_end)
        stop = len(text) - tail
        if start > same_start or tail > same_end or start > stop or (start == stop and not calls):
            raise unmappable(message)
        if marks[1] < 0:
            return start, stop, None
        # Whatever else is veiled stands before the words, so they begin as far from the end.
        words = text.rfind(str(words_of(message)).strip(), start, stop)
        return start, stop, words if words >= 0 else None

    @cached_property
    def _writes_more(self) -> bool:
        """Whether the model has to write something before its words even in a plain answer."""
        plain = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        try:
            return bool(EMPTY_THOUGHT.sub("", self._opening(plain, None, PLACEHOLDER)).strip())
        except UserError:
            return False

    def _opening(self, messages: Sequence[Message], tools: Any, mark: str) -> str:
        """What the model writes before the first thing that is its own in the last message.

        It begins where the generation prompt ends. A template that knows none has a plain answer's
        header in its place.
        """
        before, message = messages[:-1], messages[-1]
        if not before:
            return ""
        text = self._render(messages, tools)
        start = self._difference(text, self._render([*before, veil(message)], tools), message)[0]
        given = self._render(before, tools, add_generation_prompt=True)
        if given == self._render(before, tools):
            plain = [*before, {"role": "assistant", "content": mark}]
            given = self._render(plain, tools).partition(mark)[0]
        return text[min(start, in_common(given, text)) : start]

    def _as_marked(
        self, messages: Sequence[Message], tools: Any, learned: Sequence[bool], mask: bool
    ) -> SupervisedText:
        """As the template's `{% generation %}` blocks say, less what isn't to be learned."""
        text, marked = self._marked_spans(messages, tools)
        spoken = (each for each in messages if each["role"] == "assistant")
        for message in spoken:
            # As templates for images do that take no plain strings: they write nothing.
            if words_of(message).strip().casefold() not in text.casefold():
                raise unmappable(message)
            calls = message.get("tool_calls") or ()
            if any(call.get("function", call)["name"] not in text for call in calls):
                raise calls_left_out()
        if not all(learned):
            if len(marked) != len(learned):
                raise UserError(
                    f"The chat template marks {len(marked)} spans for {len(learned)} messages of "
                    "the assistant, so it can't be told which of them to leave out.",
                    fix="mark each message once in the chat template, or learn all of them",
                )
            marked = [span for span, wanted in zip(marked, learned, strict=True) if wanted]
        skipped = INLINE_THOUGHT if mask else EMPTY_THOUGHT
        for place, (start, stop) in enumerate(marked):
            found = skipped.match(text, start, stop)
            if found:
                marked[place] = (found.start(4) if mask else found.end(), stop)
        return SupervisedText(text, marked)

    def _marked_spans(
        self, messages: Sequence[Message], tools: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """The conversation, and the characters in its `{% generation %}` blocks."""
        try:
            texts, spans = render_jinja_template(
                conversations=[self._with_arguments(messages)],
                tools=tools,
                chat_template=self.source,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise refused(error) from None
        return texts[0], list(spans[0])

    def _render(
        self, messages: Sequence[Message], tools: Any = None, add_generation_prompt: bool = False
    ) -> str:
        """The text; arguments of tool calls are given as JSON if the template takes no mapping."""
        try:
            return self.tokenizer.apply_chat_template(
                self._with_arguments(messages),
                tools=tools,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, TypeError) as error:
            if self._arguments_as_json or not any(each.get("tool_calls") for each in messages):
                raise refused(error) from None
            self._arguments_as_json = True
            try:
                return self._render(messages, tools, add_generation_prompt)
            except UserError:
                self._arguments_as_json = False
                raise refused(error) from None

    def _with_arguments(self, messages: Sequence[Message]) -> list[Message]:
        if not self._arguments_as_json:
            return list(messages)
        return [with_arguments(message, as_json) for message in messages]


def overlaps(
    first: Sequence[tuple[int, int]], second: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The characters that are in a span of both."""
    both = [(max(a, c), min(b, d)) for a, b in first for c, d in second]
    return sorted((start, stop) for start, stop in both if start < stop)


def in_common(first: str, second: str) -> int:
    """How many characters two texts share from their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def unmappable(message: Message) -> UserError:
    return UserError(
        "The chat template does more with an assistant's message than to insert it, so its "
        f"words can't be told from the template's: {message.get('content')!r:.80}",
        fix="put {% generation %} markers around the message in the chat template",
    )


def calls_left_out() -> UserError:
    return UserError(
        "The chat template leaves tool calls out, so they can't be learned.",
        fix="use a chat template that writes tool calls, or leave such conversations out",
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What ends a turn: the first token after it, if that is EOS or another special one."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {tokenizer.eos_token} if tokenizer.eos_token else set()
    longest_first = sorted(special, key=len, reverse=True)
    return re.compile(rf"\s*(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def refused(error: jinja2.TemplateError) -> UserError:
    return UserError(f"The chat template refuses the conversation: {error}")
