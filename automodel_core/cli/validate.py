"""`automodel validate`: every mistake at once, without torch."""

from __future__ import annotations

import click

from automodel_core.cli.loading import as_problems, load
from automodel_core.cli.options import OVERRIDES, allowing, words
from automodel_core.config.report import render
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
    words: tuple[str, ...], allow: tuple[str, ...], trust_remote_code: bool, style: str, deep: bool
) -> int:
    """Check FILES and overrides such as optimizer.lr=1e-5; later files win."""
    loaded = load(words, allow=allow, remote_code=trust_remote_code, strict=False)
    problems = list(loaded.problems)
    if deep and loaded.config is not None:
        problems += as_problems(loaded.document, loaded.targets.deep_check(loaded.config))
    problems = list(dict.fromkeys(problems))
    errors = sum(each.severity == "error" for each in problems)
    if style != "text":
        click.echo(render(problems, style))
    elif problems:
        click.echo(render(problems))
        click.echo(f"\n{errors} error(s), {len(problems) - errors} warning(s)")
    else:
        click.echo("No problem found.")
    return BAD_INPUT if errors else DONE
