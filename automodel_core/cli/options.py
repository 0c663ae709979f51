"""Options that several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


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


class Size(click.ParamType):
    """Bytes as people write them: `500MB`, `5GB`; a thousand each, as on the Hub."""

    name = "SIZE"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", str(value).strip().upper())
        if found is None or not (size := int(float(found[1]) * UNITS[found[2]])):
            self.fail(f"{value} is no size, such as 500MB or 5GB", param, ctx)
        return size


def writing(function: Command) -> Command:
    """How a model's weights are written."""
    options = (
        click.option(
            "--dtype",
            type=click.Choice(["bfloat16", "float16", "float32"]),
            help="What the weights are written as; as they are, if left out.",
        ),
        click.option(
            "--max-shard-size",
            type=Size(),
            default="5GB",
            show_default=True,
            help="The most that one file of weights takes.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


# Lets overrides in the form of options through to `words`.
OVERRIDES = {"ignore_unknown_options": True}
