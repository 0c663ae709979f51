"""`automodel generate`: answer a file of prompts."""

from __future__ import annotations

from pathlib import Path

import click

from automodel_core.answer.answer_file import AnswerFile
from automodel_core.answer.prompt_file import read_prompts, shows_images
from automodel_core.cli.finding import find_model
from automodel_core.cli.options import allowing, answering, require_use
from automodel_core.errors import DONE


@click.command("generate")
@click.argument("model_or_run")
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.jsonl",
    help='Lines of {"prompt": "..."} or {"messages": [...]}.',
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.jsonl",
    help="The same lines with `answer` and `finish_reason`; what it has already is kept.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Prompts answered at once; changes no answer but by rounding.",
)
@answering
@allowing
def generate(
    model_or_run: str,
    prompt_file: Path,
    out: Path,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    dtype: str,
    allow: tuple[str, ...],
    no_plugin: tuple[str, ...],
    trust_remote_code: bool,
) -> int:
    """Answer a file of prompts with MODEL_OR_RUN: a run folder (its latest checkpoint), a
    checkpoint, the folder of a model or of an adapter, or a model on the Hub.

    A `prompt` is what a user says: it is put into the chat template as in training, or, without a
    chat template, asked as the run's data set asks. Messages may show images: their `content` is
    then a list of {"type": "text", "text": "..."} and {"type": "image", "image": "FILE"}. Killed,
    the same command goes on."""
    require_use(temperature, top_p)
    asked = read_prompts(prompt_file)
    found = find_model(
        model_or_run,
        allow=allow,
        no_plugin=no_plugin,
        remote_code=trust_remote_code,
        sees=any(shows_images(each.record) for each in asked),
    )
    from automodel_core.answer.batches import answer_prompts, encode  # imports torch
    from automodel_core.answer.loading import choose_device, choose_dtype, open_model
    from automodel_core.answer.prompting import Prompter
    from automodel_core.answer.sampling import Sampling
    from automodel_core.train.quiet import quiet_libraries

    quiet_libraries()
    device = choose_device()
    precision = choose_dtype(dtype, device)
    folder = Path(found.name)
    file = AnswerFile(
        out,
        {
            "model": str(folder.resolve()) if folder.exists() else found.name,
            "dtype": str(precision),
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        },
    )
    opened = open_model(found)
    prompter = Prompter.of(opened)
    prompts = encode(asked, prompter, opened, max_new_tokens)
    done = file.open(asked)
    if done < len(asked):
        held = str(precision).removeprefix("torch.")
        click.echo(f"Reading {found.name} ({held} on {device.type}) ...", err=True)
        answer_prompts(
            opened.load(precision, device),
            prompter,
            asked,
            prompts[done:],
            file,
            batch_size=batch_size,
            sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        )
    before = f", {done:,} of them from before" if done else ""
    click.echo(f"{out} holds the answers to all {len(asked):,} prompts{before}.")
    return DONE
