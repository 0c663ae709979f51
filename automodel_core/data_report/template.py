"""What a chat template writes around messages, found by rendering one whose words are known."""

from __future__ import annotations

import re

import attrs
import jinja2
from transformers import PreTrainedTokenizerBase

WORDS = ("What is asked", "What is answered")
# Strings that a template means as one token: <|im_start|>, <start_of_turn>, [INST].
MARKER = re.compile(r"<\|[^|<>\s]+\|>|</?[A-Za-z_][\w-]*>|\[/?[A-Z_]+\]")


@attrs.frozen
class Surroundings:
    """What stands around what is said; empty strings if there is no template, or it can't tell.

    Attributes:
        user: Before what a user says.
        assistant: Before what the assistant says.
        end: Behind what the assistant says, white space left out.
        markers: What the template means as one token.
    """

    user: str = ""
    assistant: str = ""
    end: str = ""
    markers: tuple[str, ...] = ()


def surroundings(tokenizer: PreTrainedTokenizerBase) -> Surroundings:
    """Render one question and its answer."""
    if not tokenizer.chat_template:
        return Surroundings()
    asked, answered = WORDS
    talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    try:
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        prompt = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    except (jinja2.TemplateError, ValueError, TypeError, KeyError):
        return Surroundings()
    if text.count(asked) != 1 or text.count(answered) != 1 or asked not in prompt:
        return Surroundings()
    before, rest = text.split(asked)
    middle, end = rest.split(answered)
    added = prompt.split(asked)[1]
    # The question's own end stands before the header in both.
    question_end = tokenizer.apply_chat_template(talk[:1], tokenize=False).split(asked)[-1]
    header = added.removeprefix(question_end).strip() or _last_line(middle)
    return Surroundings(
        user=_last_line(before),
        assistant=header,
        end=end.strip().split("\n")[0],
        markers=tuple(dict.fromkeys(MARKER.findall(text))),
    )


def _last_line(text: str) -> str:
    """What stands directly before the words: from the last marker on."""
    stripped = text.strip()
    starts = [found.start() for found in MARKER.finditer(stripped)]
    return stripped[starts[-1] :] if starts else stripped.rpartition("\n")[2]
