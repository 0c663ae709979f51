"""`automodel doctor`: what a bug report needs, and with a configuration quick self-checks."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from automodel_core import ranks
from automodel_core.cli.bench import on_mock_data
from automodel_core.cli.launching import Processes, in_several
from automodel_core.cli.loading import Loaded, load
from automodel_core.cli.options import OVERRIDES, allowing, words
from automodel_core.cli.run import check_by_importing, finished
from automodel_core.config.schema import Checkpoint, RunConfig
from automodel_core.errors import DONE, FAILED, UserError
from automodel_core.telling import is_told, let_the_cause_be_told

if TYPE_CHECKING:
    from automodel_core.doctor.checks import Check
    from automodel_core.doctor.facts import Facts


@click.command("doctor", context_settings=OVERRIDES)
@words
@allowing
@click.option(
    "--nproc-per-node",
    type=Processes(),
    help="Processes that check together; one for each visible GPU if left out.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(
    words: tuple[str, ...],
    allow: tuple[str, ...],
    no_plugin: tuple[str, ...],
    trust_remote_code: bool,
    nproc_per_node: int | str | None,
    as_json: bool,
) -> int:
    """Print what a bug report needs; with FILES, also check that they can run here: all-reduce,
    disk, one step. Nothing is saved."""
    if not words:
        if nproc_per_node is not None:
            raise UserError(
                "--nproc-per-node has no meaning without a configuration: nothing is started.",
                fix="name a YAML file, or leave the option out",
            )
        from automodel_core.doctor.facts import facts

        show_facts(facts(Path(attrs.fields(Checkpoint).checkpoint_dir.default)), as_json)
        return DONE
    loaded = load(
        words, allow=allow, no_plugin=no_plugin, remote_code=trust_remote_code, strict=True
    )
    config = of_full_length(loaded.require())
    check_by_importing(loaded, config)
    code = in_several(nproc_per_node, click.get_current_context().obj, quiet=as_json)
    if code is not None:
        return code
    states: list[str] = []
    ended = finished(lambda: states.extend(examined(loaded, config, as_json)), loaded)
    return FAILED if ended == DONE and "FAILED" in states else ended


def of_full_length(config: RunConfig) -> RunConfig:
    """The configuration with random tokens of its longest length for its data: that of packed rows,
    or the data set's `max_length`. Where it names neither, its own data tell."""
    length = config.packed_sequence.packed_sequence_size
    named = config.dataset.arguments.get("max_length")
    return on_mock_data(config, length or (named if isinstance(named, int) else None), None)


def examined(loaded: Loaded, config: RunConfig, as_json: bool) -> list[str]:
    """Print facts and checks; the states of the checks."""
    from automodel_core.doctor.checks import Stopped, checks  # imports torch
    from automodel_core.doctor.facts import facts
    from automodel_core.train.build import no_hooks
    from automodel_core.train.context import RunContext
    from automodel_core.train.quiet import quiet_libraries

    quiet_libraries()
    found = cache(lambda: facts(Path(config.checkpoint.checkpoint_dir), loaded.redact))
    if ranks.rank() == 0 and not as_json:
        show_facts(found(), as_json)
        click.echo("checks")
    context = RunContext(targets=loaded.targets, hooks=no_hooks(), effective={})
    done: list[Check] = []

    def show(check: Check) -> None:
        said = {"message": loaded.redact(check.message), "fix": loaded.redact(check.fix)}
        check = attrs.evolve(check, **said)
        done.append(check)
        if not as_json:
            show_check(check)

    try:
        for check in checks(config, context):
            if ranks.rank() == 0:
                show(check)
            else:
                done.append(check)
    except Stopped as stopped:
        let_the_cause_be_told(stopped.__cause__ or stopped)
        if is_told():
            return ["FAILED"]
        show(stopped.check)
        if as_json:
            show_all(found(), done)
        return ["FAILED"]
    if as_json and ranks.rank() == 0:
        show_all(found(), done)
    return [each.state for each in done]


def show_facts(found: Facts, as_json: bool) -> None:
    from automodel_core.doctor.report import facts_as_text

    click.echo(json.dumps({"facts": found}, indent=2) if as_json else facts_as_text(found))


def show_check(check: Check) -> None:
    from automodel_core.doctor.report import check_as_text

    click.echo(check_as_text(check))


def show_all(found: Facts, done: list[Check]) -> None:
    rows = [attrs.asdict(each) for each in done]
    click.echo(json.dumps({"facts": found, "checks": rows}, indent=2))
