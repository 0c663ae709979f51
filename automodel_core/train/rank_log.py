"""What each rank of several has to say, in a file of its own: `logs/rank_N.log`."""

from __future__ import annotations

import contextlib
import faulthandler
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import attrs

from automodel_core.errors import GuardStop, SavedAfterSignal, UserError

LOGS = "logs"

# How a run ends on purpose: the message says all.
MEANT = (UserError, GuardStop, SavedAfterSignal)


@attrs.frozen
class Twice:
    """A stream whose text goes to a file too; in all else it is the stream."""

    stream: TextIO
    log: Callable[[str], None]

    def write(self, text: str) -> int:
        self.log(text)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def rank_log(folder: Path, rank: int, redact: Callable[[str], str]) -> Iterator[Path]:
    """Within it, what this process prints goes to its file too, as does what an error or a crash of
    the interpreter leaves. Rank 0's plan and progress are for the terminal alone.

    Args:
        folder: The run's.
        rank: This process's.
        redact: Takes secrets out of a text.

    Yields:
        The file; a resumed run goes on with it.
    """
    path = folder / LOGS / f"rank_{rank}.log"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", buffering=1) as file:

        def log(text: str) -> None:
            with contextlib.suppress(OSError):  # a full disk is an error where it loses something
                file.write(redact(text))
                file.flush()

        log(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()}\n")
        faulthandler.enable(file)
        with contextlib.ExitStack() as streams:
            streams.callback(faulthandler.disable)
            streams.enter_context(contextlib.redirect_stderr(Twice(sys.stderr, log)))
            if rank:
                streams.enter_context(contextlib.redirect_stdout(Twice(sys.stdout, log)))
            try:
                yield path
            except MEANT as error:
                log(f"{type(error).__name__}: {error}\n")
                raise
            except Exception:
                log(traceback.format_exc())
                raise
