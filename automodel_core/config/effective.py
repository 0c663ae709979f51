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
from automodel_core.config.schema import RunConfig, Target, target_field
from automodel_core.config.secrets import variables_in
from automodel_core.config.structure import TARGET_KEY
from automodel_core.config.variables import Variable, escape
from automodel_core.errors import ConfigPath

# Texts that need no quotes wherever they stand.
PLAIN = re.compile(r"[A-Za-z_./~][\w./~@+-]*( [\w./~@+-]+)*", re.ASCII)
SPECIAL = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}

Note = Callable[[ConfigPath], str]


def effective_tree(config: RunConfig, document: Document) -> dict[str, Any]:
    """The configuration as a plain tree: what was written as `${...}` stays so, secrets are
    masked."""
    return section(config, (), document)


def section(value: Any, path: ConfigPath, document: Document) -> dict[str, Any]:
    """A section without the keys that are none by default."""
    host, tree = target_field(type(value)), {}
    for field in attrs.fields(type(value)):
        inner, here = getattr(value, field.name), (*path, field.name)
        if field.name == host:
            tree = plain(inner, path, document) | tree
        elif field.metadata.get("secret") and isinstance(inner, str):
            tree[field.name] = plain(MASK, here, document)
        elif inner is not None or field.default is not None:
            tree[field.name] = plain(inner, here, document)
    return tree


def plain(value: Any, path: ConfigPath, document: Document) -> Any:
    """A value of the configuration in the form in which YAML holds it."""
    if isinstance(value, Target):
        arguments = {k: plain(v, (*path, k), document) for k, v in value.arguments.items()}
        return {TARGET_KEY: value.name, **arguments}
    if isinstance(value, Mapping):
        return {k: plain(v, (*path, k), document) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, (*path, i), document) for i, each in enumerate(value)]
    if attrs.has(type(value)) and not isinstance(value, Variable):
        return section(value, path, document)
    written = document.get(path)
    return written if isinstance(written, Variable) else value


def to_yaml(tree: Mapping[str, Any], note: Note | None = None) -> str:
    """The tree as YAML.

    Args:
        tree: Mappings, lists, scalars and Variables.
        note: What to write behind each value, as a comment.
    """
    rows = list(block(tree, (), ""))
    if note is None:
        return "".join(f"{text}\n" for text, _ in rows)
    width = min(max((len(text) for text, path in rows if path), default=0), 60)
    return "".join(
        f"{text:<{width}}  # {note(path)}\n" if path else f"{text}\n" for text, path in rows
    )


Line = tuple[str, ConfigPath | None]


def block(value: Any, path: ConfigPath, indent: str) -> Iterator[Line]:
    """A mapping or list, an entry a line; each line with the path of the value on it, if one is."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from entry(f"{indent}{quoted(name)}:", each, (*path, name), indent)
    else:
        for index, each in enumerate(value):
            yield from entry(f"{indent}-", each, (*path, index), indent)


def entry(head: str, value: Any, path: ConfigPath, indent: str) -> Iterator[Line]:
    """One entry of a mapping or list; lists stay on the line where they can."""
    is_mapping = isinstance(value, Mapping) and value
    if is_mapping or (isinstance(value, list) and has_bare_variable(value)):
        yield head, None
        yield from block(value, path, f"{indent}  ")
    else:
        yield f"{head} {inline(value)}", path


def has_bare_variable(value: Any) -> bool:
    """Whether there is an unquoted `${...}` in it, which can't stand between brackets."""
    return any(variable.plain for variable in variables_in(value))


def inline(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quoted(k)}: {inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """A scalar that reads back as itself."""
    if isinstance(value, Variable):
        return value.text if value.plain else double_quoted(value.text)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return SPECIAL.get(repr(value), repr(value))
    return str(value) if isinstance(value, int) else quoted(escape(value))


def quoted(text: str) -> str:
    """A text, in quotes if it needs them."""
    safe = PLAIN.fullmatch(text) and plain_scalar(text) == text
    return text if safe else double_quoted(text)


def double_quoted(text: str) -> str:
    """A text in double quotes, whose escapes are those of JSON and a few more."""
    escaped = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped)
