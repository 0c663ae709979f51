"""A run that a launcher starts somewhere else: `slurm:`, `launcher:` and `--launcher`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from automodel_core.cli.loading import Loaded
from automodel_core.config.document import Document, dotted, paths_below
from automodel_core.config.report import COMMAND_LINE, render_user_error
from automodel_core.config.schema import RunConfig, Slurm, Target
from automodel_core.config.secrets import literals, masked_words
from automodel_core.config.variables import Variable
from automodel_core.errors import ConfigPath, UserError
from automodel_core.protocols import Job
from automodel_core.telling import tell

LAUNCHERS = "launchers"


def launcher_named(loaded: Loaded, config: RunConfig, asked: str | None) -> Target | None:
    """The launcher of this run, that of the command line first; None if nobody names one.

    Raises:
        UserError: The YAML names two.
    """
    if asked is not None:
        announced = [each for each in loaded.registry.records if each.kind == LAUNCHERS]
        if not any(asked in each.spellings for each in announced):
            return None  # it may be a module with hooks
        written = [each for each in sections(config) if each.name == asked]
        return written[0] if written else Target(asked, LAUNCHERS)
    if config.slurm is not None and config.launcher is not None:
        raise UserError(
            "There are two launchers, `slurm:` and `launcher:`.",
            fix="remove one, or add --unset slurm",
            path=("launcher",),
        )
    return next(iter(sections(config)), None)


def sections(config: RunConfig) -> list[Target]:
    """The launchers that the YAML names."""
    slurm = config.slurm.target if config.slurm is not None else None
    return [each for each in (slurm, config.launcher) if each is not None]


def start_elsewhere(
    loaded: Loaded,
    config: RunConfig,
    target: Target | None,
    argv: Sequence[str],
    *,
    dry_run: bool,
) -> int | None:
    """Hand the run to its launcher; returns the exit code, or None if the run goes on here.

    Raises:
        UserError: There is none to show, a secret would be written, or a file would run code that
            the reader has not allowed.
    """
    if target is None:
        if dry_run:
            raise UserError(
                "--dry-run prints what a launcher would submit, and nothing names one.",
                fix="add a `slurm:` section",
            )
        return None
    check_no_secret(loaded, argv)
    job = Job(
        argv=tuple(each for each in argv if each != "--dry-run"),
        dry_run=dry_run,
        goes_on=config.checkpoint.enabled,
        from_environment=from_environment(loaded, target.path),
    )
    try:
        launcher = loaded.targets.build(target, {}, **secrets_of(config.slurm, target))
        if not dry_run:
            check_allowed(loaded, target, getattr(launcher, "code", frozenset()))
        return launcher.launch(job)
    except UserError as error:
        if error.path is None and error.argument:
            error.path = (*target.path, error.argument)
        tell(loaded.redact(render_user_error(error, loaded.document.place)))
        return error.exit_code


def secrets_of(slurm: Slurm | None, target: Target) -> dict[str, Any]:
    """What the engine gives to the launcher of the `slurm:` section."""
    if slurm is None or slurm.target is not target:
        return {}
    return attrs.asdict(slurm, filter=lambda field, _: field.metadata["secret"])


def from_environment(loaded: Loaded, section: ConfigPath) -> frozenset[ConfigPath]:
    """The paths in a section whose values came from `${NAME}`."""
    if not section:
        return frozenset()  # named by the command line alone
    tree = loaded.document.get(section)
    below = paths_below(tree)
    return frozenset(
        path for path in below if isinstance(loaded.document.get((*section, *path)), Variable)
    )


def check_allowed(loaded: Loaded, target: Target, code: frozenset[str]) -> None:
    """Refuse arguments that run code, if a file sets them and the reader has not allowed it.

    Args:
        target: The launcher's section.
        code: Its arguments that do.

    Raises:
        UserError: at the first of them.
    """
    paths = [(*target.path, name) for name in target.arguments if name in code]
    asking = [
        path
        for path in paths
        if not typed(loaded.document, path) and not loaded.targets.trust.permits(dotted(path))
    ]
    if asking:
        flags = " ".join(f"--allow {dotted(path)}" for path in asking)
        raise UserError(
            f"`{dotted(asking[0])}` can make the job run any program, and a file alone may not.",
            fix=f"see what it does with --dry-run; if you trust it: {flags}",
            path=asking[0],
        )


def typed(document: Document, path: ConfigPath) -> bool:
    """Whether all that stands at `path` comes from the command line, whose words have no lines,
    and no part of it from a file, whatever that is called."""
    marks = [document.wrote((*path, *below)) for below in paths_below(document.get(path))]
    return all(mark and mark.file == COMMAND_LINE and mark.line is None for mark in marks)


def check_no_secret(loaded: Loaded, argv: Sequence[str]) -> None:
    """Refuse a command line that can't be kept in a file."""
    hidden = list(literals(loaded.document))
    if masked_words(argv) != list(argv) or any(each in word for each in hidden for word in argv):
        raise UserError(
            "There is a secret on the command line, which a launcher would write into a file.",
            fix="export it, and write '${NAME}' (in single quotes) in its place",
        )
