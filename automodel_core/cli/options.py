"""Options that several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from automodel_core.errors import UserError

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


def answering(function: Command) -> Command:
    """How a model answers."""
    options = (
        click.option(
            "--max-new-tokens",
            type=click.IntRange(min=1),
            default=512,
            show_default=True,
            help="The longest answer.",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(min=0.0),
            default=0.0,
            show_default=True,
            help="How much chance; 0 always takes the most probable token.",
        ),
        click.option(
            "--top-p",
            type=click.FloatRange(min=0.0, max=1.0, min_open=True),
            default=1.0,
            show_default=True,
            help="Draw from the tokens that hold this much of the probability.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the draws."),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="Of the weights; auto is bfloat16 on a GPU and float32 without.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def require_use(temperature: float, top_p: float) -> None:
    """Refuse a top_p that nothing is drawn by."""
    if top_p < 1.0 and not temperature:
        raise UserError(
            "--top-p has no meaning at temperature 0, which draws nothing.",
            fix="add --temperature 1",
        )


# Lets overrides in the form of options through to `words`.
OVERRIDES = {"ignore_unknown_options": True}
