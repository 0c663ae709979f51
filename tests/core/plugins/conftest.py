"""Small distributions made on the spot: metadata and modules in a folder on the path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from automodel_core.config.schema import Slot, Target
from automodel_core.registry import Registry
from automodel_core.targets import Finding, Targets
from automodel_core.trust import Trust


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution: `install("my-plugin", {"datasets": {"mine": "mine:make"}}, ...)`."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)

    def write(
        name: str,
        groups: dict[str, dict[str, str]],
        modules: dict[str, str] | None = None,
        requires: tuple[str, ...] = (),
    ) -> Path:
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"]
        lines += [f"Requires-Dist: {each}\n" for each in requires]
        (info / "METADATA").write_text("".join(lines))
        text = ""
        for group, entries in groups.items():
            text += f"[automodel.{group}]\n"
            text += "".join(f"{key} = {value}\n" for key, value in entries.items())
        (info / "entry_points.txt").write_text(text)
        for module, source in (modules or {}).items():
            file = site / (module.replace(".", "/") + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(source))
        importlib.invalidate_caches()
        return site

    yield write
    for module in set(sys.modules) - before:
        if (getattr(sys.modules[module], "__file__", None) or "").startswith(str(site)):
            del sys.modules[module]


@pytest.fixture
def check():
    """Judge one target as `validate` does; returns its findings."""

    def run(name: str, slot: Slot | None = None, *, allow=(), **arguments) -> list[Finding]:
        targets = Targets(Registry.discover(), Trust.from_environment(allow))
        kind = slot.kind if slot else None
        target = Target(name, kind, arguments, ("section",), slot.use if slot else "call")
        return list(targets._check(target, slot))

    return run


@pytest.fixture
def states():
    """The state and reason of every record that a distribution announces."""

    def read(distribution: str, **options) -> dict[str, tuple[str, str]]:
        return {
            each.name: (each.state, each.reason)
            for each in Registry.discover(**options).records
            if each.distribution == distribution
        }

    return read
