"""`automodel show NAME`: one plugin's arguments, documentation, and a YAML block to start from."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin

import attrs
import click

from automodel_core.annotations import readable
from automodel_core.arguments import engine_given
from automodel_core.config.schema import RunConfig, Slot, target_field
from automodel_core.docstrings import without_arguments
from automodel_core.errors import DONE, ConfigPath
from automodel_core.protocols import SUPPLIED
from automodel_core.records import KINDS
from automodel_core.registry import Registry
from automodel_core.resolve import Resolved, resolve
from automodel_core.signatures import Parameter, Signature, docstring
from automodel_core.trust import Trust


@click.command("show")
@click.argument("name")
@click.option("--allow", multiple=True, help="Trust names that begin with this.")
def show(name: str, allow: Sequence[str]) -> int:
    """Show one plugin: NAME as a `_target_` writes it, or a trusted dotted path."""
    resolved = resolve(name, None, Registry.discover(), Trust.from_environment(allow))
    click.secho(name, bold=True)
    click.echo("\n".join(f"  {line}" for line in facts(resolved)))
    text = without_arguments(docstring(resolved.place)) if resolved.place else ""
    if text:
        click.echo(f"\n{text}")
    signature = resolved.signature
    if signature is None:
        click.echo("\nIts source doesn't tell its arguments; they are checked when it is built.")
        return DONE
    section, slot = place_of(resolved.record.kind) if resolved.record else ((), None)
    given = engine_given(signature, slot)
    own = [each for each in signature.parameters if each.name not in {*given, *SUPPLIED}]
    show_arguments(own, signature, given)
    click.echo("\nIn YAML")
    click.echo("\n".join(f"  {line}" for line in example(name, section, own)))
    return DONE


def facts(resolved: Resolved) -> Iterator[str]:
    """Kind, owner and file."""
    if record := resolved.record:
        yield f"{KINDS[record.kind]} of {record.distribution} {record.version} ({record.state})"
    if resolved.place and resolved.place.module.file:
        file = resolved.place.module.file
        file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        yield f"{file}:{resolved.place.node.lineno}" if resolved.place.node else str(file)
    yield resolved.dotted


def show_arguments(own: Sequence[Parameter], signature: Signature, given: frozenset[str]) -> None:
    """The arguments that YAML may set, and what the engine adds."""
    click.echo("\nArguments" if own else "\nIt takes no arguments.")
    for each in own:
        annotation = f": {readable(each.annotation)}" if each.annotation else ""
        default = f" = {each.default}" if each.default else "  (required)"
        click.echo(f"  {each.name}{annotation}{default}")
        if each.doc:
            click.echo(f"      {each.doc}")
    if signature.open:
        click.echo("  and further ones, checked when it is built")
    supplied = [each.name for each in signature.parameters if each.name in {*given, *SUPPLIED}]
    if supplied:
        click.echo(f"The engine gives it {', '.join(supplied)}.")


def place_of(kind: str, schema: type = RunConfig) -> tuple[ConfigPath, Slot | None]:
    """The section of the YAML file that takes a target of this kind, and its slot; a section that
    is a list of them ends in 0."""
    host = target_field(schema)
    for field in attrs.fields(attrs.resolve_types(schema)):
        slot = field.metadata.get("slot")
        if slot and slot.kind == kind:
            listed = (0,) if get_origin(field.type) is list else ()
            return (() if field.name == host else (field.name, *listed)), slot
        if attrs.has(field.type) and not slot:
            inner, slot = place_of(kind, field.type)
            if slot:
                return (field.name, *inner), slot
    return (), None


def example(name: str, section: ConfigPath, own: Sequence[Parameter]) -> Iterator[str]:
    """A YAML block with the required arguments, the others in comments with their defaults."""
    for depth, key in enumerate(key for key in section if key != 0):
        yield f"{'  ' * depth}{key}:"
    indent = "  " * len(section)
    yield f"{indent[:-2]}- _target_: {name}" if 0 in section else f"{indent}_target_: {name}"
    for each in own:
        if each.default is None:
            yield f"{indent}{each.name}: ...  # {readable(each.annotation or 'required')}"
        elif (value := as_yaml(each.default)) is not None:
            yield f"{indent}# {each.name}: {value}"


def as_yaml(default: str) -> str | None:
    """A default's source text as YAML writes it; None for one that YAML can't."""
    try:
        value: Any = ast.literal_eval(default)
        return "none" if value is None else json.dumps(value)
    except (ValueError, SyntaxError, TypeError):
        return None
