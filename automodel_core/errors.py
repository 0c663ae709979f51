"""The errors that a user can act on. Whatever else escapes is a bug and shows a traceback."""

from __future__ import annotations

from typing import Literal

# The exit codes of every command; the README lists them.
DONE = 0
FAILED = 1
BAD_INPUT = 2
GUARD_STOPPED = 3
STUCK = 4
SAVED_AFTER_SIGNAL = 75
INTERRUPTED = 130

# Where a value stands in the configuration: ("dataloader", "batch_size"), ("dataset", "files", 0).
ConfigPath = tuple[str | int, ...]


class UserError(Exception):
    """Input that cannot be used: shown as one screen, exit code 2.

    Plugins raise it with `argument` set to the parameter that is at fault; whoever built the target
    from the configuration fills in `path`, so that the screen shows the line of the YAML file.

    Args:
        message: What is wrong, one or two sentences.
        fix: What to write or do instead.
        argument: The parameter of the raising target that holds the bad value, if one does.
        path: The place in the configuration, if known.
    """

    exit_code = BAD_INPUT

    def __init__(
        self,
        message: str,
        *,
        fix: str = "",
        argument: str | None = None,
        path: ConfigPath | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.argument = argument
        self.path = path


class GuardStop(Exception):
    """A guard found that going on would waste or spoil the run: exit code 3."""

    exit_code = GUARD_STOPPED

    def __init__(self, guard: str, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.guard = guard
        self.message = message
        self.fix = fix


class FailedElsewhere(RuntimeError):
    """Another rank failed, and says there why; this one can't go on without it."""


class SavedAfterSignal(Exception):
    """The run was asked to stop and saved first: exit code 75 (or 130 if it could not save)."""

    def __init__(self, message: str, exit_code: Literal[75, 130] = SAVED_AFTER_SIGNAL) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
