"""The logs of a run: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonLines:
    """A file of one JSON object a line, each with a `step`, that survives being resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as handle:
            handle.write(json.dumps(record) + "\n")

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
            aside.write_text(text)
            aside.replace(self.path)
