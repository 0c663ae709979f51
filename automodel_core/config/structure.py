"""The plain tree -> the sections of the schema, strictly and with all problems at once.

A walk of our own rather than a converter library: every problem is to be shown at its own line, no
value may be coerced ("4" is no integer, "false" no boolean, true no number), and half of the fields
are targets, whose arguments are judged later by their own signature.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from automodel_core.config.aliases import move_aliases, spellings_in
from automodel_core.config.defaults import add_defaults, inherit_dataloader
from automodel_core.config.document import Document
from automodel_core.config.dtypes import read_dtype
from automodel_core.config.hints import NAMES, shown, type_hint
from automodel_core.config.report import MASK, Problem
from automodel_core.config.schema import RunConfig, Slot, Target, Use, target_field
from automodel_core.config.secrets import is_secret
from automodel_core.config.variables import Variable
from automodel_core.errors import ConfigPath
from automodel_core.wording import did_you_mean

TARGET_KEY = "_target_"
BAD: Any = object()


def structure(
    document: Document, environ: Mapping[str, str], *, strict: bool
) -> tuple[RunConfig, list[Problem]]:
    """Turn a document into a RunConfig. The document is rewritten in our spelling on the way.

    Args:
        document: What the user wrote.
        environ: For `${...}`.
        strict: An unset variable is an error; if not, a warning, and its value isn't judged.

    Returns:
        The configuration and all problems, warnings too. What is wrong is None in it, so that the
        targets elsewhere can be checked nevertheless.
    """
    move_aliases(document)  # those in mappings that were typed on the command line
    inherit_dataloader(document)
    structurer = Structurer(document, environ, strict)
    config = structurer.run()
    return config, list(dict.fromkeys(document.problems + structurer.problems))


class Structurer:
    """One walk over a document."""

    def __init__(self, document: Document, environ: Mapping[str, str], strict: bool) -> None:
        self.document, self.environ, self.strict = document, environ, strict
        self.problems: list[Problem] = []

    def run(self) -> RunConfig:
        """The whole configuration. Sections of the user's own, `_...` and `x-...`, aren't read."""
        tree = {
            name: self.resolved(value, (name,))
            for name, value in self.document.tree.items()
            if not name.startswith(("_", "x-"))
        }
        add_defaults(tree)
        config = self.section(RunConfig, tree, ())
        self.cross_check(config)
        return config

    def problem(self, path: ConfigPath, message: str, hint: str = "", on: str = "value") -> Any:
        """Note a problem at `path`; returns BAD, for the walk to go on with."""
        self.problems.append(Problem(message, self.document.place(path, on=on), hint))
        return BAD

    def name(self, path: ConfigPath) -> str:
        return f"`{self.document.name(path)}`"

    def shown(self, path: ConfigPath, value: Any) -> str:
        """A value for a message; a secret one, or one from the environment, as its placeholder."""
        written = self.document.get(path)
        if isinstance(written, Variable):
            return written.text
        return MASK if is_secret(path) else shown(value)

    def resolved(self, value: Any, path: ConfigPath) -> Any:
        """`value` with its variables replaced; an unset one stays and fits anywhere."""
        if isinstance(value, dict):
            return {name: self.resolved(each, (*path, name)) for name, each in value.items()}
        if isinstance(value, list):
            return [self.resolved(each, (*path, i)) for i, each in enumerate(value)]
        if not isinstance(value, Variable):
            return value
        if not (unset := value.unset(self.environ)):
            return value.value(self.environ)
        self.problems.append(
            Problem(
                f"The environment variable {unset[0]} is not set.",
                self.document.place(path),
                f"set it, or write ${{{unset[0]},default}}",
                "error" if self.strict else "warning",
            )
        )
        return value

    def section(self, cls: type, value: Any, path: ConfigPath) -> Any:
        """An instance of a section class, with None for what is wrong in it; BAD if all is."""
        if not isinstance(value, dict):
            wrong = f"{self.name(path)} must be a section, not {self.shown(path, value)}."
            return self.problem(path, wrong, "" if value else "write {} for the defaults")
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
        if host is None:
            self.unknown(value, known, path)
        return cls(**{name: None if each is BAD else each for name, each in made.items()})

    def missing(self, field: attrs.Attribute, path: ConfigPath) -> Any:
        slot: Slot | None = field.metadata["slot"]
        example = f"{path[-1]}: {{{TARGET_KEY}: {slot.example}}}" if slot else f"{path[-1]}: ..."
        hint = f"{field.metadata['doc']} Write {example}"
        return self.problem(path[:-1], f"{self.name(path)} is missing.", hint, on="key")

    def unknown(self, section: dict[str, Any], known: set[str], path: ConfigPath) -> None:
        """Note every key of a section that is none of its class."""
        where = f" in {self.name(path)}" if path else ""
        for name in [name for name in section if name not in known]:
            here = (*path, name)
            if (spellings := spellings_in(here)) and isinstance(section[name], dict):
                self.unknown(section[name], set(spellings), here)
                continue
            hint = did_you_mean(name, [*sorted(known), *spellings_in(path)])
            listed = f"known here: {', '.join(sorted(known))}"
            self.problem(here, f"There is no key `{name}`{where}.", hint or listed, on="key")

    def field(self, field: attrs.Attribute, annotation: Any, value: Any, path: ConfigPath) -> Any:
        """A field's value, no smaller than it may be."""
        made = self.value(annotation, value, path, field.metadata.get("slot"))
        least = field.metadata.get("at_least")
        if least is not None and isinstance(made, int | float) and made < least:
            wrong = f"must be at least {least}, not {self.shown(path, made)}."
            return self.problem(path, f"{self.name(path)} {wrong}")
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
            return self.choice(options, value, path)
        return self.scalar(annotation, value, path)

    def union(self, options: tuple, value: Any, path: ConfigPath, slot: Slot | None) -> Any:
        """Optional values; one target or a mapping of names to them; words or a section."""
        if value is None and types.NoneType in options:
            return None
        choices = [each for each in options if each is not types.NoneType]
        if typing.get_origin(choices[0]) is Literal:
            return self.value(choices[-1 if isinstance(value, dict) else 0], value, path, slot)
        named = isinstance(value, dict) and value and TARGET_KEY not in value
        named = named and all(isinstance(each, dict) for each in value.values())
        return self.value(choices[-1 if named else 0], value, path, slot)

    def mapping(self, item: Any, value: Any, path: ConfigPath, slot: Slot | None) -> Any:
        made = {k: self.value(item, v, (*path, k), slot) for k, v in value.items()}
        return {k: v for k, v in made.items() if v is not BAD}

    def sequence(self, item: Any, value: Any, path: ConfigPath, slot: Slot | None) -> Any:
        if not isinstance(value, list):
            wrong = f"must be a list, not {self.shown(path, value)}."
            return self.problem(path, f"{self.name(path)} {wrong}")
        made = [self.value(item, each, (*path, i), slot) for i, each in enumerate(value)]
        return [each for each in made if each is not BAD]

    def choice(self, options: tuple, value: Any, path: ConfigPath) -> Any:
        """One of a few words, or a boolean that can only be true."""
        if any(type(value) is type(each) and value == each for each in options):
            return value
        words = [shown(each) if isinstance(each, bool) else each for each in options]
        hint = did_you_mean(value, words) if isinstance(value, str) else ""
        return self.problem(
            path,
            f"{self.name(path)} can't be {self.shown(path, value)}.",
            f"{hint} One of: {', '.join(words)}".strip() if len(words) > 1 else "",
        )

    def scalar(self, kind: type, value: Any, path: ConfigPath) -> Any:
        """A number, a boolean or a text, never one made from another."""
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is kind and not (kind is float and not math.isfinite(value)):
            return value
        wrong = f"must be {NAMES[kind]}, not {self.shown(path, value)}."
        return self.problem(path, f"{self.name(path)} {wrong}", type_hint(kind, value))

    def target(self, value: Any, path: ConfigPath, slot: Slot) -> Any:
        """A `_target_` section, a bare name, or the slot's default."""
        line = f"{TARGET_KEY}: {slot.example or slot.default}"
        if isinstance(value, str):
            return Target(value, slot.kind, {}, path, slot.use)
        if not isinstance(value, dict):
            wrong = f"must be a section with `{TARGET_KEY}`, not {self.shown(path, value)}."
            return self.problem(path, f"{self.name(path)} {wrong}", f"write {line}")
        if TARGET_KEY not in value and slot.default is None:
            wrong = f"{self.name(path)} needs a `{TARGET_KEY}`."
            for name in value:
                if hint := did_you_mean(name, [TARGET_KEY], cutoff=0.8):
                    return self.problem((*path, name), wrong, hint, on="key")
            return self.problem(path, wrong, f"add {line}", on="key")
        name = self.target_name(value.get(TARGET_KEY, slot.default), path, f"write {line}")
        arguments = {k: self.argument(v, (*path, k)) for k, v in value.items() if k != TARGET_KEY}
        if slot.kind == "models":
            arguments = self.with_dtype(arguments, path)
        return BAD if name is BAD else Target(name, slot.kind, arguments, path, slot.use)

    def target_name(self, name: Any, path: ConfigPath, hint: str) -> Any:
        """What stands behind `_target_`; BAD if it is no name, or not known yet."""
        if isinstance(name, str):
            return name
        if isinstance(name, Variable):
            return BAD
        here = (*path, TARGET_KEY)
        wrong = f"must be the name of a target, not {self.shown(here, name)}."
        return self.problem(here, f"{self.name(here)} {wrong}", hint)

    def with_dtype(self, arguments: dict[str, Any], path: ConfigPath) -> dict[str, Any]:
        """A model's arguments, with the plain name of the dtype."""
        asked, here = arguments.get("torch_dtype"), (*path, "torch_dtype")
        if not isinstance(asked, str):
            return arguments
        name, hint = read_dtype(asked)
        if name is not None:
            return arguments | {"torch_dtype": name}
        self.problem(here, f"{self.name(here)} can't be {self.shown(here, asked)}.", hint)
        return {k: v for k, v in arguments.items() if k != "torch_dtype"}

    def argument(self, value: Any, path: ConfigPath, use: Use = "call") -> Any:
        """An argument of a target; mappings with `_target_` in it become targets themselves."""
        if isinstance(value, list):
            return [self.argument(each, (*path, i), use) for i, each in enumerate(value)]
        if not isinstance(value, dict):
            return value
        arguments = {k: self.argument(v, (*path, k), use) for k, v in value.items()}
        if TARGET_KEY not in arguments:
            return arguments
        name = self.target_name(arguments.pop(TARGET_KEY), path, "")
        return None if name is BAD else Target(name, None, arguments, path, use)

    def cross_check(self, config: RunConfig) -> None:
        """What no single key can tell."""
        scheduler = config.step_scheduler
        if scheduler is None or scheduler.val_every_steps is None:
            return
        if self.document.get(("validation_dataset",)) is None:
            self.problem(
                ("step_scheduler", "val_every_steps"),
                "`val_every_steps` is given, but there is no validation_dataset.",
                "add a validation_dataset, or remove val_every_steps",
                on="key",
            )
