"""`automodel merge`: an adapter and its base model become one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from automodel_core.cli.loading import load
from automodel_core.cli.options import allowing, writing
from automodel_core.config.report import ConfigError
from automodel_core.config.schema import RunConfig
from automodel_core.errors import DONE, UserError
from automodel_core.export.finding import Saved, find_saved
from automodel_core.registry import Registry
from automodel_core.targets import Targets
from automodel_core.trust import Trust


@click.command("merge")
@click.argument("saved_in", metavar="RUN_OR_CHECKPOINT", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to make; merged-NAME beside the checkpoint, if left out.",
)
@click.option("--base", metavar="MODEL", help="The base model, if it isn't where it was.")
@writing
@click.option(
    "--lossy",
    is_flag=True,
    help="Merge into a quantized base too: into the numbers that its weights stand for.",
)
@click.option("--no-check", is_flag=True, help="Don't compare it with the unmerged model.")
@allowing
def merge(
    saved_in: Path,
    out: Path | None,
    base: str | None,
    dtype: str | None,
    max_shard_size: int,
    lossy: bool,
    no_check: bool,
    allow: tuple[str, ...],
    no_plugin: tuple[str, ...],
    trust_remote_code: bool,
) -> int:
    """Merge an adapter into its base model, in float32 and tensor by tensor.

    RUN_OR_CHECKPOINT is a run folder (its latest checkpoint), a checkpoint, or a folder that PEFT
    saved. The result opens in plain transformers. Then both models, one after the other, go on
    from the run's validation prompts, and their differences are printed.
    """
    saved = find_saved(saved_in)
    if not saved.is_adapter:
        raise UserError(
            f"{saved.title} is a whole model: there is nothing to merge.",
            fix=f"for another dtype or shard size: automodel export {saved.title} --out DIR",
        )
    config, targets = read_run(
        saved, allow=allow, no_plugin=no_plugin, remote_code=trust_remote_code
    )
    import torch

    from automodel_core.export.merge import MergeSettings, merge_adapter

    comparison = merge_adapter(
        MergeSettings(
            saved=saved,
            config=config,
            targets=targets,
            out=out or saved.title.with_name(f"merged-{saved.title.name}"),
            base=base,
            dtype=getattr(torch, dtype) if dtype else None,
            shard_bytes=max_shard_size,
            lossy=lossy,
            check=not no_check,
            say=click.echo,
        )
    )
    if comparison is not None:
        click.echo(
            f"Against the unmerged model, both in float32, after {comparison.prompts} prompts:\n"
            f"  largest difference of a logit: {comparison.largest_difference:.2g}\n"
            f"  same greedy token: {comparison.agreeing} of {comparison.places} places"
        )
    return DONE


def read_run(
    saved: Saved, *, allow: Sequence[str], no_plugin: Sequence[str], remote_code: bool
) -> tuple[RunConfig | None, Targets]:
    """The configuration that a checkpoint was saved with, if there is one, and what resolves names.

    Raises:
        ConfigError: What it says of the model or the adapter can't be understood (any more).
    """
    if saved.checkpoint is None:
        trust = Trust.from_environment(allow, remote_code=remote_code)
        return None, Targets(Registry.discover(disabled=no_plugin), trust)
    loaded = load(
        [str(saved.checkpoint / "config.yaml")],
        allow=allow,
        no_plugin=no_plugin,
        remote_code=remote_code,
        strict=False,
    )
    if loaded.config.model is None or loaded.config.peft is None:
        raise ConfigError(loaded.problems)
    return loaded.config, loaded.targets
