"""Problems of a configuration, and how they are shown: text, JSON, GitHub annotations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Literal

import attrs

from automodel_core.errors import ConfigPath, UserError

COMMAND_LINE = "<command line>"
MASK = "***"
# Characters of a source line, and problems, that are shown.
WIDTH, MOST = 100, 30

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
        mark: Where; None if nothing was written anywhere near.
        hint: What to do about it.
        severity: A warning doesn't stop anything.
    """

    message: str
    mark: Mark | None = None
    hint: str = ""
    severity: Literal["error", "warning"] = "error"

    def sort_key(self) -> tuple[str, int, int]:
        mark = self.mark or Mark("")
        return mark.file, mark.line or 0, mark.column or 0


class ConfigError(Exception):
    """A configuration that can't be used, with everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problem.message for problem in self.problems))


def render(problems: Iterable[Problem], style: Format = "text") -> str:
    """All problems in the order of the file, each once."""
    ordered = sorted(dict.fromkeys(problems), key=Problem.sort_key)
    if style == "json":
        return json.dumps([as_object(problem) for problem in ordered], indent=2)
    if style == "github":
        return "\n".join(map(as_github, ordered))
    more = [f"... and {len(ordered) - MOST:,} more"] if len(ordered) > MOST else []
    return "\n".join([*map(as_text, ordered[:MOST]), *more])


def as_text(problem: Problem) -> str:
    """`file:line:col: what`, the line, a caret, and the way out."""
    mark = problem.mark
    place = f"{mark}: " if mark else ""
    warning = "warning: " if problem.severity == "warning" else ""
    lines = [f"{place}{warning}{problem.message}"]
    if mark and mark.line is not None and mark.text.strip():
        lines += [f"    {line}" for line in excerpt(mark.text, (mark.column or 1) - 1)]
    if problem.hint:
        lines.append(f"    {problem.hint}")
    return "\n".join(map(printable, "\n".join(lines).split("\n")))


def excerpt(line: str, column: int) -> tuple[str, str]:
    """As much of a line as fits a screen, and a caret below the column."""
    start = max(0, column - WIDTH // 2) if len(line) > WIDTH else 0
    shown = line[start : start + WIDTH].replace("\t", " ")
    return shown.rstrip(), " " * (column - start) + "^"


def printable(text: str) -> str:
    """`text` without what a terminal might obey or can't show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_object(problem: Problem) -> dict[str, Any]:
    """A flat JSON object, with the same keys for every problem."""
    nowhere = dict.fromkeys(attrs.fields_dict(Mark))
    mark = attrs.asdict(problem.mark) if problem.mark else nowhere
    return mark | attrs.asdict(problem, filter=lambda field, _: field.name != "mark")


def as_github(problem: Problem) -> str:
    """A workflow command:
    https://docs.github.com/actions/reference/workflow-commands-for-github-actions"""
    mark, text = problem.mark, " ".join(filter(None, (problem.message, problem.hint)))
    place = ""
    if mark and mark.file == COMMAND_LINE:
        text = f"{mark}: {text}"
    elif mark:
        file = escaped(mark.file).replace(":", "%3A").replace(",", "%2C")
        place = f" file={file},line={mark.line or 1},col={mark.column or 1}"
    return f"::{problem.severity}{place}::{escaped(text)}"


def escaped(text: str) -> str:
    """`text` in a workflow command, which ends with its line."""
    return "%0A".join(printable(line).replace("%", "%25") for line in text.split("\n"))


def render_user_error(error: UserError, place: Callable[[ConfigPath], Mark | None]) -> str:
    """An error from further on, shown like a problem at the value that it is about."""
    mark = place(error.path) if error.path is not None else None
    return as_text(Problem(error.message, mark, error.fix))
