"""The model with its weights, adapted and spread over the ranks."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from transformers import PreTrainedModel

from automodel_core.config.schema import RunConfig
from automodel_core.errors import UserError
from automodel_core.targets import at
from automodel_core.train.checkpoint import damaged
from automodel_core.train.console import Console
from automodel_core.train.prepare import Prepared
from automodel_core.train.rng import seed_everything
from automodel_core.train.sharded.deferred import DeferredInit
from automodel_core.train.sharded.reading import read_sharded
from automodel_core.train.sharded.saving import can_save_sharded
from automodel_core.train.world import World


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
    saved, adapter, world = checkpoint and checkpoint / "model", prepared.adapter, prepared.world
    weights = None if adapter else saved
    if sharded(world) and adapter is None:
        if weights is None and prepared.source.weight_bytes is None:
            loaded = draw_in_parts(config, prepared)
        else:
            loaded = read_in_parts(config, prepared, weights)
        if loaded is not None:
            return loaded
    model = read_whole(config, prepared, weights, checkpoint)
    sharded_saves = can_save_sharded(model)
    if adapter is not None:
        with at(config.peft.path):
            for line in adapter.apply(model).lines:
                console.say(line)
            if saved is not None:
                adapter.load(model, saved)
    with at(config.distributed.path if config.distributed else ()):
        spread = world.manager.parallelize(model, world.mesh, prepared.precision)
    if sharded(world):
        put(model, prepared)
    return LoadedModel(model, spread, sharded_saves)


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
    config: RunConfig, prepared: Prepared, weights: Path | None
) -> LoadedModel | None:
    """Each rank reads its part; None if this model has to be read whole."""
    world, precision = prepared.world, prepared.precision
    with at(config.model.path):
        found = prepared.source.unread_model(precision.weights, weights)
    if found is None:
        return None
    model, folder = found
    if len(prepared.tokenizer) > model.get_input_embeddings().num_embeddings:
        return None
    sharded_saves = can_save_sharded(model)
    with at(config.distributed.path):
        spread = world.manager.parallelize(model, world.mesh, precision)
    with at(config.model.path):
        read_sharded(model, folder, where_parameters_are(prepared), prepared.source.name)
    put(model, prepared)
    return LoadedModel(model, spread, sharded_saves)


def draw_in_parts(config: RunConfig, prepared: Prepared) -> LoadedModel | None:
    """Each rank keeps its part of the weights that one process would draw; None if this model has
    to be drawn whole."""
    world, precision = prepared.world, prepared.precision
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
    sharded_saves, unsharded = can_save_sharded(model), init.tensors(model)
    with at(config.distributed.path):
        spread = world.manager.parallelize(model, world.mesh, precision)
    init.draw(model, unsharded, where_parameters_are(prepared))
    put(model, prepared)
    return LoadedModel(model, spread, sharded_saves)


def where_parameters_are(prepared: Prepared) -> torch.device:
    return torch.device("cpu") if prepared.world.manager.offloads else prepared.device


def read_whole(
    config: RunConfig, prepared: Prepared, weights: Path | None, checkpoint: Path | None
) -> PreTrainedModel:
    """All weights: on the device, or on the host where only a part of them goes to the device."""
    source = prepared.source
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
