"""The loggers that the YAML names, kept where they cannot harm a run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from automodel_core.config.schema import RunConfig
from automodel_core.config.variables import Variable
from automodel_core.protocols import Logger
from automodel_core.randomness import untouched_randomness
from automodel_core.train.context import RunContext
from automodel_core.train.status import State

LOG = logging.getLogger("automodel.loggers")


class Loggers:
    """Tells every logger what happens, with random state put back after each call.

    One that raises is dropped for the rest of the run, with one line in the log.

    Args:
        named: Each logger and the name that the YAML has for it.
        config: The effective configuration, secrets as placeholders.
    """

    def __init__(
        self, named: Iterable[tuple[str, Logger]] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        self.named = list(named)
        self.config = config or {}

    def start(self, folder: Path, step: int) -> None:
        self._tell("start", folder, self.config, step)

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._tell("log_step", step, metrics)

    def log_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._tell("log_validation", step, metrics)

    def finish(self, state: State) -> None:
        self._tell("finish", state)

    def _tell(self, what: str, *arguments: Any) -> None:
        for name, logger in list(self.named):
            try:
                with untouched_randomness():
                    getattr(logger, what)(*copy.deepcopy(arguments))
            except (Exception, SystemExit) as error:
                self.named.remove((name, logger))
                fault = f"{what} raised {type(error).__name__}: {error}"
                LOG.warning("The logger %s is dropped: %s", name, fault)


def build_loggers(config: RunConfig, context: RunContext, supplied: Mapping[str, Any]) -> Loggers:
    """Build what `loggers:` and `wandb:` name.

    Raises:
        UserError: One cannot be used here: a package or a login is missing.
    """
    build = context.targets.build
    with untouched_randomness():
        named = [(target.name, build(target, supplied)) for target in config.loggers]
        section = config.wandb
        if section is not None and section.enable:
            logger = build(section.target, supplied, api_key=section.api_key)
            named.append((section.target.name, logger))
    return Loggers(named, as_written(context.effective))


def as_written(value: Any) -> Any:
    """A plain tree with `${...}` as the text that stands in the YAML."""
    if isinstance(value, Mapping):
        return {name: as_written(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_written(each) for each in value]
    return value.text if isinstance(value, Variable) else value
