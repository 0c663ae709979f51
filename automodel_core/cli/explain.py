"""`automodel explain`: the effective configuration and where each value came from."""

from __future__ import annotations

import click

from automodel_core.cli.loading import load
from automodel_core.cli.options import OVERRIDES, allowing, words
from automodel_core.config.effective import effective_tree, to_yaml
from automodel_core.config.structure import TARGET_KEY
from automodel_core.errors import DONE, ConfigPath


@click.command("explain", context_settings=OVERRIDES)
@words
@allowing
def explain(
    words: tuple[str, ...],
    allow: tuple[str, ...],
    no_plugin: tuple[str, ...],
    trust_remote_code: bool,
) -> int:
    """Print what a run of FILES would use, with the place that each value came from."""
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
    return DONE
