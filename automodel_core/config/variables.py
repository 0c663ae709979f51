"""`${NAME}` and `${NAME,default}`: kept as they are written until the value is used, so that what
came from the environment is never printed or saved."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from automodel_core.config.scalars import Scalar, plain_scalar

REFERENCE = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(,(?P<default>[^}]*))?\}")


@attrs.frozen
class Variable:
    """A scalar with at least one `${...}` in it.

    Attributes:
        text: As it stands in the file.
        plain: Unquoted: if it is wholly one `${...}`, its value is typed by the YAML rules.
    """

    text: str
    plain: bool

    def names(self) -> list[str]:
        """The environment variables in it."""
        return [match["name"] for match in REFERENCE.finditer(self.text) if match["name"]]

    def unset(self, environ: Mapping[str, str]) -> list[str]:
        """The names in it that have neither a value nor a default."""
        return [
            match["name"]
            for match in REFERENCE.finditer(self.text)
            if match["name"] and match["name"] not in environ and match["default"] is None
        ]

    def value(self, environ: Mapping[str, str]) -> Scalar:
        """What it stands for. Raises KeyError if a name is unset."""
        filled = substitute(self.text, environ)
        match = REFERENCE.fullmatch(self.text)
        return plain_scalar(filled) if self.plain and match and match["name"] else filled


def read_scalar(text: str, *, plain: bool) -> Scalar | Variable:
    """A scalar as the tree holds it; `$$` stands for one dollar sign."""
    names = [match["name"] for match in REFERENCE.finditer(text)]
    if any(names):
        return Variable(text, plain)
    if names:
        text = substitute(text, {})
    return plain_scalar(text) if plain else text


def substitute(text: str, environ: Mapping[str, str]) -> str:
    """`text` with its references replaced. Raises KeyError if a name is unset."""

    def replacement(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if name is None:
            return "$"
        return environ[name] if default is None else environ.get(name, default)

    return REFERENCE.sub(replacement, text)


def escape(text: str) -> str:
    """`text` written so that reading it gives it back."""
    return re.sub(r"\$(?=\$|\{)", "$$", text)
