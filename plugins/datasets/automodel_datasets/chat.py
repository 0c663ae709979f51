"""Conversations rendered by a chat template, and where in the text the assistant speaks.

Most templates don't mark the assistant's words, so they are found by rendering the conversation a
second time with a placeholder in their place: what stands before and after it is the template's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from automodel_core.errors import UserError
from automodel_datasets.masking import Span, SupervisedText

Message = Mapping[str, str]

GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

# Nothing that a template could strip, split or escape.
PLACEHOLDER = "xAssistantSpeaksHerex"


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

    def supervised(self, messages: Sequence[Message]) -> SupervisedText:
        """The conversation as text; each assistant message and its end-of-turn token supervised.

        Neither headers nor what follows the end of the turn are. A template with `{% generation %}`
        markers decides for itself.

        Raises:
            UserError: The template refuses the conversation, or alters it beyond recognition.
        """
        if self.marked:
            return self._as_marked(messages)
        text = self._render(messages)
        spans = [
            self._span(text, messages, index)
            for index, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        return self._ended(text, spans)

    def _ended(self, text: str, spans: Sequence[Span]) -> SupervisedText:
        """Each span with its end-of-turn token; EOS where a template ends the last one with none.

        White space between is supervised too: the model has to write it to reach the end.
        """
        ended = [(start, self._end_of_turn(text, stop)) for start, stop in spans]
        eos = self.tokenizer.eos_token_id
        bare = bool(spans) and ended[-1] == spans[-1] and not text[spans[-1][1] :].strip()
        if not bare or eos is None:
            return SupervisedText(text, ended)
        return SupervisedText(text, [*ended[:-1], (spans[-1][0], len(text))], after=[eos])

    def _end_of_turn(self, text: str, stop: int) -> int:
        """Just after the token that ends the turn whose words end at `stop`, or there if none."""
        found = self.end_of_turn.match(text, stop)
        return found.end() if found else stop

    def _span(self, text: str, messages: Sequence[Message], index: int) -> Span:
        """Where the content of message `index` stands in `text`."""
        veiled = list(messages)
        veiled[index] = {**messages[index], "content": PLACEHOLDER}
        before, found, after = self._render(veiled).partition(PLACEHOLDER)
        start, stop = len(before), len(text) - len(after)
        same = text.startswith(before) and text.endswith(after) and start < stop
        if not found or not same or PLACEHOLDER in after:
            raise UserError(
                "The chat template does more with an assistant's message than to insert it, so its "
                f"words can't be told from the template's: {messages[index]['content']!r:.80}",
                fix="put {% generation %} markers around the message in the chat template",
            )
        return start, stop

    def _as_marked(self, messages: Sequence[Message]) -> SupervisedText:
        """As the template's `{% generation %}` blocks say."""
        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.source,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except jinja2.TemplateError as error:
            raise refused(error) from None
        return SupervisedText(texts[0], spans[0])

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False)
        except jinja2.TemplateError as error:
            raise refused(error) from None


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What ends a turn: the first token after it, if that is EOS or another special one."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {tokenizer.eos_token} if tokenizer.eos_token else set()
    longest_first = sorted(special, key=len, reverse=True)
    return re.compile(rf"\s*(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def refused(error: jinja2.TemplateError) -> UserError:
    return UserError(f"The chat template refuses the conversation: {error}")
