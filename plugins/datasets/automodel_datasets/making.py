"""An entry of the token cache while it is made: in memory while that is quick, then in files.

What takes longer is made by one process: another that comes to it meanwhile waits for the first
one's. An entry is written beside its place and renamed, so that whoever finds one finds a whole
one, whatever happened to the writer and however many there were.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from automodel_datasets.building import TokenisedDataset
from automodel_datasets.reading import recorded, stamp
from automodel_datasets.stored import Arrays, StoredTexts, Texts, Writer

# Seconds from which on tokenising is worth a place on the disk.
WORTH = 2.0

ENTRY = "entry.json"

# What an unfinished entry's name begins with, and for how many seconds it may still be written.
UNFINISHED, ABANDONED = "unfinished-", 86_400


class MadeElsewhere(Exception):
    """Another process makes this entry now."""


class Making:
    """Gets the samples and makes a data set of them, and an entry if it is worth it.

    Args:
        root: The cache's folder.
        name: The entry's.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.parts: list[Arrays] = []
        self.files: Writer | None = None
        self.only_memory = False
        self.held = ExitStack()

    def __enter__(self) -> Making:
        self.begun = time.monotonic()
        self.reading = self.held.enter_context(recorded())
        return self

    def __exit__(self, *_: Any) -> None:
        self.held.close()

    def add(self, samples: Arrays) -> None:
        """Take samples.

        Raises:
            MadeElsewhere: Another process is before this one.
        """
        if self.files is None and not self.only_memory and time.monotonic() - self.begun >= WORTH:
            self._begin_files()
        if self.files is None:
            self.parts.append(samples)
            return
        try:
            self.files.add(samples)
        except OSError:  # a full disk, say: it is only a cache
            self._back_to_memory(self.files.so_far(), samples)

    def finished(self, notes: Sequence[str]) -> TokenisedDataset:
        """The data set; from now on it is found, if all that was read can be."""
        if self.files is not None:
            self.files.close()
            folder = None if self.reading.elsewhere else self._put_into_place(notes)
            if folder is not None:
                return TokenisedDataset(StoredTexts(folder), notes)
            self._back_to_memory(self.files.so_far())
        return TokenisedDataset(Texts(Arrays.joined(self.parts)), notes)

    def _begin_files(self) -> None:
        if not self.reading.elsewhere:  # nobody could find what this process makes
            self._lock()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            clean(self.root)
            folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.root))
            self.held.callback(shutil.rmtree, folder, ignore_errors=True)
            self.files = Writer(folder)
            self.held.callback(self.files.close)
            for part in self.parts:
                self.files.add(part)
        except OSError:
            self._back_to_memory(*self.parts)
        else:
            self.parts = []

    def _lock(self) -> None:
        lock = lock_of(self.root, self.name)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise MadeElsewhere from None
        except (OSError, NotImplementedError):  # a file system without locks: all of them make it
            return
        self.held.callback(lock.release)

    def _back_to_memory(self, *parts: Arrays) -> None:
        self.parts, self.files, self.only_memory = list(parts), None, True

    def _put_into_place(self, notes: Sequence[str]) -> Path | None:
        """The entry's folder, if it could be written."""
        read = self.reading.files.items()
        files = {path: was for path, was in read if not path.startswith(str(self.root))}
        prepared = [[*which, folder] for which, folder in self.reading.prepared.items()]
        entry = json.dumps(
            {"files": files, "prepared": prepared, "notes": list(notes)}, sort_keys=True
        )
        place = self.root / f"{self.name}-{hashlib.sha256(entry.encode()).hexdigest()[:8]}"
        try:
            (self.files.folder / ENTRY).write_text(entry)
            with suppress(OSError):  # somebody else's is there
                self.files.folder.rename(place)
        except OSError:
            return None
        return place if (place / ENTRY).exists() else None


def lock_of(root: Path, name: str) -> FileLock:
    """Held by the process that makes an entry; the system takes it from one that is killed."""
    return FileLock(root / f"{name}.lock")


def clean(root: Path) -> None:
    """Remove what writers that were killed have left."""
    for folder in root.glob(f"{UNFINISHED}*"):
        was = stamp(folder)
        if was and time.time() - was[1] / 1e9 > ABANDONED:
            shutil.rmtree(folder, ignore_errors=True)
