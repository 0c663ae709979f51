"""`_target_` sections resolved, checked and built: the one door from a YAML file to Python objects.

`check` reads sources and imports nothing. `deep_check` imports the targets and asks Python. `build`
and `bind` make the objects. All judge names by the same trust policy, before and after importing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs

from automodel_core.annotations import wants_tuple
from automodel_core.arguments import Finding, judge, remote_code
from automodel_core.config.schema import Slot, Target, target_field
from automodel_core.errors import ConfigPath, UserError
from automodel_core.registry import Registry, import_object
from automodel_core.resolve import Resolved, resolve
from automodel_core.signatures import Signature, docstring, documented, live_signature
from automodel_core.trust import Trust

__all__ = ["Finding", "Targets"]


class Targets:
    """Resolves, checks and builds the `_target_` sections of a configuration.

    Args:
        registry: The installed plugins.
        trust: What else may be named.
    """

    def __init__(self, registry: Registry, trust: Trust) -> None:
        self.registry = registry
        self.trust = trust

    def check(self, config: Any) -> list[Finding]:
        """Everything wrong with the targets of a configuration, without importing any of them."""
        return [each for found in each_target(config) for each in self._check(*found)]

    def deep_check(self, config: Any) -> list[Finding]:
        """The same questions put to the imported objects; for what sources could not answer too."""
        return [each for found in each_target(config) for each in self._deep_check(*found)]

    def unchecked(self, config: Any) -> list[Finding]:
        """The arguments that `check` could not judge; they are judged when they are built."""
        return [each for found in each_target(config) for each in self._unchecked(*found)]

    def resolve(self, target: Target) -> Resolved:
        """Where `target` is. Raises UserError at its `_target_` if it is nowhere or refused."""
        with at((*target.path, "_target_")):
            return resolve(target.name, target.kind, self.registry, self.trust)

    def load(self, target: Target) -> Any:
        """Import the object that `target` names; what isn't registered must be what it seems.

        Raises:
            UserError: It is refused, isn't there, or cannot be imported.
        """
        resolved = self.resolve(target)
        with at((*target.path, "_target_")):
            found = _import(resolved)
            if resolved.record is None:
                self.trust.require_identity(found, resolved.dotted)
            return found

    def build(self, target: Target, supplied: Mapping[str, Any], **given: Any) -> Any:
        """Call `target` with its arguments; nested targets are built first.

        Args:
            target: The section.
            supplied: What the target gets if it declares a parameter of that name and the YAML
                leaves it out.
            given: What the engine passes in any case.

        Raises:
            UserError: From the target, with its place in the configuration.
        """
        function = self.load(target)
        arguments = self._arguments(function, target, supplied) | given
        with at(target.path):
            _require_fit(function, target, arguments)
            return function(**arguments)

    def bind(self, target: Target, supplied: Mapping[str, Any]) -> functools.partial[Any]:
        """`target` with its arguments bound, for the engine to call later."""
        function = self.load(target)
        return functools.partial(function, **self._arguments(function, target, supplied))

    def _check(self, target: Target, slot: Slot | None) -> Iterator[Finding]:
        try:
            resolved = self.resolve(target)
        except UserError as error:
            yield Finding.from_error(error, target.path)
            return
        yield from self._judge(target, slot, resolved.signature)

    def _deep_check(self, target: Target, slot: Slot | None) -> Iterator[Finding]:
        try:
            found = self.load(target)
        except UserError as error:
            yield Finding.from_error(error, target.path)
            return
        signature = live_signature(found)
        place = self.resolve(target).place
        if signature and place:  # hints quote the documentation, which only sources have in full
            signature = documented(signature, docstring(place))
        yield from self._judge(target, slot, signature)

    def _judge(
        self, target: Target, slot: Slot | None, signature: Signature | None
    ) -> Iterator[Finding]:
        if signature:
            yield from judge(target, signature, slot)
        if not self.trust.remote_code:
            yield from remote_code(target.path, target.arguments)

    def _unchecked(self, target: Target, slot: Slot | None) -> Iterator[Finding]:
        try:
            signature = self.resolve(target).signature
        except UserError:
            return  # `check` reports it
        for name in target.arguments:
            parameter = signature.get(name) if signature else None
            if parameter is None or parameter.annotation is None:
                yield Finding(
                    (*target.path, name),
                    f"The source of `{target.name}` doesn't say what `{name}` may be.",
                    "checked when it is built, before weights are read",
                )

    def _arguments(
        self, function: Callable[..., Any], target: Target, supplied: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The YAML's arguments ready to pass, and what is supplied beside them."""
        signature = live_signature(function) or Signature(open=True)
        arguments = {name: self._made(value, supplied) for name, value in target.arguments.items()}
        if not self.trust.remote_code:  # again: a value from the environment is only known now
            for refused in remote_code(target.path, arguments):
                raise UserError(refused.message, fix=refused.hint, path=refused.path)
        for parameter in signature.parameters:
            value = arguments.get(parameter.name)
            if isinstance(value, list) and wants_tuple(parameter.annotation, parameter.default):
                arguments[parameter.name] = tuple(value)
            if parameter.name in supplied and parameter.name not in arguments:
                arguments[parameter.name] = supplied[parameter.name]
        return arguments

    def _made(self, value: Any, supplied: Mapping[str, Any]) -> Any:
        """A YAML value with the targets in it replaced by what they stand for."""
        if isinstance(value, list):
            return [self._made(each, supplied) for each in value]
        if isinstance(value, dict):
            return {key: self._made(each, supplied) for key, each in value.items()}
        if not isinstance(value, Target):
            return value
        if value.use == "reference":
            return self.load(value)
        return (self.build if value.use == "call" else self.bind)(value, supplied)


def each_target(section: Any, slot: Slot | None = None) -> Iterator[tuple[Target, Slot | None]]:
    """Every target of a configuration with its slot, those inside arguments and lists included."""
    if isinstance(section, Target):
        yield section, slot
        yield from each_target(section.arguments)
    elif attrs.has(type(section)):
        host, names = target_field(type(section)), attrs.fields_dict(type(section))
        for name, field in names.items():
            its_slot = field.metadata.get("slot")
            if name == host:
                its_slot = attrs.evolve(
                    its_slot, beside=tuple(each for each in names if each != host)
                )
            yield from each_target(getattr(section, name), its_slot)
    elif isinstance(section, Mapping):
        for value in section.values():
            yield from each_target(value, slot)
    elif isinstance(section, list | tuple):
        for value in section:
            yield from each_target(value, slot)


@contextmanager
def at(path: ConfigPath) -> Iterator[None]:
    """Give a UserError from inside the place it lacks."""
    try:
        yield
    except UserError as error:
        if error.path is None:
            error.path = (*path, error.argument) if error.argument else path
        raise


def _import(resolved: Resolved) -> Any:
    try:
        return import_object(resolved.module, resolved.qualname)
    except Exception as error:  # whatever it raises, the user must know whose it is
        owner = f" (from {resolved.record.distribution})" if resolved.record else ""
        raise UserError(
            f"Importing `{resolved.dotted}`{owner} failed: {type(error).__name__}: {error}"
        ) from error


def _require_fit(function: Callable[..., Any], target: Target, arguments: dict[str, Any]) -> None:
    """Tell a call that cannot work from a TypeError inside the target, which is a bug."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a C function: calling it is the only check there is
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"`{target.name}` cannot be called like this: {error}.") from None
