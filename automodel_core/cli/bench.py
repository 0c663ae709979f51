"""`automodel bench`: how fast a configuration trains on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import click

from automodel_core import ranks
from automodel_core.cli.launching import (
    Processes,
    in_several,
    inside_torchrun,
)
from automodel_core.cli.loading import load
from automodel_core.cli.options import OVERRIDES, allowing, words
from automodel_core.cli.run import check_by_importing, finished
from automodel_core.config.schema import RunConfig, Target

PACKAGES = ("automodel-core", "torch", "transformers", "triton", "peft")


@click.command("bench", context_settings=OVERRIDES)
@words
@allowing
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Timed.")
@click.option(
    "--warmup",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="Steps before them.",
)
@click.option(
    "--mock",
    type=click.IntRange(min=2),
    metavar="LENGTH",
    help="Random tokens of this length instead of the configuration's data.",
)
@click.option(
    "--mock-shortest",
    type=click.IntRange(min=2),
    metavar="LENGTH",
    help="With --mock: lengths vary, evenly spread from this one.",
)
@click.option(
    "--nproc-per-node",
    type=Processes(),
    help="Processes on this machine; one for each visible GPU if left out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--profile",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write a Chrome trace and a memory snapshot of the last steps, in a folder for each of "
    "several ranks; slows them.",
)
def bench(
    words: tuple[str, ...],
    allow: tuple[str, ...],
    no_plugin: tuple[str, ...],
    trust_remote_code: bool,
    steps: int,
    warmup: int,
    mock: int | None,
    mock_shortest: int | None,
    nproc_per_node: int | str | None,
    as_json: bool,
    profile: Path | None,
) -> int:
    """Time training steps of FILES; nothing is saved, and no logger is told."""
    loaded = load(
        words, allow=allow, no_plugin=no_plugin, remote_code=trust_remote_code, strict=True
    )
    config = on_mock_data(loaded.require(), mock, mock_shortest)
    check_by_importing(loaded, config)
    code = in_several(nproc_per_node, click.get_current_context().obj, quiet=as_json)
    if code is not None:
        return code

    def measure() -> None:
        from automodel_core.bench.environment import environment
        from automodel_core.bench.measuring import bench  # imports torch
        from automodel_core.train.build import no_hooks
        from automodel_core.train.context import RunContext
        from automodel_core.train.quiet import quiet_libraries

        quiet_libraries()
        context = RunContext(targets=loaded.targets, hooks=no_hooks(), effective={})
        folder = profile / f"rank_{ranks.rank()}" if profile and inside_torchrun() else profile
        found = bench(config, context, warmup=warmup, steps=steps, profile_to=folder)
        if ranks.rank():
            return
        if as_json:
            click.echo(json.dumps({**found, "environment": environment(*PACKAGES)}))
        else:
            click.echo("\n".join(as_lines(found)))

    return finished(measure, loaded)


def on_mock_data(config: RunConfig, length: int | None, shortest: int | None) -> RunConfig:
    """The configuration with random tokens for its data, if a length is given."""
    if length is None:
        return config
    arguments = {"length": length} | ({"shortest": shortest} if shortest else {})
    dataset = Target("mock", "datasets", arguments, ("dataset",))
    return attrs.evolve(config, dataset=dataset)


def as_lines(found: dict[str, Any]) -> list[str]:
    """The figures as people read them."""
    rates, step = found["tokens_per_second"], found["step_seconds"]
    lines = [
        f"{found['steps']} steps on {found['ranks']} rank(s)",
        *(f"  {name:<22}{rate:>12,.0f} tokens/s" for name, rate in rates.items()),
    ]
    if found["images_per_second"]:
        lines.append(f"  {'images':<22}{found['images_per_second']:>12,.1f} images/s")
    spread = "  ".join(f"{name} {seconds * 1000:,.1f}" for name, seconds in step.items())
    lines.append(f"  {'step, ms':<22}{spread}")
    if found["tflops_per_second"]:
        mfu = f", MFU {found['mfu']:.3f}" if found["mfu"] else ""
        lines.append(f"  {'TFLOP/s':<22}{found['tflops_per_second']:>12,.1f}{mfu}")
        lines.append(f"  {'':<22}({found['mfu_convention']})")
    phases = ", ".join(f"{name} {each:.1f}" for name, each in found["phases_seconds"].items())
    return [
        *lines,
        f"  {'peak memory':<22}{found['peak_memory_gib']:>12.2f} GiB",
        f"  {'waiting for data':<22}{found['data_wait_share']:>12.1%}",
        f"  {'compiled layers':<22}{'yes' if found['compiled'] else 'no':>12}",
        f"  {'recompiles':<22}{found['recompiles']:>12}",
        f"  {'to the first step':<22}{found['time_to_first_step_seconds']:>12.1f} s ({phases})",
    ]
