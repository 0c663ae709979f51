"""From the words on the command line to a checked configuration: what run, validate and explain
share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import attrs

from automodel_core.config.document import Document, load_files
from automodel_core.config.overrides import apply_overrides, split_arguments
from automodel_core.config.report import ConfigError, Problem
from automodel_core.config.schema import RunConfig
from automodel_core.config.structure import structure
from automodel_core.config.variables import Variable
from automodel_core.errors import ConfigPath, UserError
from automodel_core.registry import Registry
from automodel_core.targets import Finding, Targets
from automodel_core.trust import Trust


@attrs.frozen
class Loaded:
    """A configuration and everything that was found out about it.

    Attributes:
        config: None if it has errors.
        problems: Errors and warnings.
    """

    document: Document
    config: RunConfig | None
    problems: list[Problem]
    targets: Targets
    registry: Registry

    def require(self) -> RunConfig:
        """The configuration. Raises ConfigError with all problems if it has errors."""
        if self.config is None or any(each.severity == "error" for each in self.problems):
            raise ConfigError(self.problems)
        return self.config


def load(
    words: Sequence[str],
    *,
    allow: Sequence[str] = (),
    remote_code: bool = False,
    strict: bool,
    environ: Mapping[str, str] = os.environ,
) -> Loaded:
    """Read files and overrides, structure them, and check every target, importing none.

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
    registry = Registry.discover()
    targets = Targets(registry, Trust.from_environment(allow, remote_code=remote_code))
    config, problems = structure(document, environ, strict=strict)
    if config is not None:
        problems += as_problems(document, targets.check(config))
    return Loaded(document, config, problems, targets, registry)


def as_problems(document: Document, findings: Sequence[Finding]) -> list[Problem]:
    """Findings at their places, without those about variables that have no value yet."""
    return [
        Problem(each.message, document.place(each.path, on=each.on), each.hint)
        for each in findings
        if not isinstance(value_at(document, each.path), Variable)
    ]


def value_at(document: Document, path: ConfigPath) -> object:
    value = document.tree
    for name in path:
        try:
            value = value[name]
        except (KeyError, IndexError, TypeError):
            return None
    return value
