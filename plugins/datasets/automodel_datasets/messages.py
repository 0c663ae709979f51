"""Conversations as data has them, checked and brought into one form: OpenAI's, or ShareGPT's.

Hub sets and Parquet files write null where a message lacks a key that others have, so a null is
always the same as no key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from automodel_core.errors import UserError
from automodel_datasets.rows import is_unicode
from automodel_datasets.veiling import THOUGHT_KEYS

# Who may speak after whom; None is the beginning.
FOLLOWS: Mapping[str | None, tuple[str, ...]] = {
    None: ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
ROLES = tuple(filter(None, FOLLOWS))

# The names that ShareGPT's descendants give to roles.
SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@attrs.frozen
class Conversation:
    """A conversation that can be rendered.

    Attributes:
        messages: In OpenAI's form; contents are strings, the arguments of tool calls mappings.
        tools: The JSON schemas of the tools that it may use.
        train: What each message's `train` says; None where it says nothing.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    train: Sequence[bool | None] = ()


def conversation(messages: Any, tools: Any = None) -> Conversation:
    """Check a conversation in either form.

    User and assistant take turns and the assistant has the last word; tools answer its calls.

    Args:
        messages: A list of `{"role": ..., "content": ...}` or `{"from": ..., "value": ...}`.
        tools: A list of JSON schemas, or nothing.

    Raises:
        UserError: Something isn't as a conversation has it; says which message.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError(f"The conversation is no list of messages but {messages!r:.60}.")
    checked, train, before = [], [], None
    for number, each in enumerate(messages, start=1):
        try:
            message = _message(each)
            train.append(_train(message))
            _check_order(before, message)
        except UserError as error:
            raise UserError(f"message {number}: {error.message}", fix=error.fix) from None
        checked.append(message)
        before = message
    if checked[-1]["role"] != "assistant":
        raise UserError(
            f"The last message is of the role {checked[-1]['role']}, so nothing answers it.",
            fix="end the conversation with the assistant's answer",
        )
    return Conversation(checked, _tools(tools), train)


def _check_order(before: Mapping[str, Any] | None, message: Mapping[str, Any]) -> None:
    role, last = message["role"], before and before["role"]
    if role not in FOLLOWS[last]:
        raise UserError(
            f"the role {role} can't {f'follow {last}' if last else 'begin'}.",
            fix=f"{f'after {last}' if last else 'first'} comes {' or '.join(FOLLOWS[last])}",
        )
    if role == "tool" and last == "assistant" and "tool_calls" not in before:
        raise UserError("a tool answers, but the assistant has called none.")


def _message(value: Any) -> dict[str, Any]:
    """One message in OpenAI's form."""
    if not isinstance(value, Mapping):
        raise UserError(f"it is no object but {value!r:.60}.")
    message = {key: each for key, each in value.items() if each is not None}
    if "role" not in message and "from" in message:
        message = _from_sharegpt(message)
    role = message.get("role")
    if role not in ROLES:
        raise UserError(f"its role is {role!r:.40}.", fix=f"one of {', '.join(ROLES)}")
    calls = _calls(message.pop("tool_calls", None))
    if calls and role != "assistant":
        raise UserError(f"only the assistant calls tools, but its role is {role}.")
    message["content"] = content = _content(message.get("content", ""))
    if not content.strip() and not calls and role != "tool":
        raise UserError("its content is empty.", fix="fill it in or remove the row")
    for key in THOUGHT_KEYS:
        if not is_unicode(message.get(key, "")):
            raise UserError(f"`{key}` is not text but {message[key]!r:.60}.")
    return message | ({"tool_calls": calls} if calls else {})


def _from_sharegpt(message: Mapping[str, Any]) -> dict[str, Any]:
    """`from` and `value` as `role` and `content`; other keys stay."""
    sender = message["from"]
    role = SHAREGPT.get(sender) if isinstance(sender, str) else None
    if role is None:
        raise UserError(f"its `from` is {sender!r:.40}.", fix=f"one of {', '.join(SHAREGPT)}")
    rest = {key: each for key, each in message.items() if key not in ("from", "value")}
    value = message.get("value", "")
    if sender != "function_call":
        return rest | {"role": role, "content": value}
    calls = parse(value, "the call") if isinstance(value, str) else value
    return rest | {"role": role, "tool_calls": calls if isinstance(calls, list) else [calls]}


def _content(value: Any) -> str:
    """The text of a content; OpenAI also writes it as a list of parts."""
    if isinstance(value, list):
        kinds = [part.get("type") if isinstance(part, Mapping) else part for part in value]
        other = [kind for kind in kinds if kind != "text"]
        if other:
            raise UserError(f"its content has a part that is no text: {other[0]!r:.40}.")
        texts = [part.get("text") for part in value]
        value = "".join(texts) if all(map(is_unicode, texts)) else texts
    if not is_unicode(value):
        raise UserError(f"its content is not text but {value!r:.60}.", fix="write it as a string")
    return value


def _calls(value: Any) -> list[dict[str, Any]]:
    """Tool calls, each as `{"type": "function", "function": {"name", "arguments"}}`."""
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise UserError(f"its tool_calls are no list of objects but {value!r:.60}.")
    return [_call(call) for call in value]


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or call
    if not isinstance(function, Mapping) or not is_unicode(function.get("name")):
        raise UserError(f"a tool call has no name: {call!r:.60}.")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse(arguments or "{}", f"the arguments of {function['name']}")
    arguments = {} if arguments is None else arguments
    text = json.dumps(arguments, ensure_ascii=False, default=str)  # Hub sets may hold dates
    if not isinstance(arguments, Mapping) or not is_unicode(text):
        raise UserError(f"the arguments of {function['name']} are no object: {arguments!r:.60}.")
    known = {"id": call["id"]} if call.get("id") else {}
    named = {"name": function["name"], "arguments": dict(arguments)}
    return {"type": "function", **known, "function": named}


def _tools(value: Any) -> Sequence[Mapping[str, Any]] | None:
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise UserError(f"The tools are no list of objects but {value!r:.60}.")
    for tool in value:
        described = tool.get("function") or tool
        if not isinstance(described, Mapping) or not is_unicode(described.get("name")):
            raise UserError(f"A tool has no name: {tool!r:.60}.")
    return value


def _train(message: dict[str, Any]) -> bool | None:
    """Take `train`, or OpenAI's `weight` of 0 or 1, out of a message: templates know neither."""
    said = {key: message.pop(key) for key in ("train", "weight") if key in message}
    for key, value in said.items():
        if value not in (0, 1):
            raise UserError(f"`{key}` is {value!r:.40}.", fix="write true or false")
    return all(said.values()) if said else None


def parse(text: str, what: str) -> Any:
    """JSON inside a field.

    Raises:
        UserError: It isn't JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not valid JSON ({error}): {text!r:.60}") from None
