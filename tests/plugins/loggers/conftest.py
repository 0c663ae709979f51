"""W&B kept apart from this machine's own login and settings, and what it wrote read back."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 32 * 1024


@pytest.fixture(autouse=True)
def no_login(tmp_path, monkeypatch):
    """A machine that W&B has never been used on."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    wandb.teardown()
    yield
    wandb.teardown()


@attrs.frozen
class Written:
    """One `.wandb` file."""

    records: list[Record]

    @property
    def run(self):
        return next(record.run for record in self.records if record.HasField("run"))

    @property
    def config(self) -> dict:
        return {each.key: json.loads(each.value_json) for each in self.run.config.update}

    @property
    def rows(self) -> list[dict]:
        """What was logged."""
        return [
            {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for item in record.history.item
            }
            for record in self.records
            if record.HasField("history")
        ]

    @property
    def exit_code(self) -> int:
        return next(record.exit.exit_code for record in self.records if record.HasField("exit"))


@pytest.fixture
def offline_runs():
    """A function from the folder of W&B's files to its offline runs, oldest first."""

    def read(folder: Path) -> list[Written]:
        wandb.teardown()  # waits for the files; a finished run may still be writing them
        files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
        return [Written(list(map(Record.FromString, messages(path)))) for path in files]

    return read


def messages(path: Path) -> Iterator[bytes]:
    """The records of a LevelDB log, which is what W&B's file is behind its header.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    data, at, message = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            yield message
            message = b""
