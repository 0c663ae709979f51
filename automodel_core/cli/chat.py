"""`automodel chat`: talk to a model in the terminal."""

from __future__ import annotations

from pathlib import Path

import click

from automodel_core.cli.finding import find_model
from automodel_core.cli.options import allowing, answering, require_use
from automodel_core.errors import DONE, UserError


@click.command("chat")
@click.argument("model_or_run")
@click.option("--system", default="", metavar="TEXT", help="Begin each conversation with TEXT.")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE",
    help="Show an image with the first line of each conversation; may be given several times.",
)
@click.option(
    "--compare-base",
    is_flag=True,
    help="Show beside each answer that of the model before training; both are held in memory.",
)
@answering
@allowing
def chat(
    model_or_run: str,
    system: str,
    images: tuple[str, ...],
    compare_base: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    dtype: str,
    allow: tuple[str, ...],
    no_plugin: tuple[str, ...],
    trust_remote_code: bool,
) -> int:
    """Talk to MODEL_OR_RUN: a run folder (its latest checkpoint), a checkpoint, the folder of a
    model or of an adapter, or a model on the Hub. Its chat template is used as in training."""
    require_use(temperature, top_p)
    found = find_model(
        model_or_run,
        allow=allow,
        no_plugin=no_plugin,
        remote_code=trust_remote_code,
        sees=bool(images),
    )
    base = found.base() if compare_base else None
    from automodel_core.answer.chat import Chat, Speaker, require_sight  # imports torch
    from automodel_core.answer.loading import choose_device, choose_dtype, open_model
    from automodel_core.answer.prompting import Prompter
    from automodel_core.answer.sampling import Sampling
    from automodel_core.train.quiet import quiet_libraries

    quiet_libraries()
    opened = open_model(found)
    prompter = Prompter.of(opened)
    if system and not prompter.chats:
        raise UserError(
            f"{found.name} has no chat template, so there is no place for a system message.",
            fix="leave --system out",
        )
    for image in images:
        require_sight(prompter)
        if not Path(image).expanduser().is_file():
            raise UserError(f"There is no file {image}.")
    models = [open_model(base, opened), opened] if base else [opened]
    device = choose_device()
    precision = choose_dtype(dtype, device)
    held = str(precision).removeprefix("torch.")
    click.echo(f"Reading {found.name} ({held} on {device.type}) ...", err=True)
    speakers = [Speaker(each.found.name, each.load(precision, device)) for each in models]
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    Chat(speakers, prompter, sampling, max_new_tokens, system, images).talk()
    return DONE
