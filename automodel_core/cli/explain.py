"""`automodel explain`: the effective configuration and where each value came from."""

from __future__ import annotations

from collections.abc import Sequence

import click

from automodel_core.cli.finding import from_configuration
from automodel_core.cli.loading import Loaded, load
from automodel_core.cli.options import OVERRIDES, allowing, words
from automodel_core.config.effective import effective_tree, to_yaml
from automodel_core.config.report import ConfigError
from automodel_core.config.structure import TARGET_KEY
from automodel_core.errors import DONE, ConfigPath, UserError
from automodel_core.targets import at


@click.command("explain", context_settings=OVERRIDES)
@words
@allowing
def explain(
    words: tuple[str, ...],
    allow: tuple[str, ...],
    no_plugin: tuple[str, ...],
    trust_remote_code: bool,
) -> int:
    """Print what a run of FILES would use, with the place that each value came from, and what
    an adapter selects in the model."""
    loaded = load(
        words, allow=allow, no_plugin=no_plugin, remote_code=trust_remote_code, strict=False
    )
    config = loaded.require()

    def origin(path: ConfigPath) -> str:
        document = loaded.document
        if path[-1] == TARGET_KEY and isinstance(document.get(path[:-1]), str):
            path = path[:-1]  # the name alone, without a section
        return str(document.wrote(path) or "default")

    click.echo(to_yaml(effective_tree(config, loaded.document), origin), nl=False)
    for finding in loaded.targets.unchecked(config):
        message = loaded.redact(finding.message)
        click.echo(f"# unchecked: {'.'.join(map(str, finding.path))}: {message}")
    if config.peft is not None:
        for line in selection_lines(loaded):
            click.echo(f"# peft: {loaded.redact(line)}")
    return DONE


def selection_lines(loaded: Loaded) -> Sequence[str]:
    """What the adapter selects in the model, which is built without weights; or, if there is no
    such model at hand, the reason.

    Raises:
        ConfigError: The adapter can't be used, or fits nothing in the model.
    """
    from automodel_core.answer.loading import open_model  # imports torch
    from automodel_core.train.freezing import freeze

    try:
        found = from_configuration(loaded)
        opened = open_model(found)
        model = opened.source.empty_model()
    except (ConfigError, UserError) as error:
        return [f"what it selects is not known: {str(error).splitlines()[0]}"]
    with found.placed():
        freeze(model, found.freezing)
    with found.placed(), at(found.peft.path):
        selection = opened.build_adapter().select(model)
    total = opened.source.parameter_count
    share = f"{selection.trainable:,} parameters train; the model has {total:,}"
    return [*selection.lines, f"{share} ({selection.trainable / total:.2%})"]
