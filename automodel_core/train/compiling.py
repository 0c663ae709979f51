"""torch.compile of a model's repeated layers, one by one and where they stand.

A layer is compiled by itself (regional compilation): its code is compiled once and serves all
layers of its kind, where the whole model would be traced layer after layer. `Module.compile` puts
nothing around a layer, so no parameter, file or hook gets another name. What a layer was given
before, adapters and activation checkpointing, is compiled with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from transformers import PreTrainedModel

from automodel_core.caches import cache_folder
from automodel_core.config.schema import Compile, RunConfig
from automodel_core.errors import UserError
from automodel_core.layers import layer_lists
from automodel_core.protocols import ModelSource
from automodel_core.train.data import TrainingData
from automodel_core.train.schedule import Horizon
from automodel_core.train.world import World

# What `auto` weighs: what compiling takes, without a cache, and the part of an uncompiled step that
# it saves.
COMPILE_SECONDS = 30.0
SAVED = 0.2
# FLOP/s that an uncompiled model reaches in bfloat16, by compute capability; and the least that a
# layer's forward and backward passes take, because the host asks for each operation by itself.
FLOPS = {(9, 0): 3.5e14, (10, 0): 7e14}
OLDER_FLOPS = 1.2e14
LAYER_SECONDS = 3e-3
# Tokens of a sample that doesn't tell.
USUAL_TOKENS = 512
LOOKED_AT = 8

CACHE = "TORCHINDUCTOR_CACHE_DIR"

# Kinds of layers and shapes that may be compiled before PyTorch leaves the rest uncompiled.
MOST_GRAPHS = 64


@attrs.define
class Compilation:
    """Whether a run's layers are compiled, and what that has cost so far.

    Attributes:
        settings: How; None leaves them as they are.
        note: Why, to be printed; empty if there is nothing to say.
        graphs: Pieces of code compiled so far.
        first_step: How many of them by the end of the first step.
        seconds: Spent compiling.
    """

    settings: Compile | None = None
    note: str = ""
    graphs: int = 0
    first_step: int | None = None
    seconds: float = 0.0

    @property
    def multiple(self) -> int:
        """What rows are padded to a multiple of."""
        return self.settings.pad_to_multiple if self.settings else 1

    @property
    def recompiles(self) -> int:
        """Pieces of code compiled after the first step, for another length or for validation."""
        return 0 if self.first_step is None else self.graphs - self.first_step

    def step_done(self) -> None:
        """A step's work has all been asked for."""
        if self.first_step is None:
            self.first_step = self.graphs

    @contextmanager
    def layers_of(self, model: PreTrainedModel, *, deterministic: bool) -> Iterator[None]:
        """Within it, the model's layers are compiled, each when it is first called."""
        if self.settings is None:
            yield
            return
        layers = [layer for stack in layer_lists(model) for layer in stack]
        with _compiler(deterministic), _counted(self):
            for layer in layers:
                layer.compile(**_options(self.settings))
            try:
                yield
            finally:
                for layer in layers:
                    layer._compiled_call_impl = None

    def summary(self) -> str:
        """What compiling has cost, for the end of the run."""
        again = f", {self.recompiles} of them after the first step" if self.recompiles else ""
        return f"{self.graphs} graphs in {self.seconds:.0f} s{again}"


def plan_compilation(
    config: RunConfig,
    world: World,
    device: torch.device,
    source: ModelSource,
    data: TrainingData,
    horizon: Horizon,
) -> Compilation:
    """Decide whether to compile, before weights are read.

    Raises:
        UserError: The YAML asks for it where it can't be had.
    """
    asked = config.compile
    settings = asked if isinstance(asked, Compile) else Compile(enabled=asked)
    if settings.enabled is False or (settings.enabled == "auto" and device.type != "cuda"):
        return Compilation()
    layers = sum(map(len, layer_lists(source.empty_model())))
    obstacle = _obstacle(world, source, layers)
    if settings.enabled is True:
        if obstacle:
            raise UserError(obstacle, fix="write compile: false", path=("compile",))
        _check_backend(settings.backend)
        return Compilation(settings)
    if obstacle:
        return Compilation(note=f"compile: auto is off. {obstacle}")
    if config.deterministic:
        return Compilation(note="compile: auto is off, because the run is deterministic.")
    estimate = _estimate(config, device, source, layers, data, horizon)
    return Compilation(settings if estimate.repays else None, estimate.note)


def _obstacle(world: World, source: ModelSource, layers: int) -> str:
    """Why layers can't be compiled; empty if they can."""
    if world.sizes.tp > 1 or world.sizes.cp > 1:
        return "Layers or sequences that ranks share (tp_size, cp_size) can't be compiled yet."
    if not getattr(world.manager, "compiles", True):
        return f"{type(world.manager).__name__} can't spread compiled layers."
    if not layers:
        return f"{source.name} has no list of equal layers to compile."
    return ""


def _check_backend(name: str) -> None:
    known = [*torch._dynamo.list_backends(exclude_tags=()), "inductor"]
    if name not in known:
        raise UserError(
            f"torch.compile has no backend {name}.",
            fix=f"write one of {', '.join(sorted(known))}, or leave it out",
            path=("compile", "backend"),
        )


@attrs.frozen
class Estimate:
    """What compiling saves over a run, roughly.

    Attributes:
        step_seconds: Of an optimizer step that isn't compiled.
        steps: Of the run; None if nobody knows, because its data is a stream.
    """

    step_seconds: float
    steps: int | None

    @property
    def repays(self) -> bool:
        return self.steps is None or self.step_seconds * self.steps * SAVED > COMPILE_SECONDS

    @property
    def note(self) -> str:
        if self.steps is None:
            return "compile: auto is on. A stream of unknown length is taken for a long one."
        return (
            f"compile: auto is {'on' if self.repays else 'off'}. {self.steps} steps of about "
            f"{self.step_seconds:.2g} s would be {SAVED:.0%} faster, and compiling takes up to "
            f"{COMPILE_SECONDS:.0f} s."
        )


def _estimate(
    config: RunConfig,
    device: torch.device,
    source: ModelSource,
    layers: int,
    data: TrainingData,
    horizon: Horizon,
) -> Estimate:
    """By the model's size and the length of some samples, so that the same run always decides
    alike."""
    layout = data.layout
    rows = layout.micro_batch * layout.grad_acc_steps
    operations = 6 if config.peft is None else 4  # of each parameter for each token
    work = operations * source.parameter_count * rows * _tokens(config, data.dataset)
    rate = FLOPS.get(torch.cuda.get_device_capability(device), OLDER_FLOPS)
    least = LAYER_SECONDS * layers * layout.grad_acc_steps
    return Estimate(max(work / rate, least), horizon.total_steps)


def _tokens(config: RunConfig, dataset: Any) -> float:
    """Of a row: what it is packed to, or a sample's on average over a few of them."""
    if config.packed_sequence.packed_sequence_size:
        return config.packed_sequence.packed_sequence_size
    every = max(len(dataset) // LOOKED_AT, 1)
    samples: Sequence[Any] = [dataset[i] for i in range(0, len(dataset), every)][:LOOKED_AT]
    told = [len(each["input_ids"]) for each in samples if "input_ids" in each]
    return sum(told) / len(told) if told else USUAL_TOKENS


def _options(settings: Compile) -> dict[str, Any]:
    """Arguments of torch.compile."""
    options: dict[str, Any] = {
        "backend": settings.backend,
        "dynamic": settings.dynamic,
        "fullgraph": settings.fullgraph,
    }
    if settings.backend == "inductor":  # no other takes a mode
        options["mode"] = settings.mode
    return options


@contextmanager
def _compiler(deterministic: bool) -> Iterator[None]:
    """PyTorch's compiler set up for layers, and as it was afterwards."""
    keep_cache()
    torch._dynamo.reset()
    # Over gradients in DDP's buckets: it splits what it compiles where a bucket ends, and a layer
    # is smaller than that.
    settings = {"recompile_limit": MOST_GRAPHS, "optimize_ddp": False}
    with (
        torch._dynamo.config.patch(settings),
        # The cache of torch 2.11 takes attention compiled for one order of SDPA's kernels for
        # another's.
        torch.compiler.config.patch(cache_key_tag=_attention_kernels()),
        torch._inductor.config.patch(_deterministic() if deterministic else {}),
    ):
        try:
            yield
        finally:
            torch._dynamo.reset()


def keep_cache() -> None:
    """Keep what is compiled for the next run, rather than in the temporary folder, which a restart
    empties. TORCHINDUCTOR_CACHE_DIR, where the user sets it, is left as it is."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    chosen = os.environ.get(CACHE)
    if chosen not in (None, default_cache_dir()):  # PyTorch sets it itself when it is imported
        return
    folder = cache_folder("compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    os.environ[CACHE] = str(folder)


def _attention_kernels() -> str:
    """SDPA's kernels in the order in which they are tried."""
    return f"sdpa-{torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True)}"


def _deterministic() -> dict[str, bool]:
    """Choices that don't depend on timings, where this PyTorch has them."""
    return {"deterministic": True} if hasattr(torch._inductor.config, "deterministic") else {}


@contextmanager
def _counted(compilation: Compilation) -> Iterator[None]:
    """Within it, what is compiled is counted and timed."""
    handler, started = torch._dynamo.callback.callback_handler, 0.0

    def start(what: Any) -> None:
        nonlocal started
        started = time.perf_counter()
        # The backward pass of a graph that was counted is compiled when it first runs.
        compilation.graphs += what.callback_trigger is torch._dynamo.callback.CallbackTrigger.DYNAMO

    def end(_: Any) -> None:
        compilation.seconds += time.perf_counter() - started

    handler.register_start_callback(start)
    handler.register_end_callback(end)
    try:
        yield
    finally:
        handler.remove_start_callback(start)
        handler.remove_end_callback(end)
