"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]


def words(function: Command) -> Command:
    """FILES and overrides. Unknown `--a.b` options are overrides too; `split_arguments` tells."""
    return click.argument(
        "words", nargs=-1, type=click.UNPROCESSED, metavar="FILES... [KEY=VALUE | --unset KEY]..."
    )(function)


def allowing(function: Command) -> Command:
    """What widens or narrows what a YAML file may use, from outside it."""
    options = (
        click.option(
            "--allow", multiple=True, metavar="PREFIX", help="Let the YAML name PREFIX and below."
        ),
        click.option(
            "--no-plugin", multiple=True, metavar="NAME", help="Leave out a plugin or a package."
        ),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Let models run their repository's code, where the YAML asks for it too.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


# Lets overrides in the form of options through to `words`.
OVERRIDES = {"ignore_unknown_options": True}
