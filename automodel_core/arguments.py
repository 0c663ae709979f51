"""The arguments that a YAML section writes, judged against its target's signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import attrs

from automodel_core.annotations import fits, readable
from automodel_core.config.schema import Slot, Target
from automodel_core.docstrings import first_sentence
from automodel_core.errors import ConfigPath, UserError
from automodel_core.protocols import SUPPLIED
from automodel_core.signatures import Parameter, Signature
from automodel_core.wording import did_you_mean

REMOTE_CODE = "trust_remote_code"
NO_STREAM = (
    "leave it out: this set makes each sample when it is asked for, so there is nothing to stream; "
    "sets of text can be streamed"
)
IN_ITS_SOURCES = "write it in each of the sources instead"
ATTENTION = ("attn_implementation", "_attn_implementation")


@attrs.frozen
class Finding:
    """Something wrong in a configuration.

    Attributes:
        path: Where in the configuration.
        message: What is wrong, in one sentence.
        hint: What to write instead.
        on: Whether to point at the key or at its value.
    """

    path: ConfigPath
    message: str
    hint: str = ""
    on: Literal["key", "value"] = "value"

    def as_error(self) -> UserError:
        return UserError(self.message, fix=self.hint, path=self.path)

    @classmethod
    def from_error(cls, error: UserError, path: ConfigPath) -> Finding:
        """A UserError as a finding; `path` where the error itself doesn't know."""
        return cls(error.path or path, error.message, error.fix)


def judge(target: Target, signature: Signature, slot: Slot | None) -> Iterator[Finding]:
    """Everything wrong with the arguments of `target`."""
    given = engine_given(signature, slot)
    for name, value in target.arguments.items():
        path = (*target.path, name)
        parameter = signature.get(name)
        if name in given:
            yield Finding(path, f"The engine sets `{name}` itself.", "leave it out", on="key")
        elif parameter:
            yield from _judge_value(parameter, value, path, signature)
        elif not signature.open:
            own = [each.name for each in signature.parameters if each.name not in given]
            yield _unknown(target, name, path, [*own, *(slot.beside if slot else ())])
    for parameter in signature.parameters:
        known = {*target.arguments, *given, *SUPPLIED}
        if parameter.default is None and parameter.name not in known:
            yield Finding(
                target.path,
                f"`{target.name}` needs `{parameter.name}`.",
                first_sentence(parameter.doc) or readable(parameter.annotation or ""),
                on="key",
            )


def engine_given(signature: Signature, slot: Slot | None) -> frozenset[str]:
    """The parameters that the engine passes. A partial's first one, whatever its name, is what the
    engine calls it with: an optimizer's parameters, a loader's dataset, a collator's samples."""
    if slot is None:
        return frozenset()
    first = [each.name for each in signature.parameters if each.positional][:1]
    return frozenset([*slot.given, *(first if slot.use == "partial" else [])])


def _judge_value(
    parameter: Parameter, value: Any, path: ConfigPath, signature: Signature
) -> Iterator[Finding]:
    def accepts(candidate: Any) -> bool:
        return fits(candidate, parameter.annotation, parameter.default, signature.module)

    if not accepts(value):
        # Never a text itself: it may have come from the environment.
        if isinstance(value, bool) and accepts(not value):
            message = f"`{parameter.name}` can't be {str(value).lower()}."
        else:
            wanted = readable(parameter.annotation or "")
            message = f"`{parameter.name}` takes {wanted}, not {kind_of(value)}."
        yield Finding(path, message, _other_quotes(value, accepts) or first_sentence(parameter.doc))


def _other_quotes(value: Any, accepts: Callable[[Any], bool]) -> str:
    """The advice to write the same without quotes, or in quotes, if that would do."""
    if isinstance(value, int | float) and accepts(str(value)):
        return "write it in quotes"
    if isinstance(value, str):
        from automodel_core.config.scalars import plain_scalar

        bare = plain_scalar(value)
        return "write it without quotes" if bare != value and accepts(bare) else ""
    return ""


def _unknown(target: Target, name: str, path: ConfigPath, known: Iterable[str]) -> Finding:
    names = list(dict.fromkeys(known))
    listed = f"it takes: {', '.join(names)}" if names else "it takes none"
    hint = did_you_mean(name, names) or listed
    if name == "streaming" and target.kind == "datasets":
        hint = IN_ITS_SOURCES if "sources" in names else NO_STREAM
    return Finding(path, f"`{target.name}` takes no argument `{name}`.", hint, on="key")


def kind_of(value: Any) -> str:
    """What a YAML value is, without saying it."""
    if value is None:
        return "none"
    names = {bool: "boolean", int: "number", float: "number", str: "text", list: "list"}
    return f"this {names.get(type(value), 'mapping')}"


def remote_code(path: ConfigPath, value: Any) -> Iterator[Finding]:
    """Every place that asks for code from the Hub: the command line must agree to it.

    Mappings are searched too, for arguments that a target passes on to Hugging Face.
    """
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        if name == REMOTE_CODE and inner not in (False, None):
            yield Finding(
                (*path, name),
                "This would run code from the model's repository.",
                "read that code, then add --trust-remote-code to the command",
            )
        if name in ATTENTION and "/" in str(inner):
            yield Finding(
                (*path, name),
                "This would run an attention kernel fetched from the Hub.",
                "read that code, then add --trust-remote-code to the command",
            )
        yield from remote_code((*path, name), inner)
