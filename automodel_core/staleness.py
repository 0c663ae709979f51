"""Editable installs whose pyproject.toml says more than the metadata that pip wrote from it.

Entry points are copied when a package is installed. Whoever adds one to a project that they are
working on must install it again, and is told so instead of "no such plugin".
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import attrs

GROUP_PREFIX = "automodel."


@attrs.frozen
class Stale:
    """An editable project to install again.

    Attributes:
        distribution: Its name.
        folder: Where its sources are.
        names: The entry points that its installed metadata lacks or has no more.
    """

    distribution: str
    folder: Path
    names: frozenset[str]

    @property
    def advice(self) -> str:
        """What to do about it."""
        return (
            f"the pyproject.toml of {self.distribution} has changed since it was installed: "
            f"pip install -e {self.folder}"
        )


def stale_projects() -> Iterator[Stale]:
    """Every editable project whose plugins differ from its installed metadata."""
    for distribution in importlib.metadata.distributions():
        text = distribution.read_text("entry_points.txt") or ""
        folder = _editable_folder(distribution) if f"[{GROUP_PREFIX}" in text else None
        if folder is None:
            continue
        installed = {
            (entry.group, entry.name, entry.value)
            for entry in distribution.entry_points
            if entry.group.startswith(GROUP_PREFIX)
        }
        differing = installed ^ set(_written(folder / "pyproject.toml"))
        if differing:
            yield Stale(distribution.name, folder, frozenset(name for _, name, _ in differing))


def _editable_folder(distribution: importlib.metadata.Distribution) -> Path | None:
    """The sources of an editable install that keeps its entry points in a pyproject.toml."""
    record = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not record.get("dir_info", {}).get("editable"):
        return None
    folder = Path(unquote(urlparse(record["url"]).path))
    return folder if (folder / "pyproject.toml").is_file() else None


def _written(file: Path) -> Iterator[tuple[str, str, str]]:
    import tomllib

    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return
    for group, entries in project.get("entry-points", {}).items():
        if group.startswith(GROUP_PREFIX):
            yield from ((group, name, value) for name, value in entries.items())
