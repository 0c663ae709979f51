"""Problems of a configuration, and how they are shown: text, JSON, GitHub annotations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Literal

import attrs

from automodel_core.errors import UserError

COMMAND_LINE = "<command line>"
MASK = "***"

Format = Literal["text", "json", "github"]


@attrs.frozen
class Mark:
    """Where something was written.

    Attributes:
        file: As the user named it, or "<command line>".
        line: 1 is the first; None if there is no line, as for a file that is missing.
        column: 1 is the first.
        text: The line itself, with secrets masked.
    """

    file: str
    line: int | None = None
    column: int | None = None
    text: str = ""

    def __str__(self) -> str:
        if self.line is None:
            return f"{self.file}: {self.text}" if self.file == COMMAND_LINE else self.file
        return f"{self.file}:{self.line}:{self.column}"


@attrs.frozen
class Problem:
    """One thing that is wrong, and what to write instead.

    Attributes:
        message: What is wrong.
        mark: Where.
        hint: What to do about it.
        severity: A warning doesn't stop anything.
    """

    message: str
    mark: Mark
    hint: str = ""
    severity: Literal["error", "warning"] = "error"

    def sort_key(self) -> tuple[str, int, int]:
        return self.mark.file, self.mark.line or 0, self.mark.column or 0


class ConfigError(Exception):
    """A configuration that can't be used, with everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problem.message for problem in self.problems))


def render(problems: Iterable[Problem], style: Format = "text") -> str:
    """All problems in the order of the file."""
    ordered = sorted(problems, key=Problem.sort_key)
    if style == "json":
        return json.dumps([attrs.asdict(problem) for problem in ordered], indent=2)
    return "\n".join(map(as_github if style == "github" else as_text, ordered))


def as_text(problem: Problem) -> str:
    """`file:line:col: what`, the line, a caret, and the way out."""
    mark = problem.mark
    warning = "warning: " if problem.severity == "warning" else ""
    lines = [f"{mark}: {warning}{problem.message}"]
    if mark.line is not None and mark.text:
        lines += [f"    {mark.text}", f"    {' ' * ((mark.column or 1) - 1)}^"]
    if problem.hint:
        lines.append(f"    {problem.hint}")
    return "\n".join(lines)


def as_github(problem: Problem) -> str:
    """A workflow command:
    https://docs.github.com/actions/reference/workflow-commands-for-github-actions"""
    mark, text = problem.mark, " ".join(filter(None, (problem.message, problem.hint)))
    place = f"file={mark.file},line={mark.line or 1},col={mark.column or 1}"
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{problem.severity} {place}::{escaped}"


def render_user_error(error: UserError, place: Callable[[tuple], Mark | None]) -> str:
    """An error from further on, shown like a problem at the value that it is about."""
    mark = place(error.path) if error.path is not None else None
    if mark is not None:
        return as_text(Problem(error.message, mark, error.fix))
    return "\n".join(filter(None, (error.message, error.fix and f"    {error.fix}")))
