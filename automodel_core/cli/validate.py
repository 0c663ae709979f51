"""`automodel validate`: every mistake at once, without torch."""

from __future__ import annotations

import click

from automodel_core.cli.loading import load
from automodel_core.cli.options import OVERRIDES, allowing, words
from automodel_core.config.report import ConfigError, render
from automodel_core.errors import BAD_INPUT, DONE


@click.command("validate", context_settings=OVERRIDES)
@words
@allowing
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
)
@click.option("--import", "deep", is_flag=True, help="Import the targets and ask Python too.")
def validate(
    words: tuple[str, ...],
    allow: tuple[str, ...],
    no_plugin: tuple[str, ...],
    trust_remote_code: bool,
    style: str,
    deep: bool,
) -> int:
    """Check FILES and overrides such as optimizer.lr=1e-5; later files win."""
    try:
        loaded = load(
            words, allow=allow, no_plugin=no_plugin, remote_code=trust_remote_code, strict=False
        )
    except ConfigError as error:  # nothing to go on with
        problems = error.problems
    else:
        if deep and not loaded.failed:
            loaded.add(loaded.targets.deep_check(loaded.config))
        problems = loaded.problems
    click.echo(render(problems, style) if problems or style != "text" else "No problem found.")
    return BAD_INPUT if any(each.severity == "error" for each in problems) else DONE
