"""A file of prompts: one JSON object a line, with `prompt` or `messages` and whatever else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import attrs

from automodel_core.config.report import ConfigError, Mark, Problem
from automodel_core.errors import UserError

# The keys that an answer adds to its line.
ANSWER_KEYS = ("answer", "finish_reason")

EXAMPLES = '{"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@attrs.frozen
class Asked:
    """One line of the file.

    Attributes:
        record: The whole object.
        mark: Where it stands.
    """

    record: Mapping[str, Any]
    mark: Mark


def read_prompts(path: Path) -> list[Asked]:
    """All lines but blank ones.

    Raises:
        ConfigError: Some lines can't be used; each is named.
        UserError: The file can't be read, or holds none.
    """
    asked: list[Asked] = []
    problems: list[Problem] = []
    for mark, line in _lines(path):
        try:
            asked.append(Asked(parsed(line), mark))
        except UserError as error:
            problems.append(Problem(error.message, mark, error.fix))
    if problems:
        raise ConfigError(problems)
    if not asked:
        raise UserError(f"{path} holds no prompt.", fix=f"write lines such as {EXAMPLES}")
    return asked


def _lines(path: Path) -> Iterator[tuple[Mark, bytes]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield Mark(str(path), number, 1, line.decode(errors="replace").rstrip()), line


def parsed(line: bytes) -> dict[str, Any]:
    """The object of a line.

    Raises:
        UserError: It is none, has no prompt, or could not be written again.
    """
    try:
        record = json.loads(line, parse_constant=_refuse_constant)
        dump(record)
    except RecursionError:
        raise UserError("The line is nested too deeply.") from None
    except ValueError as error:
        raise UserError(f"This is not JSON: {error}.", fix=f"write {EXAMPLES}") from None
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        raise UserError(
            "A line is an object with either `prompt` or `messages`.", fix=f"write {EXAMPLES}"
        )
    for key in ANSWER_KEYS:
        if key in record:
            raise UserError(
                f"`{key}` is where the answer is written to.", fix="give it another name"
            )
    if "prompt" in record and not isinstance(record["prompt"], str):
        raise UserError("`prompt` must be a text.", fix=f"write {EXAMPLES}")
    if "messages" in record:
        check_messages(record["messages"])
    return record


def dump(record: Any) -> bytes:
    """A record as a line. Raises ValueError for texts that are no Unicode (half a surrogate)."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def check_messages(messages: Any) -> None:
    """Raise UserError unless it is a conversation that waits for an answer."""
    well_formed = isinstance(messages, list) and all(
        isinstance(each, dict)
        and isinstance(each.get("role"), str)
        and is_content(each.get("content"))
        for each in messages
    )
    if not well_formed or not messages:
        raise UserError(
            "`messages` must be a list of objects with `role` and `content`, both texts; the "
            'content may be a list of {"type": "text", "text": "..."} and '
            '{"type": "image", "image": "FILE"}.',
            fix=f"write {EXAMPLES}",
        )
    if messages[-1]["role"] == "assistant":
        raise UserError(
            "The last message is the assistant's, so there is nothing to answer.",
            fix="leave that message out",
        )


def is_content(content: Any) -> bool:
    """Whether it is a text, or a list of parts that are texts or images by their files' names."""
    if isinstance(content, str):
        return True
    return isinstance(content, list) and all(
        isinstance(part, dict)
        and part.get("type") in ("text", "image")
        and isinstance(part.get(part["type"]), str)
        for part in content
    )


def shows_images(record: Mapping[str, Any]) -> bool:
    """Whether a line has an image among its messages."""
    contents = (each["content"] for each in record.get("messages", ()))
    return any(
        part["type"] == "image" for each in contents if isinstance(each, list) for part in each
    )
