"""Run under torchrun: what a rank holds while the engine reads a model, from the YAML on."""

import sys

import torch.distributed as dist

from automodel_core.cli.loading import load as load_configuration
from automodel_core.config.effective import effective_tree
from automodel_core.train.build import no_hooks
from automodel_core.train.console import Console
from automodel_core.train.context import RunContext
from automodel_core.train.model_loading import load_model
from automodel_core.train.prepare import prepare
from tests.processes import AnonymousPeak


def main(file: str) -> None:
    """Print this rank's peak above what importing took, its shard, and the largest tensor."""
    loaded = load_configuration([file], strict=True)
    config, console = loaded.require(), Console(-1)
    context = RunContext(
        targets=loaded.targets,
        hooks=no_hooks(),
        effective=effective_tree(config, loaded.document),
    )
    with AnonymousPeak() as peak:
        prepared = prepare(config, context, console)
        with prepared.world.formed(prepared.device, config.dist_env):
            model = load_model(config, prepared, None, console).model
            dist.barrier()
            every = list(model.parameters())
            held = [getattr(p, "to_local", lambda p=p: p)() for p in every]
    own, largest = sum(p.nbytes for p in held), max(p.nbytes for p in every)
    print(f"PEAK {peak.bytes} {own} {largest}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
