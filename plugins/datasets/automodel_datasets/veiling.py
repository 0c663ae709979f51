"""One message of a conversation: its parts, and the same message with placeholders for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from automodel_core.errors import UserError

Message = Mapping[str, Any]

# Nothing that a template could strip, split or escape.
PLACEHOLDER = "xAssistantSpeaksHerex"
THOUGHT = "xAssistantThinksHerex"
# As an argument of a tool call: a number, because templates put strings in quotes.
NUMBER = 918273645546372819

# Where messages keep what the model thought before it answered.
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
INLINE_THOUGHT = re.compile(r"(\s*<think>\s*)(.*?)(\s*</think>\s*)(.*)", re.DOTALL)
CLOSED_THOUGHT = re.compile(r"\s*</think>\s*")
EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*")


def thought_of(message: Message) -> str:
    """What the assistant thought before the message, wherever it is written; "" if nothing."""
    inline = INLINE_THOUGHT.fullmatch(message.get("content") or "")
    named = (message.get(key) for key in THOUGHT_KEYS)
    return (inline[2] if inline else "") or next(filter(None, named), "")


def words_of(message: Message) -> str:
    """The message without an inline thought."""
    content = message.get("content") or ""
    inline = INLINE_THOUGHT.fullmatch(content)
    return inline[4] if inline else content


def without_thought(message: Message) -> dict[str, Any]:
    """The message as a template writes it that leaves thoughts out."""
    kept = {key: value for key, value in message.items() if key not in THOUGHT_KEYS}
    return kept | {"content": words_of(message)} if kept.get("content") else kept


def veil(message: Message) -> dict[str, Any]:
    """The message with placeholders for its thought, its words and the values of its calls."""
    veiled = dict(message)
    inline = INLINE_THOUGHT.fullmatch(message.get("content") or "")
    if inline:
        thought = THOUGHT if inline[2] else ""
        veiled["content"] = inline[1] + thought + inline[3] + (PLACEHOLDER if inline[4] else "")
    elif message.get("content"):
        veiled["content"] = PLACEHOLDER
    veiled |= {key: THOUGHT for key in THOUGHT_KEYS if message.get(key)}
    if message.get("tool_calls"):
        veiled["tool_calls"] = [veil_call(call) for call in message["tool_calls"]]
    return veiled


def veil_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments") or {"x": None}
    hidden = function | {"arguments": dict.fromkeys(arguments, NUMBER)}
    return call | {"function": hidden} if "function" in call else hidden


def with_arguments(message: Message, convert: Callable[[Any], Any]) -> Message:
    """The message with the arguments of its tool calls converted."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        function = function | {"arguments": convert(function.get("arguments"))}
        calls.append(call | {"function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}


def with_parsed_arguments(message: Message) -> Message:
    """The message with arguments as mappings, which OpenAI's interface writes as JSON."""
    return with_arguments(message, from_json)


def from_json(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        raise UserError(
            f"The arguments of a tool call are no JSON: {arguments!r:.80}",
            fix="write them as a JSON object",
        ) from None


def as_json(arguments: Any) -> str:
    return json.dumps(arguments or {}, ensure_ascii=False)
