"""The plain tree -> the sections of the schema, strictly and with all problems at once.

A walk of our own rather than a converter library: every problem is to be shown at its own line, no
value may be coerced ("4" is no integer, "false" no boolean, true no number), and half of the fields
are targets, whose arguments are judged later by their own signature.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from automodel_core.config.aliases import move_aliases
from automodel_core.config.document import Document
from automodel_core.config.report import Problem
from automodel_core.config.schema import RunConfig, Slot, StepScheduler, Target, Use
from automodel_core.config.variables import Variable
from automodel_core.errors import ConfigPath

DEFAULT_LR, DEFAULT_LR_WITH_ADAPTERS = 2e-5, 1e-4
TARGET_KEY = "_target_"
BAD = object()

# YAML 1.1 read these as booleans; YAML 1.2 reads them as text.
OLD_BOOLEANS = {
    "yes": "true",
    "on": "true",
    "y": "true",
    "no": "false",
    "off": "false",
    "n": "false",
}
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def structure(
    document: Document, environ: Mapping[str, str], *, strict: bool
) -> tuple[RunConfig | None, list[Problem]]:
    """Turn a document into a RunConfig. The document is rewritten in our spelling on the way.

    Args:
        document: What the user wrote.
        environ: For `${...}`.
        strict: An unset variable is an error; if not, a warning, and its value isn't judged.

    Returns:
        The configuration, or None if there are errors; and all problems, warnings too.
    """
    problems = move_aliases(document)
    structurer = Structurer(document, environ, strict)
    config = structurer.run()
    problems += structurer.problems
    failed = any(problem.severity == "error" for problem in problems)
    return (None if failed else config), problems


class Structurer:
    """One walk over a document."""

    def __init__(self, document: Document, environ: Mapping[str, str], strict: bool) -> None:
        self.document, self.environ, self.strict = document, environ, strict
        self.problems: list[Problem] = []

    def run(self) -> RunConfig | None:
        tree = self.resolved(self.document.tree, ())
        tree = {k: v for k, v in tree.items() if not k.startswith(("_", "x-"))}
        self.add_defaults(tree)
        config = self.section(RunConfig, tree, ())
        if config is not BAD:
            self.cross_check(config)
        return None if config is BAD else config

    def problem(self, path: ConfigPath, message: str, hint: str = "", on: str = "value") -> Any:
        """Note a problem at `path`; returns BAD, for the walk to go on with."""
        self.problems.append(Problem(message, self.document.place(path, on=on), hint))
        return BAD

    def resolved(self, value: Any, path: ConfigPath) -> Any:
        """`value` with variables replaced; an unset one becomes an Unset, which fits anywhere."""
        if isinstance(value, dict):
            return {name: self.resolved(each, (*path, name)) for name, each in value.items()}
        if isinstance(value, list):
            return [self.resolved(each, (*path, i)) for i, each in enumerate(value)]
        if not isinstance(value, Variable):
            return value
        if not (unset := value.unset(self.environ)):
            return value.value(self.environ)
        name = unset[0]
        self.problems.append(
            Problem(
                f"The environment variable {name} is not set.",
                self.document.place(path),
                f"set it, or write ${{{name},default}}",
                "error" if self.strict else "warning",
            )
        )
        return value

    def add_defaults(self, tree: dict[str, Any]) -> None:
        """The defaults that depend on other sections."""
        optimizer = tree.setdefault("optimizer", {"weight_decay": 0.0})
        if isinstance(optimizer, dict):
            lr = DEFAULT_LR_WITH_ADAPTERS if tree.get("peft") else DEFAULT_LR
            optimizer.setdefault("lr", lr)
        loader, validation = tree.get("dataloader"), tree.get("validation_dataloader")
        if isinstance(validation, dict):
            inherited = loader if isinstance(loader, dict) else {}
            tree["validation_dataloader"] = {**inherited, "shuffle": False, **validation}

    def section(self, cls: type, value: Any, path: ConfigPath) -> Any:
        """An instance of a section class, or BAD."""
        if not isinstance(value, dict):
            return self.problem(path, f"`{dotted(path)}` must be a section, not {shown(value)}.")
        hints, fields = typing.get_type_hints(cls), attrs.fields_dict(cls)
        host = target_field(cls)
        known = {name for name in fields if name != host}
        made = {}
        for name, field in fields.items():
            here = (*path, name)
            if name == host:
                rest = {k: v for k, v in value.items() if k not in known}
                made[name] = self.target(rest, path, field.metadata["slot"])
            elif name in value:
                made[name] = self.field(field, hints[name], value[name], here)
            elif field.metadata.get("required"):
                made[name] = self.missing(field, here)
            elif field.default is attrs.NOTHING:
                made[name] = self.field(field, hints[name], {}, here)
        for name in [] if host else [name for name in value if name not in known]:
            self.unknown(name, known, path)
            made[name] = BAD
        return BAD if BAD in made.values() else cls(**made)

    def missing(self, field: attrs.Attribute, path: ConfigPath) -> Any:
        slot: Slot | None = field.metadata["slot"]
        example = f"{path[-1]}: {{{TARGET_KEY}: {slot.example}}}" if slot else f"{path[-1]}: ..."
        return self.problem(
            path[:-1], f"`{dotted(path)}` is missing.", f"{field.metadata['doc']} Write {example}"
        )

    def unknown(self, name: str, known: set[str], path: ConfigPath) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        where = f" in `{dotted(path)}`" if path else ""
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}"
        self.problem((*path, name), f"There is no key `{name}`{where}.", hint, on="key")

    def field(self, field: attrs.Attribute, annotation: Any, value: Any, path: ConfigPath) -> Any:
        """A field's value, after asking whether it is available yet."""
        pending = field.metadata.get("pending")
        if pending and value not in (None, False, 0, {}, field.default):
            return self.problem(path, f"`{dotted(path)}` isn't available yet.", pending, on="key")
        if pending and not value:
            return None if field.default is None else field.default
        made = self.value(annotation, value, path, field.metadata.get("slot"))
        least = field.metadata.get("at_least")
        if least is not None and isinstance(made, int | float) and made < least:
            return self.problem(path, f"`{dotted(path)}` must be at least {least}, not {made}.")
        return made

    def value(self, annotation: Any, value: Any, path: ConfigPath, slot: Slot | None) -> Any:
        """`value` as `annotation`, or BAD."""
        if isinstance(value, Variable):
            return value  # unset, and already reported
        options = typing.get_args(annotation)
        origin = typing.get_origin(annotation)
        if origin in (types.UnionType, typing.Union):
            return self.union(options, value, path, slot)
        if annotation is Target:
            return self.target(value, path, slot)
        if attrs.has(annotation):
            return self.section(annotation, value, path)
        if origin is dict:
            return self.mapping(options[1], value, path, slot)
        if origin is list:
            return self.sequence(options[0], value, path, slot)
        if origin is Literal:
            return value if value in options else self.not_listed(options, value, path)
        return self.scalar(annotation, value, path)

    def union(self, options: tuple, value: Any, path: ConfigPath, slot: Slot | None) -> Any:
        """Optional values, and one target or a mapping of names to them."""
        if value is None and types.NoneType in options:
            return None
        choices = [each for each in options if each is not types.NoneType]
        named = isinstance(value, dict) and value and TARGET_KEY not in value
        named = named and all(isinstance(each, dict) for each in value.values())
        return self.value(choices[-1 if named else 0], value, path, slot)

    def mapping(self, item: Any, value: Any, path: ConfigPath, slot: Slot | None) -> Any:
        made = {k: self.value(item, v, (*path, k), slot) for k, v in value.items()}
        return BAD if BAD in made.values() else made

    def sequence(self, item: Any, value: Any, path: ConfigPath, slot: Slot | None) -> Any:
        if not isinstance(value, list):
            return self.problem(path, f"`{dotted(path)}` must be a list, not {shown(value)}.")
        made = [self.value(item, each, (*path, i), slot) for i, each in enumerate(value)]
        return BAD if BAD in made else made

    def not_listed(self, options: tuple, value: Any, path: ConfigPath) -> Any:
        near = difflib.get_close_matches(str(value), [str(each) for each in options], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        listed = ", ".join(map(str, options))
        return self.problem(
            path,
            f"`{dotted(path)}` can't be {self.shown_at(path, value)}.",
            f"{hint}One of: {listed}",
        )

    def scalar(self, kind: type, value: Any, path: ConfigPath) -> Any:
        """A number, a boolean or a text, never one made from another."""
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is kind and not (kind is float and not math.isfinite(value)):
            return value
        return self.problem(
            path,
            f"`{dotted(path)}` must be {NAMES[kind]}, not {self.shown_at(path, value)}.",
            type_hint(kind, value),
        )

    def shown_at(self, path: ConfigPath, value: Any) -> str:
        """A value for a message; one from the environment as its placeholder."""
        raw = self.document.tree
        for name in path:
            raw = raw[name] if isinstance(raw, dict | list) and is_in(raw, name) else None
        return raw.text if isinstance(raw, Variable) else shown(value)

    def target(self, value: Any, path: ConfigPath, slot: Slot) -> Any:
        """A `_target_` section, a bare name, or the slot's default."""
        if isinstance(value, str):
            return Target(value, slot.kind, {}, path, slot.use)
        if not isinstance(value, dict):
            return self.problem(
                path,
                f"`{dotted(path)}` must be a section with `{TARGET_KEY}`, not {shown(value)}.",
                f"write {TARGET_KEY}: {slot.example or slot.default}",
            )
        name = value.get(TARGET_KEY, slot.default)
        if isinstance(name, Variable):
            return BAD
        if not isinstance(name, str):
            wrong = (
                f"needs a `{TARGET_KEY}`"
                if name is None
                else f"has a `{TARGET_KEY}` of {shown(name)}"
            )
            line = f"{TARGET_KEY}: {slot.example or slot.default}"
            return self.problem(path, f"`{dotted(path)}` {wrong}.", f"add {line}", on="key")
        arguments = {
            key: self.argument(each, (*path, key))
            for key, each in value.items()
            if key != TARGET_KEY
        }
        return Target(name, slot.kind, arguments, path, slot.use)

    def argument(self, value: Any, path: ConfigPath, use: Use = "call") -> Any:
        """An argument of a target; mappings with `_target_` in it become targets themselves."""
        if isinstance(value, list):
            return [self.argument(each, (*path, i), use) for i, each in enumerate(value)]
        if not isinstance(value, dict):
            return value
        arguments = {k: self.argument(v, (*path, k), use) for k, v in value.items()}
        name = arguments.pop(TARGET_KEY, None)
        if name is None:
            return arguments
        if not isinstance(name, str):
            self.problem((*path, TARGET_KEY), f"A `{TARGET_KEY}` is a name, not {shown(name)}.")
        return Target(str(name), None, arguments, path, use)

    def cross_check(self, config: RunConfig) -> None:
        """What no single key can tell."""
        scheduler: StepScheduler = config.step_scheduler
        if scheduler.val_every_steps is not None and config.validation_dataset is None:
            self.problem(
                ("step_scheduler", "val_every_steps"),
                "`val_every_steps` is given, but there is no validation_dataset.",
                "add a validation_dataset, or remove val_every_steps",
                on="key",
            )


def target_field(cls: type) -> str | None:
    """The field of a section class that takes `_target_` and every key the class doesn't know."""
    for name in ("loader", "target"):
        if name in attrs.fields_dict(cls):
            return name
    return None


def is_in(holder: dict | list, name: str | int) -> bool:
    return (
        name in holder if isinstance(holder, dict) else isinstance(name, int) and name < len(holder)
    )


def dotted(path: ConfigPath) -> str:
    return ".".join(map(str, path))


def shown(value: Any) -> str:
    """A YAML value as people speak of it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f'the text "{value}"' if isinstance(value, str) else repr(value)


def type_hint(kind: type, value: Any) -> str:
    """What to write instead, where that is clear."""
    if kind is bool and isinstance(value, str):
        word = OLD_BOOLEANS.get(value.lower(), value.lower())
        return f"write {word}" if word in ("true", "false") else "write true or false"
    if kind in (int, float) and isinstance(value, str):
        try:
            kind(value)
        except ValueError:
            return ""
        return f"write {value} without quotes"
    if kind is str and not isinstance(value, dict | list):
        return f'write "{shown(value)}"'
    return ""
