"""From the words on the command line to a checked configuration: what run, validate and explain
share."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import attrs

from automodel_core.config.document import Document
from automodel_core.config.overrides import apply_overrides, split_arguments
from automodel_core.config.reading import load_files
from automodel_core.config.report import ConfigError, Problem
from automodel_core.config.schema import Plugins, RunConfig
from automodel_core.config.secrets import redactor, variables_in
from automodel_core.config.streams import check_streams
from automodel_core.config.structure import structure
from automodel_core.errors import UserError
from automodel_core.registry import Registry
from automodel_core.targets import Finding, Targets
from automodel_core.trust import Trust


@attrs.frozen
class Loaded:
    """A configuration and everything that was found out about it.

    Attributes:
        config: With None for what is wrong in it.
        problems: Errors and warnings.
        environ: What `${...}` were taken from.
    """

    document: Document
    config: RunConfig
    problems: list[Problem]
    targets: Targets
    registry: Registry
    environ: Mapping[str, str]

    @property
    def failed(self) -> bool:
        """Whether any problem is an error."""
        return any(each.severity == "error" for each in self.problems)

    def require(self) -> RunConfig:
        """The configuration. Raises ConfigError with all problems if it has errors."""
        if self.failed:
            raise ConfigError(self.problems)
        return self.config

    def add(self, findings: Iterable[Finding]) -> None:
        """Findings as problems at their places, without those about what isn't known yet. They may
        speak of values, not knowing which of them came from the environment."""
        redact = redactor(self.document, self.environ)
        for each in findings:
            variables = variables_in(self.document.get(each.path))
            if not any(variable.unset(self.environ) for variable in variables):
                place = self.document.place(each.path, on=each.on)
                self.problems.append(Problem(redact(each.message), place, redact(each.hint)))

    def redact(self, text: str) -> str:
        """`text` without what is secret in this configuration."""
        return redactor(self.document, self.environ)(text)


def load(
    words: Sequence[str],
    *,
    allow: Sequence[str] = (),
    no_plugin: Sequence[str] = (),
    remote_code: bool = False,
    strict: bool,
    environ: Mapping[str, str] = os.environ,
    sections: Collection[str] | None = None,
) -> Loaded:
    """Read files and overrides, structure them, and check every target, importing none.

    Args:
        words: Files and overrides.
        allow: What they may name besides the installed plugins.
        no_plugin: Plugins to leave out.
        remote_code: Whether a model's own Python may run.
        strict: Whether an unset environment variable is an error.
        environ: What `${...}` are taken from.
        sections: Check the targets of these alone, because no other will be used.

    Raises:
        ConfigError: The text can't be read at all.
    """
    files, overrides = split_arguments(words)
    if not files:
        raise UserError(
            "Which configuration?", fix="name a YAML file, such as examples/quickstart.yaml"
        )
    document = load_files(files)
    apply_overrides(document, overrides)
    config, problems = structure(document, environ, strict=strict)
    chosen = config.plugins or Plugins()
    registry = Registry.discover(disabled=[*no_plugin, *(chosen.disable or ())])
    targets = Targets(registry, Trust.from_environment(allow, remote_code=remote_code))
    loaded = Loaded(document, config, problems, targets, registry, environ)
    found = [
        *targets.check(config),
        *unmet(chosen.require or (), registry),
        *check_streams(config),
    ]
    loaded.add(each for each in found if sections is None or each.path[0] in sections)
    return loaded


def unmet(required: Sequence[str], registry: Registry) -> Iterator[Finding]:
    """The `plugins.require` that can't be used: not installed, disabled, or broken."""
    for index, name in enumerate(required):
        usable = [
            each
            for each in registry.records
            if each.state == "ok" and name in (each.distribution, *each.spellings)
        ]
        if not usable:
            hint = "see `automodel list-plugins` for what is installed, and in what state"
            yield Finding(("plugins", "require", index), f"There is no usable `{name}`.", hint)
