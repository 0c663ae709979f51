"""`automodel list-plugins`: what is installed, by whom, in what state. Imports no plugin unless
`--check` asks for it."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable

import attrs
import click

from automodel_core.docstrings import summary
from automodel_core.errors import DONE, FAILED
from automodel_core.places import locate
from automodel_core.records import ALIASES, HOOKS, KINDS, Record
from automodel_core.registry import Registry, import_object, source_checked
from automodel_core.signatures import docstring
from automodel_core.sources import find_module
from automodel_core.staleness import stale_projects


@click.command("list-plugins")
@click.option("--kind", type=click.Choice([*KINDS, HOOKS, ALIASES]), help="Only this kind.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("--check", is_flag=True, help="Import each plugin in turn; fails if one can't be.")
def list_plugins(kind: str | None, as_json: bool, check: bool) -> int:
    """List the installed plugins: name, summary, owner, state."""
    records = [
        imported(each) if check else source_checked(each)
        for each in Registry.discover().records
        if kind in (None, each.kind)
    ]
    if as_json:
        rows = [attrs.asdict(each) | {"summary": summary_of(each)} for each in records]
        click.echo(json.dumps(rows, indent=2))
    else:
        show(records, with_aliases=kind == ALIASES)
    for project in stale_projects() if check else ():
        click.echo(f"Note: {project.advice}", err=True)
    return FAILED if check and any(each.state == "broken" for each in records) else DONE


def imported(record: Record) -> Record:
    """The record after importing what it names; broken if that fails."""
    if record.state != "ok":
        return record
    try:
        import_object(record.module, record.qualname)
    except (Exception, SystemExit) as error:  # a plugin may do anything when imported
        return record.marked("broken", f"importing it raised {type(error).__name__}: {error}")
    return record


def summary_of(record: Record) -> str:
    """The first sentences of the author's docstring, read from source."""
    if record.kind == HOOKS:
        module = find_module(record.module)
        return summary(module.docstring) if module else ""
    place = locate(record.dotted)
    return summary(docstring(place)) if place else ""


def show(records: Iterable[Record], *, with_aliases: bool) -> None:
    """A block for each kind; what isn't ok says why in place of its summary."""
    by_kind: dict[str, list[Record]] = {}
    for each in records:
        by_kind.setdefault(each.kind, []).append(each)
    aliases = by_kind.get(ALIASES, [])
    if not with_aliases:  # dozens of long names, of interest only when one doesn't work
        by_kind[ALIASES] = [each for each in aliases if each.state != "ok"]
    unknown = sorted(by_kind.keys() - {*KINDS, HOOKS, ALIASES})
    for kind in (*KINDS, HOOKS, ALIASES, *unknown):
        if by_kind.get(kind):
            click.secho(kind, bold=True)
            show_rows(by_kind[kind])
    if aliases and not with_aliases:
        click.echo(f"{len(aliases)} other spellings: automodel list-plugins --kind aliases")


def show_rows(rows: list[Record]) -> None:
    """Name, summary and owner in columns; a summary that doesn't fit is cut short."""
    owners = [f"{each.distribution} {each.version}" for each in rows]
    names, owned = max(len(each.name) for each in rows), max(map(len, owners))
    columns = shutil.get_terminal_size(fallback=(120, 24)).columns
    width = max(columns - names - owned - 6, 24)
    for each, owner in zip(rows, owners, strict=True):
        if each.state != "ok":
            text = f"[{each.state}] {each.reason}"
        elif each.kind == ALIASES:
            text = each.dotted
        else:
            text = textwrap.shorten(summary_of(each), width, placeholder=" ...")
        click.echo(f"  {each.name:<{names}}  {text:<{width}}  {owner}")
