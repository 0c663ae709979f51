"""What is installed: entry points turned into records, without importing a single plugin.

A plugin package announces its targets in its own metadata, one group per kind:

    [project.entry-points."automodel.datasets"]
    country_facts = "my_package.data:make_country_facts"

Reading the metadata is all that listing and validating need. Records come sorted by (distribution,
name), so every node of a job sees the same order.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Literal

import attrs

from automodel_core import trust
from automodel_core.errors import UserError
from automodel_core.sources import find_module

# Every kind of target and what one of them is called in a message.
KINDS: Mapping[str, str] = {
    "models": "model",
    "distributed": "parallel manager",
    "datasets": "dataset",
    "collators": "collator",
    "losses": "loss",
    "peft": "adapter method",
    "optimizers": "optimizer",
    "dataloaders": "data loader",
    "rng": "random number generator",
    "loggers": "logger",
    "launchers": "launcher",
    "recipes": "recipe",
}

# Two groups name no target: other spellings of targets, and modules with hook implementations.
ALIASES = "aliases"
HOOKS = "hooks"


def a_kind(kind: str) -> str:
    """A kind with its article, for messages."""
    return f"{'an' if KINDS[kind][0] in 'aeiou' else 'a'} {KINDS[kind]}"


GROUP_PREFIX = "automodel."
CORE = "automodel-core"

State = Literal["ok", "disabled", "incompatible", "conflict", "broken"]


@attrs.frozen
class Record:
    """One announced name.

    Attributes:
        kind: A key of KINDS, "aliases" or "hooks".
        name: What the YAML writes.
        distribution: The installed package that announces it.
        version: That package's version.
        value: Where it is, "package.module:object"; a hook module has no object.
        state: "ok", or why it cannot be used.
        reason: One sentence for any state but "ok".
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str
    state: State = "ok"
    reason: str = ""

    @property
    def module(self) -> str:
        return self.value.partition(":")[0]

    @property
    def qualname(self) -> str:
        return self.value.partition(":")[2]

    @property
    def dotted(self) -> str:
        return self.value.replace(":", ".")

    @property
    def spellings(self) -> frozenset[str]:
        """Every way to name this record: `name`, `kind:name`, `owner/name`."""
        return frozenset(
            {self.name, f"{self.kind}:{self.name}", f"{self.distribution}/{self.name}"}
        )

    def marked(self, state: State, reason: str) -> Record:
        """The same record in another state; the first thing found wrong stays."""
        return self if self.state != "ok" else attrs.evolve(self, state=state, reason=reason)


class Registry:
    """The installed plugins. Make one with `Registry.discover()`."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = tuple(sorted(records, key=lambda each: (each.distribution, each.name)))

    @classmethod
    def discover(cls, disabled: Collection[str] = ()) -> Registry:
        """Read the entry points of every installed distribution.

        Args:
            disabled: Distributions, or names in any spelling, that must not be used.
        """
        records = [_examined(record) for record in _announced()]
        records = [_unless_disabled(record, disabled) for record in records]
        return cls(_with_conflicts(_with_alias_checks(records)))

    @cached_property
    def aliases(self) -> Mapping[str, Record]:
        """Foreign dotted names and where they lead; conflicting ones are left out."""
        return {
            each.name: each for each in self.records if each.kind == ALIASES and each.state == "ok"
        }

    @cached_property
    def by_value(self) -> Mapping[str, Record]:
        """Usable targets by their true dotted name."""
        return {each.dotted: each for each in self.targets() if each.state == "ok"}

    def targets(self, kind: str | None = None) -> Iterator[Record]:
        """All targets, or all of one kind, in whatever state."""
        return (each for each in self.records if each.kind in ([kind] if kind else KINDS))

    def find(self, kind: str | None, spelling: str) -> Record:
        """The usable target that `spelling` (`name`, `kind:name` or `owner/name`) means.

        Args:
            kind: The only kind to consider; None considers all.
            spelling: As written in the YAML.

        Raises:
            UserError: There is none, there are several, or it cannot be used; says which and why.
        """
        found = [each for each in self.targets(kind) if spelling in each.spellings]
        if not found:
            raise self._unknown(kind, spelling)
        usable = [each for each in found if each.state == "ok"]
        if "/" in spelling:  # naming the owner is how a conflict is settled
            usable += [each for each in found if each.state == "conflict"]
        if len(usable) == 1:
            return usable[0]
        if usable:
            choices = " or ".join(f"`{each.kind}:{each.name}`" for each in usable)
            raise UserError(f"`{spelling}` could mean several plugins.", fix=f"write {choices}")
        blocked = found[0]
        raise UserError(
            f"`{spelling}` is installed by {blocked.distribution} but {blocked.state}: "
            f"{blocked.reason}."
        )

    def _unknown(self, kind: str | None, spelling: str) -> UserError:
        elsewhere = [each for each in self.targets() if spelling in each.spellings]
        if kind and elsewhere:
            return UserError(
                f"`{spelling}` is {a_kind(elsewhere[0].kind)}, not {a_kind(kind)}.",
                fix=self.suggestion(kind, spelling),
            )
        what = KINDS[kind] if kind else "plugin"
        return UserError(f"No {what} is called `{spelling}`.", fix=self.suggestion(kind, spelling))

    def suggestion(self, kind: str | None, name: str) -> str:
        """The nearest usable names of a kind, or all of them if none is near."""
        names = sorted({each.name for each in self.targets(kind) if each.state == "ok"})
        names += sorted(self.aliases) if "." in name else []
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        if near:
            return f"did you mean {' or '.join(f'`{each}`' for each in near)}?"
        listed = ", ".join(each for each in names if "." not in each)
        return f"installed: {listed}" if kind and listed else "see `automodel list-plugins`"


def _announced() -> Iterator[Record]:
    """Every entry point in a group of ours. Other distributions cost one small file read."""
    for distribution in importlib.metadata.distributions():
        text = distribution.read_text("entry_points.txt")
        if not text or f"[{GROUP_PREFIX}" not in text:
            continue
        name, version = distribution.metadata["Name"], distribution.version
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
    lines = [
        line for line in distribution.requires or () if re.match(r"automodel[-_.]core\b", line)
    ]
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
        near = difflib.get_close_matches(record.kind, KINDS, n=1)
        hint = f"; did its author mean {GROUP_PREFIX}{near[0]}?" if near else ""
        return record.marked("broken", f"there is no kind {record.kind}{hint}")
    if record.kind != HOOKS and not record.qualname:
        return record.marked("broken", f"{record.value} names a module, not an object in it")
    if find_module(record.module) is None:
        return record.marked(
            "broken", f"there is no module {record.module}: reinstall {record.distribution}"
        )
    return record


def _unless_disabled(record: Record, disabled: Collection[str]) -> Record:
    blocked = record.distribution in disabled or any(each in disabled for each in record.spellings)
    return attrs.evolve(record, state="disabled", reason="you disabled it") if blocked else record


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
    """Names that several distributions announce; each keeps its own only as `owner/name`."""
    owners: dict[tuple[str, str], set[str]] = {}
    for each in records:
        if each.state == "ok" and each.kind != HOOKS:
            owners.setdefault((each.kind, each.name), set()).add(each.distribution)

    def checked(record: Record) -> Record:
        others = owners.get((record.kind, record.name), set()) - {record.distribution}
        if record.state != "ok" or not others:
            return record
        reason = f"{', '.join(sorted(others))} has the same name"
        if record.kind != ALIASES:
            reason += f"; write `{record.distribution}/{record.name}`"
        return record.marked("conflict", reason)

    return [checked(each) for each in records]
