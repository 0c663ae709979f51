"""One announced name of a plugin, and the kinds of things that plugins announce."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

# Every kind of target and what one of them is called in a message.
KINDS: Mapping[str, str] = {
    "models": "model",
    "distributed": "parallel manager",
    "datasets": "dataset",
    "collators": "collator",
    "losses": "loss",
    "peft": "adapter method",
    "optimizers": "optimizer",
    "dataloaders": "data loader",
    "rng": "random number generator",
    "loggers": "logger",
    "launchers": "launcher",
    "recipes": "recipe",
}

# Two groups name no target: other spellings of targets, and modules with hook implementations.
ALIASES = "aliases"
HOOKS = "hooks"

State = Literal["ok", "disabled", "incompatible", "conflict", "broken"]


def a_kind(kind: str) -> str:
    """A kind with its article, for messages."""
    return f"{'an' if KINDS[kind][0] in 'aeiou' else 'a'} {KINDS[kind]}"


@attrs.frozen
class Record:
    """One announced name.

    Attributes:
        kind: A key of KINDS, "aliases" or "hooks".
        name: What the YAML writes.
        distribution: The installed package that announces it.
        version: That package's version.
        value: Where it is, "package.module:object"; a hook module has no object.
        state: "ok", or why it cannot be used.
        reason: One sentence for any state but "ok".
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str
    state: State = "ok"
    reason: str = ""

    @property
    def module(self) -> str:
        return self.value.partition(":")[0]

    @property
    def qualname(self) -> str:
        return self.value.partition(":")[2]

    @property
    def dotted(self) -> str:
        return self.value.replace(":", ".")

    @property
    def spellings(self) -> frozenset[str]:
        """Every way to name this record: `name`, `kind:name`, `owner/name`."""
        return frozenset(
            {self.name, f"{self.kind}:{self.name}", f"{self.distribution}/{self.name}"}
        )

    def marked(self, state: State, reason: str) -> Record:
        """The same record in another state; the first thing found wrong stays."""
        return self if self.state != "ok" else attrs.evolve(self, state=state, reason=reason)
