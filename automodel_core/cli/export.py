"""`automodel export`: a whole model in another dtype, or in other shards."""

from __future__ import annotations

from pathlib import Path

import click

from automodel_core.cli.options import writing
from automodel_core.errors import DONE
from automodel_core.export.finding import find_saved


@click.command("export")
@click.argument("saved_in", metavar="RUN_OR_CHECKPOINT", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to make.",
)
@writing
def export(saved_in: Path, out: Path, dtype: str | None, max_shard_size: int) -> int:
    """Write a whole model again: weights, tokenizer, template and generation settings.

    RUN_OR_CHECKPOINT is a run folder (its latest checkpoint), a checkpoint, or a model's folder.
    """
    saved = find_saved(saved_in)
    import torch

    from automodel_core.export.convert import export_model

    export_model(saved, out, getattr(torch, dtype) if dtype else None, max_shard_size, click.echo)
    return DONE
