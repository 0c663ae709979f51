"""The file that answers are appended to: it can be gone on with after a kill, and only with what it
was begun with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from automodel_core.answer.prompt_file import ANSWER_KEYS, Asked, dump
from automodel_core.errors import UserError

OTHER_FILE = "name another file with --out, or remove this one"


class AnswerFile:
    """Answers in the order of their prompts, a whole line at a time.

    Beside it, in `NAME.settings.json`, stands what they were made with.

    Args:
        path: The file; it may exist.
        settings: What decides the answers besides the prompts.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self.beside = path.with_name(f"{path.name}.settings.json")

    def open(self, asked: Sequence[Asked]) -> int:
        """See that the file is to be gone on with, and drop a line that a kill has cut.

        Returns:
            How many of the prompts it has answered.

        Raises:
            UserError: It holds something else, or can't be written.
        """
        try:
            done = self._count(asked)
            if done:
                self._require_settings()
            else:
                self.beside.write_text(json.dumps(self.settings, indent=1) + "\n")
            with self.path.open("ab"):
                pass
            return done
        except OSError as error:
            raise UserError(f"{self.path} can't be written: {error.strerror}.") from None

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add answered lines, each with one write, and have them on the disk.

        Raises:
            UserError: The disk is full.
        """
        try:
            with self.path.open("ab", buffering=0) as file:
                for record in records:
                    file.write(dump(record))
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written: {error.strerror}.",
                fix="free some space, then run the same command again to go on",
            ) from None

    def _count(self, asked: Sequence[Asked]) -> int:
        """How many lines are whole, after comparing them with the prompts."""
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        for number, line in enumerate(lines):
            if number >= len(asked) or question_of(line) != asked[number].record:
                raise self._not_ours(number + 1)
        if whole < len(content):
            if not lines and not self.beside.exists():  # some other file of one line
                raise self._not_ours(1)
            os.truncate(self.path, whole)
        return len(lines)

    def _not_ours(self, line: int) -> UserError:
        message = f"{self.path} does not belong to these prompts: see its line {line}."
        return UserError(message, fix=OTHER_FILE)

    def _require_settings(self) -> None:
        """Refuse to mix answers of other models or settings; without a record, nothing is known."""
        if not self.beside.exists():
            return
        try:
            then = json.loads(self.beside.read_text())
            different = [key for key, now in self.settings.items() if then.get(key) != now]
        except (ValueError, AttributeError):
            raise UserError(f"{self.beside} is damaged.", fix=OTHER_FILE) from None
        if different:
            key = different[0]
            raise UserError(
                f"The answers in {self.path} were made with {key}: {then.get(key)}, not "
                f"{self.settings[key]}.",
                fix=OTHER_FILE,
            )


def question_of(line: bytes) -> Any:
    """The record that a line answers; None if it is no answer."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or any(key not in record for key in ANSWER_KEYS):
        return None
    return {key: value for key, value in record.items() if key not in ANSWER_KEYS}
