"""`automodel data show`: samples as the model will see them, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from automodel_core.cli.loading import load
from automodel_core.cli.options import OVERRIDES, allowing, words
from automodel_core.cli.run import check_by_importing, finished
from automodel_core.config.overrides import split_arguments


@click.group("data")
def data() -> None:
    """Look at what a configuration trains on."""


@data.command("show", context_settings=OVERRIDES)
@words
@allowing
@click.option(
    "--num",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Rows to print of each data set.",
)
@click.option(
    "--examine",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Samples of each data set to look through.",
)
@click.option("--all", "everything", is_flag=True, help="Look through all samples.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the report as one HTML file.",
)
def show(
    words: tuple[str, ...],
    allow: tuple[str, ...],
    no_plugin: tuple[str, ...],
    trust_remote_code: bool,
    num: int,
    examine: int,
    everything: bool,
    as_json: bool,
    html: Path | None,
) -> int:
    """Show the data of FILES, tokens coloured by whether they are learned, and its health."""
    loaded = load(
        words, allow=allow, no_plugin=no_plugin, remote_code=trust_remote_code, strict=False
    )
    config = loaded.require()
    check_by_importing(loaded, config)

    def report() -> None:
        from rich.console import Console

        from automodel_core.data_report.looking import look  # imports torch
        from automodel_core.data_report.page import as_page
        from automodel_core.data_report.plain import as_data
        from automodel_core.data_report.terminal import print_report
        from automodel_core.train.quiet import quiet_libraries

        quiet_libraries()
        tokenizer, looked = look(config, loaded.targets, None if everything else examine)
        if html is not None:
            title = f"Data of {', '.join(split_arguments(words)[0])}"
            html.write_text(as_page(as_data(looked, tokenizer, num), title), encoding="utf-8")
        if as_json:
            click.echo(json.dumps(as_data(looked, tokenizer, num)))
        elif html is None:
            print_report(looked, tokenizer, num, Console(highlight=False))
        else:
            click.echo(f"{html} holds the report.")

    return finished(report, loaded)
