"""From the metadata of installed distributions to records, each in its state. Imports no plugin.

A distribution without a group of ours costs one small file read, so that listing stays quick in an
environment with hundreds of them.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Collection, Iterator

from automodel_core import trust
from automodel_core.records import ALIASES, HOOKS, KINDS, Record
from automodel_core.sources import find_module
from automodel_core.wording import did_you_mean

DISABLE_VARIABLE = "AUTOMODEL_DISABLE_PLUGINS"
GROUP_PREFIX = "automodel."
CORE = "automodel-core"
REQUIRES_CORE = re.compile(r"automodel[-_.]core\b", re.IGNORECASE)


def discover(disabled: Collection[str] = ()) -> list[Record]:
    """Every announced name.

    Args:
        disabled: Distributions, or names in any spelling, that must not be used, besides those in
            the environment variable.
    """
    blocked = {*disabled, *os.environ.get(DISABLE_VARIABLE, "").replace(",", " ").split()}
    records = [_examined(_unless_disabled(each, blocked)) for each in _announced()]
    return _with_conflicts(_with_alias_checks(records))


def _announced() -> Iterator[Record]:
    """Every entry point in a group of ours."""
    for distribution in importlib.metadata.distributions():
        text = distribution.read_text("entry_points.txt")
        if not text or f"[{GROUP_PREFIX}" not in text:
            continue
        metadata = distribution.metadata  # parsed at each access, a whole README with it
        name, version = metadata["Name"], metadata["Version"]
        if importlib.metadata.distribution(name).read_text("entry_points.txt") != text:
            continue  # an older copy further down the path, which imports would never reach
        unmet = _unmet_requirement(distribution) if name != CORE else ""
        for entry in distribution.entry_points:
            if entry.group.startswith(GROUP_PREFIX):
                kind = entry.group.removeprefix(GROUP_PREFIX)
                record = Record(kind, entry.name, name, version, entry.value)
                yield record.marked("incompatible", unmet) if unmet else record


def _unmet_requirement(distribution: importlib.metadata.Distribution) -> str:
    """Why a plugin does not fit this version of automodel-core; "" if it does."""
    lines = [each for each in distribution.requires or () if REQUIRES_CORE.match(each)]
    if not lines:
        return ""
    from packaging.requirements import Requirement

    ours = importlib.metadata.version(CORE)
    for line in lines:
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and not requirement.specifier.contains(ours, prereleases=True):
            return f"it needs {CORE}{requirement.specifier}, and this is {ours}"
    return ""


def _examined(record: Record) -> Record:
    """Marked broken if the metadata alone shows that it cannot work."""
    if record.kind not in (*KINDS, ALIASES, HOOKS):
        hint = did_you_mean(record.kind, KINDS)
        return record.marked("broken", f"there is no kind {record.kind}{hint and f'; {hint}'}")
    if record.kind != HOOKS and not record.qualname:
        return record.marked("broken", f"{record.value} names a module, not an object in it")
    if find_module(record.module) is None:
        return record.marked(
            "broken", f"there is no module {record.module}: reinstall {record.distribution}"
        )
    return record


def _unless_disabled(record: Record, blocked: Collection[str]) -> Record:
    names = {record.distribution, *record.spellings}
    return record.marked("disabled", "you disabled it") if names & {*blocked} else record


def _with_alias_checks(records: list[Record]) -> list[Record]:
    """An alias is another spelling of a registered target and may hide nothing."""
    values = {each.value for each in records if each.kind in KINDS}
    own_names = {each.dotted for each in records if each.kind in KINDS}

    def checked(record: Record) -> Record:
        if record.kind != ALIASES:
            return record
        if "." not in record.name:
            return record.marked("broken", "an alias must be a dotted name")
        if trust.is_built_in(record.name) or record.name in own_names:
            return record.marked("broken", "an alias may not hide a name that is trusted as it is")
        if record.value not in values:
            return record.marked("broken", f"no installed plugin registers {record.value}")
        return record

    return [checked(each) for each in records]


def _with_conflicts(records: list[Record]) -> list[Record]:
    """Names that several distributions announce; each keeps its own only as `owner/name`.

    Our own names stay ours: a file that meant them yesterday means them after any installation.
    """
    owners: dict[tuple[str, str], set[str]] = {}
    for each in records:
        if each.state == "ok" and each.kind != HOOKS:
            owners.setdefault((each.kind, each.name), set()).add(each.distribution)

    def checked(record: Record) -> Record:
        others = owners.get((record.kind, record.name), set()) - {record.distribution}
        if not others or record.distribution == CORE:
            return record
        reason = f"{', '.join(sorted(others))} has the same name"
        if record.kind != ALIASES:
            reason += f"; write `{record.distribution}/{record.name}`"
        return record.marked("conflict", reason)

    return [checked(each) for each in records]
