"""What is installed: entry points turned into records, without importing a single plugin.

A plugin package announces its targets in its own metadata, one group per kind:

    [project.entry-points."automodel.datasets"]
    country_facts = "my_package.data:make_country_facts"

Reading the metadata is all that listing and validating need. Records come sorted by (distribution,
name), so every node of a job sees the same order.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from automodel_core.discovery import CORE, discover
from automodel_core.errors import UserError
from automodel_core.places import locate
from automodel_core.records import ALIASES, KINDS, Record, a_kind
from automodel_core.staleness import stale_projects
from automodel_core.wording import did_you_mean


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
        return cls(discover(disabled))

    @cached_property
    def aliases(self) -> Mapping[str, Record]:
        """Foreign dotted names and the records of where they lead."""
        return {each.name: each for each in reversed(self.records) if each.kind == ALIASES}

    @cached_property
    def by_value(self) -> Mapping[str, Record]:
        """Targets by the true dotted name of what they register; usable ones win."""
        ranked = sorted(self.targets(), key=lambda each: each.state == "ok")
        return {each.dotted: each for each in ranked}

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
        if len(usable) > 1:
            choices = " or ".join(f"`{each.kind}:{each.name}`" for each in usable)
            raise UserError(f"`{spelling}` could mean several plugins.", fix=f"write {choices}")
        if not usable:
            raise refusal(found[0])
        return usable[0]

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
        """What to write instead of a name that is not there, or what to do to have it."""
        for project in stale_projects():
            if name in project.names:
                return project.advice
        if not any(each.distribution == CORE for each in self.records):
            return f"{CORE} itself isn't installed here: `pip install -e .` in its folder"
        names = sorted({each.name for each in self.targets(kind) if each.state == "ok"})
        names += sorted(self.aliases) if "." in name else []
        listed = ", ".join(each for each in names if "." not in each)
        inventory = f"installed: {listed}" if kind and listed else "see `automodel list-plugins`"
        return did_you_mean(name, names, limit=3) or inventory


def refusal(record: Record) -> UserError:
    """Why a record that is not ok cannot be used."""
    return UserError(f"`{record.name}` of {record.distribution} cannot be used: {record.reason}.")


def source_checked(record: Record) -> Record:
    """The record, marked broken if the source of its module shows no such object."""
    place = locate(record.dotted) if record.qualname and record.state == "ok" else None
    if place is None or not place.is_missing:
        return record
    return record.marked("broken", f"{record.module} has no {record.qualname}")


def import_object(module: str, qualname: str = "") -> Any:
    """Import a module and fetch an object in it; the module itself without a name."""
    found: Any = importlib.import_module(module)
    for name in filter(None, qualname.split(".")):
        found = getattr(found, name)
    return found
