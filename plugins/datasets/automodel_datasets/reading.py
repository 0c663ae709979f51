"""What is read while rows are: the files that a data set depends on, whoever opens them.

Python tells of every file that it opens, of every folder that it lists and of every connection
(audit events, PEP 578). Libraries that open files in C++ are not heard: whoever uses one says so by
`note`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import attrs

# The events that are heard, and where no data lies.
READS = ("open", "os.listdir", "os.scandir", "socket.connect")
SYSTEM = ("/proc/", "/sys/", "/dev/")

# A file's size and time of change, nanoseconds; None if it isn't there.
Stamp = tuple[int, int] | None


@attrs.define
class Reading:
    """What has been read.

    Attributes:
        files: Files and folders by path, each as it was just before it was opened first.
        prepared: Of the Hub's data sets, by repository and configuration, the folder that
            `datasets` prepared it in: another version has another.
        elsewhere: Something else came from the network.
    """

    files: dict[str, Stamp] = attrs.field(factory=dict)
    prepared: dict[tuple[str, str | None], str] = attrs.field(factory=dict)
    elsewhere: bool = False

    def add(self, path: str) -> None:
        self.files.setdefault(os.path.abspath(path), stamp(path))


# Those under way; the innermost is last, and all of them hear.
_under_way: list[Reading] = []


def stamp(path: str | Path) -> Stamp:
    """What changes if somebody changes the file; a folder if a file comes or goes."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def note(path: str | Path) -> None:
    """A file is about to be opened by something that Python doesn't hear of."""
    for each in _under_way:
        each.add(os.fspath(path))


def note_prepared(repository: str, name: str | None, folder: str) -> None:
    """A data set of the Hub was loaded, from this folder."""
    for each in _under_way:
        each.prepared[repository, name] = folder


@contextmanager
def accounted_for() -> Iterator[None]:
    """Within it nothing is recorded: whoever reads notes what that depends on."""
    heard, _under_way[:] = _under_way[:], []
    try:
        yield
    finally:
        _under_way[:] = heard


@contextmanager
def recorded() -> Iterator[Reading]:
    """Within it, what this process reads is recorded."""
    _listen()
    reading = Reading()
    _under_way.append(reading)
    try:
        yield reading
    finally:
        _under_way.remove(reading)


@cache
def _listen() -> None:
    """Once: an audit hook can't be taken away."""
    sys.addaudithook(_heard)


def _heard(event: str, about: tuple[Any, ...]) -> None:
    if not _under_way or event not in READS:
        return
    if event == "socket.connect":
        for each in _under_way:
            each.elsewhere = True
        return
    path = about[0]
    if not isinstance(path, str | bytes) or (event == "open" and writes(about[2])):
        return
    importing = sys._getframe(1).f_code.co_filename.startswith("<frozen importlib")
    if not importing and not os.fsdecode(path).startswith(SYSTEM):
        note(os.fsdecode(path))


# Of each source to be read, its size and how much of it has been: bytes, or rows.
_sources: dict[str, tuple[int, int]] = {}


def expect(sizes: Mapping[str, int]) -> None:
    """These are about to be read, and all others are done."""
    _sources.clear()
    _sources.update({name: (size, 0) for name, size in sizes.items()})


def reached(name: str, place: int, end: int | None = None) -> None:
    """So much of one of them is read; or `place` of `end`, whatever they count."""
    size, _ = _sources.get(name, (0, 0))
    _sources[name] = size, place if end is None else size * place // max(end, 1)


def share_read() -> float | None:
    """How much of all of them; None if nobody knows."""
    size = sum(size for size, _ in _sources.values())
    return min(sum(done for _, done in _sources.values()) / size, 1.0) if size else None


def writes(flags: int | None) -> bool:
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
