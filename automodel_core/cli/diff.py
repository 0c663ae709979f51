"""`automodel diff`: why two runs are not the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from automodel_core.errors import DONE, UserError
from automodel_core.train.jsonl import JsonLines
from automodel_core.train.resume import differences
from automodel_core.train.run_folder import latest_checkpoint


@click.command("diff")
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
def diff(run_a: Path, run_b: Path) -> int:
    """Compare two run folders: configuration, versions, data, and where their losses part."""
    for title, pairs in (
        ("configuration", differences(configuration(run_a), configuration(run_b))),
        ("environment", differences(environment(run_a), environment(run_b))),
    ):
        lines = [f"  {'.'.join(map(str, path))}: {a!r} | {b!r}" for path, a, b in pairs]
        click.echo("\n".join([f"{title}:", *lines]) if lines else f"{title}: the same")
    click.echo(f"losses: {parting(run_a, run_b)}")
    return DONE


def configuration(run: Path) -> dict[str, Any]:
    """The effective configuration that the run saved."""
    try:
        return YAML(typ="safe", pure=True).load(run / "config.yaml") or {}
    except OSError:
        raise UserError(
            f"{run} is not a run folder: it has no config.yaml.",
            fix="name two folders that `automodel runs` lists",
        ) from None


def environment(run: Path) -> dict[str, Any]:
    """What the newest checkpoint's manifest says of versions, model revision and data."""
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        return {}
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    return {name: manifest.get(name) for name in ("versions", "model", "revision", "data")}


def parting(run_a: Path, run_b: Path) -> str:
    """The first step at which the logs disagree."""
    for step, a, b in zip_steps(run_a, run_b):
        if a != b:
            return f"part at step {step}: {a!r} | {b!r}"
    lengths = [len(JsonLines(run / "training.jsonl").read()) for run in (run_a, run_b)]
    return f"the same in all {min(lengths)} common steps" + (
        "" if lengths[0] == lengths[1] else f" (of {lengths[0]} | {lengths[1]})"
    )


def zip_steps(run_a: Path, run_b: Path) -> Iterator[tuple[int, float, float]]:
    """The losses of the steps that both runs took."""
    logs = [JsonLines(run / "training.jsonl").read() for run in (run_a, run_b)]
    for a, b in zip(*logs, strict=False):
        yield a["step"], a["loss"], b["loss"]
