"""The logs of a run: one JSON object a line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from automodel_core.errors import UserError
from automodel_core.train.checkpoint import flush


class JsonLines:
    """A file of one JSON object a line, each with a `step`, that survives being resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: IO[str] | None = None

    def append(self, record: dict[str, Any]) -> None:
        """A line, at once there for whoever reads the file."""
        with self._writing():
            if self._open is None:
                self._open = self.path.open("a", buffering=1)
            self._open.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        """See that all of it is on the disk, as the checkpoint that follows will be."""
        if self.path.exists():
            with self._writing():
                flush(self.path)

    def read(self) -> list[dict[str, Any]]:
        """Every whole line; one cut off by a crash is left out."""
        records = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def forget_after(self, step: int) -> None:
        """Drop what came after `step`: a resumed run takes those steps again."""
        kept = [record for record in self.read() if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        if self.path.exists() and self.path.read_text() != text:
            aside = self.path.with_suffix(".new")
            with self._writing():
                aside.write_text(text)
                aside.replace(self.path)
                self._open = None  # that was the file before

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written: {error.strerror or error}.",
                fix="free some space, then run the same command again to resume",
                path=("checkpoint", "checkpoint_dir"),
            ) from error
