"""The model with its weights, adapted and spread over the ranks."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from transformers import PreTrainedModel

from automodel_core.config.schema import RunConfig
from automodel_core.errors import UserError
from automodel_core.protocols import Adapter
from automodel_core.targets import at
from automodel_core.train.checkpoint import damaged
from automodel_core.train.console import Console
from automodel_core.train.freezing import freeze
from automodel_core.train.prepare import Prepared
from automodel_core.train.recompute import checkpoint_activations
from automodel_core.train.rng import seed_everything
from automodel_core.train.sharded.deferred import DeferredInit
from automodel_core.train.sharded.reading import read_sharded
from automodel_core.train.sharded.saving import can_save_sharded
from automodel_core.train.world import World

# What a run says, because memory is planned by it.
IN_PARTS = "Every rank loads its own part of the model."
WHOLE_FIRST = "Every rank loads the whole model first, then keeps its part."


@attrs.frozen
class LoadedModel:
    """A model that is ready to train.

    Attributes:
        model: The model itself, in whatever wraps it.
        spread: What the parallel manager made of it: what is called.
        sharded_saves: Whether every rank can write its part of the weights.
    """

    model: PreTrainedModel
    spread: torch.nn.Module
    sharded_saves: bool


def load_model(
    config: RunConfig, prepared: Prepared, checkpoint: Path | None, console: Console
) -> LoadedModel:
    """The weights: the source's own, drawn from the run's seed, or a checkpoint's. With adapters,
    the base is always the source's own and the checkpoint has the adapter.

    A model that is sharded is built without weights and each rank reads its own part of them,
    where that gives the same; else every rank reads all of it and keeps its part.
    """
    seed_everything(prepared.supplied["seed"])
    world = prepared.world
    if sharded(world):
        loaded = load_in_parts(config, prepared, checkpoint, console)
        if loaded is not None:
            return loaded
        console.say(WHOLE_FIRST)
    model = read_whole(config, prepared, checkpoint)
    sharded_saves = can_save_sharded(model)
    adapt(config, prepared, model, checkpoint, console)
    spread = spread_out(config, prepared, model)
    if sharded(world):
        put(model, prepared)
    return LoadedModel(model, spread, sharded_saves)


def load_in_parts(
    config: RunConfig, prepared: Prepared, checkpoint: Path | None, console: Console
) -> LoadedModel | None:
    """Each rank reads, or draws, its own part only; None if this model needs the whole."""
    weights = own_weights(prepared, checkpoint)
    if weights is not None or prepared.source.weight_bytes is not None:
        return read_in_parts(config, prepared, checkpoint, console)
    return draw_in_parts(config, prepared, console) if prepared.adapter is None else None


def own_weights(prepared: Prepared, checkpoint: Path | None) -> Path | None:
    """The folder of a checkpoint that has the whole model's weights; none has a frozen base's."""
    return None if checkpoint is None or prepared.adapter else checkpoint / "model"


def adapt(
    config: RunConfig,
    prepared: Prepared,
    model: PreTrainedModel,
    checkpoint: Path | None,
    console: Console,
) -> None:
    """Freeze parts, add the adapter, if the run has one, and give it the checkpoint's values."""
    for line in freeze(model, config.freeze_config):
        console.say(line)
    adapter = prepared.adapter
    if adapter is None:
        return
    with at(config.peft.path):
        for line in adapter.apply(model).lines:
            console.say(line)
        if checkpoint is not None:
            adapter.load(model, checkpoint / "model")


def spread_out(config: RunConfig, prepared: Prepared, model: PreTrainedModel) -> torch.nn.Module:
    """What the parallel manager makes of the model, whose layers recompute first if they are to:
    what a manager hooks onto a layer then runs outside of that, and once."""
    checkpoint_activations(model, config.activation_checkpointing)
    world = prepared.world
    with at(config.distributed.path if config.distributed else ()):
        return world.manager.parallelize(model, world.mesh, prepared.precision)


def needs_weights(adapter: Adapter, model: PreTrainedModel) -> bool:
    """An adapter that doesn't say does."""
    asked = getattr(adapter, "needs_weights", None)
    return asked is None or asked(model)


def sharded(world: World) -> bool:
    """Whether a rank holds a part of the model only."""
    return world.manager.before_weights and not world.alone


def put(model: PreTrainedModel, prepared: Prepared) -> None:
    """The model on the device, or its buffers alone if its parameters stay on the host."""
    if not prepared.world.manager.offloads:
        model.to(prepared.device)
        return
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(prepared.device)


def read_in_parts(
    config: RunConfig, prepared: Prepared, checkpoint: Path | None, console: Console
) -> LoadedModel | None:
    """Each rank reads its part; None if this model, or its adapter, has to be read whole."""
    precision, adapter = prepared.precision, prepared.adapter
    with at(config.model.path):
        found = prepared.source.unread_model(precision.weights, own_weights(prepared, checkpoint))
    if found is None:
        return None
    model, folder = found
    if len(prepared.tokenizer) > model.get_input_embeddings().num_embeddings:
        return None
    with at(config.peft.path if adapter else ()):
        if adapter is not None and needs_weights(adapter, model):
            return None
    console.say(IN_PARTS)
    sharded_saves = can_save_sharded(model)
    adapt(config, prepared, model, checkpoint, console)
    spread = spread_out(config, prepared, model)
    with at(config.model.path):
        read_sharded(model, folder, where_parameters_are(prepared), prepared.source.name)
    put(model, prepared)
    return LoadedModel(model, spread, sharded_saves)


def draw_in_parts(config: RunConfig, prepared: Prepared, console: Console) -> LoadedModel | None:
    """Each rank keeps its part of the weights that one process would draw; None if this model has
    to be drawn whole."""
    precision = prepared.precision
    with at(config.model.path):
        try:
            with DeferredInit() as init:
                model = prepared.source.load_model(precision.weights, torch.device("meta"))
        except RuntimeError:  # its constructor looks at what it has drawn
            seed_everything(prepared.supplied["seed"])
            return None
    if len(prepared.tokenizer) > model.get_input_embeddings().num_embeddings:
        seed_everything(prepared.supplied["seed"])
        return None
    console.say(IN_PARTS)
    sharded_saves, unsharded = can_save_sharded(model), init.tensors(model)
    adapt(config, prepared, model, None, console)
    spread = spread_out(config, prepared, model)
    init.draw(model, unsharded, where_parameters_are(prepared))
    put(model, prepared)
    return LoadedModel(model, spread, sharded_saves)


def where_parameters_are(prepared: Prepared) -> torch.device:
    return torch.device("cpu") if prepared.world.manager.offloads else prepared.device


def read_whole(config: RunConfig, prepared: Prepared, checkpoint: Path | None) -> PreTrainedModel:
    """All weights: on the device, or on the host where only a part of them goes to the device."""
    source, weights = prepared.source, own_weights(prepared, checkpoint)
    device = torch.device("cpu") if sharded(prepared.world) else prepared.device
    with at(config.model.path):
        try:
            model = source.load_model(prepared.precision.weights, device, weights)
        except UserError as error:
            if weights is None:
                raise
            raise damaged(checkpoint, "model/", f"can't be read. {error.message}") from None
        if weights is None:
            rows = model.get_input_embeddings().num_embeddings
            source.check_vocabulary(model, prepared.tokenizer)
            if prepared.adapter is not None and model.get_input_embeddings().num_embeddings != rows:
                raise UserError(
                    "New rows of the embeddings would be lost: an adapter is saved without them.",
                    fix="leave resize_embeddings and the new tokens out, or tune all weights",
                )
    return model
