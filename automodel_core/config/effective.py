"""The effective configuration: everything that a run uses, defaults filled in, secrets as
placeholders. As YAML it is itself a configuration; with provenance it is what `explain` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from automodel_core.config.document import Document
from automodel_core.config.report import MASK
from automodel_core.config.scalars import plain_scalar
from automodel_core.config.schema import RunConfig, Target
from automodel_core.config.structure import TARGET_KEY, target_field
from automodel_core.config.variables import Variable, escape
from automodel_core.errors import ConfigPath

# Texts that need no quotes wherever they stand.
PLAIN = re.compile(r"[A-Za-z_./~][\w./~@+-]*( [\w./~@+-]+)*")

Note = Callable[[ConfigPath], str]


def effective_tree(config: RunConfig, document: Document) -> dict[str, Any]:
    """The configuration as a plain tree: what was written as `${...}` stays so, secrets are
    masked."""
    return {
        field.name: plain(getattr(config, field.name), (field.name,), document)
        for field in attrs.fields(RunConfig)
        if getattr(config, field.name) is not None
    }


def plain(value: Any, path: ConfigPath, document: Document) -> Any:
    """A value of the configuration in the form in which YAML holds it."""
    if isinstance(value, Target):
        arguments = {k: plain(v, (*path, k), document) for k, v in value.arguments.items()}
        return {TARGET_KEY: value.name, **arguments}
    if isinstance(value, Mapping):
        return {k: plain(v, (*path, k), document) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, (*path, i), document) for i, each in enumerate(value)]
    if attrs.has(type(value)):
        return section(value, path, document)
    raw = written(document, path)
    return raw if isinstance(raw, Variable) else value


def section(value: Any, path: ConfigPath, document: Document) -> dict[str, Any]:
    host, tree = target_field(type(value)), {}
    for field in attrs.fields(type(value)):
        inner = getattr(value, field.name)
        if field.name == host:
            tree = plain(inner, path, document) | tree
        elif field.metadata.get("secret") and isinstance(inner, str):
            raw = written(document, (*path, field.name))
            tree[field.name] = raw if isinstance(raw, Variable) else MASK
        elif inner is not None:
            tree[field.name] = plain(inner, (*path, field.name), document)
    return tree


def written(document: Document, path: ConfigPath) -> Any:
    """What stands at `path` in the document; None if nothing does."""
    value = document.tree
    for name in path:
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and isinstance(name, int) and name < len(value):
            value = value[name]
        else:
            return None
    return value


def to_yaml(tree: Mapping[str, Any], note: Note | None = None) -> str:
    """The tree as YAML.

    Args:
        tree: Mappings, lists, scalars and Variables.
        note: What to write behind each value, as a comment.
    """
    rows = list(lines(tree, (), 0))
    if note is None:
        return "".join(f"{text}\n" for text, _ in rows)
    width = min(max((len(text) for text, path in rows if path), default=0), 60)
    return "".join(
        f"{text:<{width}}  # {note(path)}\n" if path else f"{text}\n" for text, path in rows
    )


def lines(value: Any, path: ConfigPath, depth: int) -> Iterator[tuple[str, ConfigPath | None]]:
    """Each line of a mapping, with the path of the value on it, if one is."""
    indent = "  " * depth
    for name, each in value.items():
        here = (*path, name)
        if isinstance(each, Mapping) and each:
            yield f"{indent}{scalar(name)}:", None
            yield from lines(each, here, depth + 1)
        else:
            yield f"{indent}{scalar(name)}: {inline(each)}", here


def inline(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(k)}: {inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """A scalar that reads back as itself."""
    if isinstance(value, Variable):
        quoted = not value.plain or not re.fullmatch(r"\$\{\w+\}", value.text)
        return json.dumps(value.text, ensure_ascii=False) if quoted else value.text
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return special(value) or repr(value)
    if isinstance(value, int):
        return str(value)
    text = escape(value)
    safe = PLAIN.fullmatch(text) and plain_scalar(text) == text
    return text if safe else json.dumps(text, ensure_ascii=False)


def special(value: float) -> str | None:
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value))
