"""From what a YAML file writes as `_target_` to the one object it means, without importing it."""

from __future__ import annotations

import attrs

from automodel_core.errors import UserError
from automodel_core.places import Place, follow, locate, split
from automodel_core.records import Record, a_kind
from automodel_core.registry import Registry, refusal, source_checked
from automodel_core.signatures import Signature, read_signature
from automodel_core.sources import bindings
from automodel_core.trust import Trust, not_what_it_seems
from automodel_core.wording import did_you_mean


@attrs.frozen
class Resolved:
    """Where a target is.

    Attributes:
        module: The module to import.
        qualname: The object in it, such as `AutoModel.from_pretrained`.
        record: The plugin that registers it; None for a name used by trust alone.
        place: What its source says.
    """

    module: str
    qualname: str
    record: Record | None
    place: Place | None

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.qualname}"

    @property
    def signature(self) -> Signature | None:
        """Its parameters, read from source; None if only importing would tell."""
        return read_signature(self.place) if self.place else None


def resolve(name: str, kind: str | None, registry: Registry, trust: Trust) -> Resolved:
    """What `name` means in a slot of `kind`.

    In this order: the dotted path of something registered or trusted, which no other name can hide;
    an alias; `kind:name`, `owner/name`, or a bare name of the slot's kind.

    Raises:
        UserError: It means nothing, cannot be used, or may not be.
    """
    if name in registry.by_value:
        return _registered(_of_kind(registry.by_value[name], kind, name, registry))
    if trust.permits(name):
        return _dotted(name, trust)
    if alias := registry.aliases.get(name):
        if alias.state != "ok":
            raise refusal(alias)
        return _registered(_of_kind(registry.by_value[alias.dotted], kind, name, registry))
    is_announced = any(name in each.spellings for each in registry.targets())
    if "." in name and not is_announced:
        raise _not_trusted(name, kind, registry, trust)
    return _registered(registry.find(kind, name))


def _of_kind(target: Record, kind: str | None, name: str, registry: Registry) -> Record:
    if kind is None or target.kind == kind:
        return target
    raise UserError(
        f"`{name}` is {a_kind(target.kind)}, not {a_kind(kind)}.",
        fix=registry.suggestion(kind, name),
    )


def _registered(record: Record) -> Resolved:
    record = source_checked(record)
    if record.state not in ("ok", "conflict"):  # a conflicting one gets here only by its owner
        raise refusal(record)
    return Resolved(record.module, record.qualname, record, locate(record.dotted))


def _not_trusted(name: str, kind: str | None, registry: Registry, trust: Trust) -> UserError:
    if kind == "models" and name.startswith("transformers."):
        ours = ", ".join(each.name for each in registry.targets(kind) if each.state == "ok")
        return UserError(
            f"`{name}` would read the weights before anything is checked.",
            fix=f"write one that waits: {ours}",
        )
    error = trust.refusal(name)
    # A slip of the pen is likelier than the wish for something unknown.
    near = did_you_mean(name, registry.aliases, cutoff=0.75)
    error.fix = near or _relatives(name, kind, registry) or error.fix
    return error


def _relatives(name: str, kind: str | None, registry: Registry) -> str:
    """The names of a foreign package that do mean something here; "" if there are none."""
    package = name.partition(".")[0]
    known = [
        alias
        for alias, record in registry.aliases.items()
        if alias.startswith(f"{package}.")
        and (target := registry.by_value.get(record.dotted))
        and target.kind == kind
    ]
    return f"of {package} you may write: {', '.join(known)}" if known else ""


def _dotted(name: str, trust: Trust) -> Resolved:
    module, names = split(name)
    if module is None:
        raise UserError(f"`{name}`: no package `{name.partition('.')[0]}` is installed.")
    place = follow(module, names)
    if place.dotted != name and not trust.permits(place.dotted):
        raise not_what_it_seems(name, place.dotted)
    if place.is_missing:
        raise UserError(
            f"`{place.module.name}` has no `{place.names[0]}`.",
            fix=did_you_mean(place.names[0], bindings(place.module)),
        )
    return Resolved(module.name, ".".join(names), None, place)
