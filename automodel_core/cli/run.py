"""`automodel run`: from a configuration to a trained model."""

from __future__ import annotations

import shlex
import traceback
import warnings
from collections.abc import Callable

import attrs
import click
import pluggy

from automodel_core import ranks
from automodel_core.cli.elsewhere import LAUNCHERS, launcher_named, start_elsewhere
from automodel_core.cli.launching import (
    Meeting,
    Processes,
    in_several,
    inside_torchrun,
    launched_here,
)
from automodel_core.cli.loading import Loaded, load
from automodel_core.cli.options import OVERRIDES, allowing, words
from automodel_core.config.effective import effective_tree
from automodel_core.config.report import render, render_user_error
from automodel_core.config.schema import RunConfig
from automodel_core.config.secrets import masked_words
from automodel_core.errors import DONE, FAILED, INTERRUPTED, GuardStop, SavedAfterSignal, UserError
from automodel_core.records import HOOKS
from automodel_core.telling import let_the_cause_be_told, tell
from automodel_core.wording import did_you_mean


@click.command("run", context_settings=OVERRIDES)
@words
@allowing
@click.option(
    "--resume",
    default="latest",
    show_default=True,
    metavar="PATH|latest|none",
    help="The checkpoint to go on from.",
)
@click.option("--resume-override", is_flag=True, help="Go on with another lr, schedule or batch.")
@click.option("--fresh", is_flag=True, help="Start a new folder beside one that holds a run.")
@click.option("--launcher", metavar="NAME", help="Hand the run to this installed launcher.")
@click.option("--dry-run", is_flag=True, help="Print what the launcher would submit, and stop.")
@click.option(
    "--nproc-per-node",
    type=Processes(),
    help="Processes on this machine; one for each visible GPU if left out.",
)
@click.option("--nnodes", type=click.IntRange(min=1), default=1, help="Nodes; start it on each.")
@click.option("--rdzv-endpoint", metavar="HOST:PORT", help="Where they meet: on one of the nodes.")
@click.option("-v", "--verbose", count=True, help="Print every step.")
@click.option("-q", "--quiet", is_flag=True, help="Print only what goes wrong.")
def run(
    words: tuple[str, ...],
    allow: tuple[str, ...],
    no_plugin: tuple[str, ...],
    trust_remote_code: bool,
    resume: str,
    resume_override: bool,
    fresh: bool,
    launcher: str | None,
    dry_run: bool,
    nproc_per_node: int | str | None,
    nnodes: int,
    rdzv_endpoint: str | None,
    verbose: int,
    quiet: bool,
) -> int:
    """Train as FILES say, with overrides such as optimizer.lr=1e-5; later files win."""
    loaded = load(
        words, allow=allow, no_plugin=no_plugin, remote_code=trust_remote_code, strict=True
    )
    config = loaded.require()
    if ranks.rank():
        warnings.simplefilter("ignore")  # rank 0 has the same
    elif loaded.problems and not launched_here():  # all of them warnings
        click.echo(render(loaded.problems), err=True)
    meeting = Meeting.asked_for(nnodes, rdzv_endpoint)
    elsewhere = launcher_named(loaded, config, launcher)
    hooks = observers(loaded, config, None if elsewhere else launcher)
    typed = click.get_current_context().obj
    if not inside_torchrun():
        code = start_elsewhere(loaded, config, elsewhere, typed, dry_run=dry_run)
        if code is None:
            code = hooks.automodel_launch(config=config, argv=typed)
        if code is not None:
            return code
    check_by_importing(loaded, config)
    code = in_several(nproc_per_node, typed, quiet=quiet, meeting=meeting)
    if code is not None:
        return code
    from automodel_core.train.build import fine_tune  # imports torch
    from automodel_core.train.context import SAVED_BY, RunContext

    context = RunContext(
        targets=loaded.targets,
        hooks=hooks,
        effective=effective_tree(config, loaded.document),
        resume=resume,
        resume_override=resume_override,
        fresh=fresh or SAVED_BY in loaded.document.tree,
        verbosity=-1 if quiet else verbose,
        command=shlex.join(["automodel", "run", *masked_words(words)]),
        place=loaded.document.wrote,
        redact=loaded.redact,
        allowed=[attrs.asdict(each) for each in loaded.targets.trust.allowed],
    )
    return finished(lambda: fine_tune(config, context), loaded)


def check_by_importing(loaded: Loaded, config: RunConfig) -> None:
    """What only Python can tell, before weights are read."""
    loaded.add(loaded.targets.deep_check(config))
    loaded.require()


def observers(loaded: Loaded, config: RunConfig, launcher: str | None) -> pluggy.HookRelay:
    """The hooks of installed packages, after they had their say about the configuration."""
    from automodel_core.hook_loading import load_hooks

    known = [each.name for each in loaded.registry.records if each.kind in (HOOKS, LAUNCHERS)]
    if launcher is not None and launcher not in known:
        hint = did_you_mean(launcher, known) or "see `automodel list-plugins --kind launchers`"
        raise UserError(f"There is no launcher {launcher}.", fix=hint)
    hooks = load_hooks(loaded.registry, launchers=[launcher] if launcher else [])
    found = hooks.automodel_configure(config=config, marks=loaded.document.values)
    loaded.add(each for group in found for each in group)
    loaded.require()
    return hooks


def finished(train: Callable[[], object], loaded: Loaded) -> int:
    """Run `train` and turn how it ended into a screen and an exit code."""

    def say(text: str) -> None:
        tell(loaded.redact(text))

    try:
        train()
    except UserError as error:
        say(render_user_error(error, loaded.document.place))
        return error.exit_code
    except GuardStop as error:
        fix = f"\n    {error.fix}" if error.fix else ""
        say(f"guard {error.guard}: {error.message}{fix}")
        return error.exit_code
    except SavedAfterSignal as error:
        say(error.message)
        return error.exit_code
    except KeyboardInterrupt:
        say("Interrupted again: this step is not saved.")
        return INTERRUPTED
    except Exception as error:
        let_the_cause_be_told(error)
        others = ranks.world_size()
        say((f"Rank {ranks.rank()} of {others}:\n" if others > 1 else "") + traceback.format_exc())
        return FAILED
    return DONE
