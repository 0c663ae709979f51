"""Models that see, spread over ranks: they follow one process, or are refused and don't hang."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForImageTextToText

from automodel_core.config.schema import FreezeConfig
from automodel_core.errors import UserError
from automodel_core.train.freezing import freeze
from automodel_core.train.one_process import OneProcess
from automodel_core.train.precision import plan_precision
from automodel_core.train.step import Objective, accumulate_gradients, evaluate
from automodel_core.train.world import ALONE, World
from automodel_datasets.image_collate import image_text_collater
from automodel_distributed import managers
from automodel_distributed.context_parallel import check_model
from automodel_distributed.tp_plans import plan_for
from automodel_losses.chunked_ce import ChunkedCrossEntropy
from tests.plugins.datasets.seeing import FAMILIES
from tests.plugins.distributed.training import build_mesh
from tests.vision import CONFIGURATIONS, picture, said

CPU, STEPS, BATCH = torch.device("cpu"), 3, 2


def sample(number: int, *, seen: bool = True) -> dict[str, Any]:
    parts = (None, f"What is {number}?") if seen else (f"What is {number}?",)
    answer = "The sum." if number % 2 else "A city by the sea."
    return {
        "messages": [said("user", *parts), said("assistant", answer)],
        "images": [picture(number)] if seen else [],
        "place": f"data:{number}",
    }


def losses(
    name: str, manager: str | None, sightless: tuple[int, ...] = (), frozen: str = ""
) -> list[float]:
    """Of a few steps by the engine's own arithmetic; each rank takes every n-th sample."""
    processor = FAMILIES[name][0]()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(CONFIGURATIONS[name](processor)).train()
    if frozen:
        freeze(model, FreezeConfig(**{frozen: True}))
    if manager is None:
        world = World(OneProcess(), ALONE)
    else:
        made = getattr(managers, manager)()
        sizes = made.sizes(dist.get_world_size())
        world = World(made, sizes, dist.get_rank(), build_mesh(sizes), dist.group.WORLD)
    precision = plan_precision(torch.float32, CPU)
    spread = world.manager.parallelize(model, world.mesh, precision)
    whole = Objective.of(model, spread, ChunkedCrossEntropy(), precision, CPU, world)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    scaler, found = torch.amp.GradScaler("cpu", enabled=False), []
    for step in range(STEPS):
        numbers = [2 * BATCH * step + i for i in range(2 * BATCH)][world.rank :: world.size]
        rows = [sample(number, seen=number not in sightless) for number in numbers]
        batches = [
            whole.prepare(image_text_collater(rows[i : i + BATCH], processor))
            for i in range(0, len(rows), BATCH)
        ]
        (tokens,) = world.sum([sum(batch.label_tokens for batch in batches)])
        found.append(accumulate_gradients(whole, batches, tokens, scaler)[0].item())
        optimizer.step()
        optimizer.zero_grad()
    return [*found, evaluate(whole, batches)[0]]


def refusal(name: str, manager: str, sightless: tuple[int, ...]) -> str:
    """What the ranks are told; caught there, so that they can be used again."""
    try:
        return str(losses(name, manager, sightless))
    except UserError as error:
        return error.message


@pytest.mark.parametrize("manager", ["FSDP2Manager", "DDPManager"])
def test_two_ranks_follow_one(two_ranks, manager):
    alone = losses("gemma3", None)
    for found in two_ranks.run(losses, "gemma3", manager):
        assert found == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("manager", ["FSDP2Manager", "DDPManager"])
def test_two_ranks_follow_one_with_a_frozen_tower(two_ranks, manager):
    alone = losses("gemma3", None, frozen="freeze_vision_tower")
    assert alone != losses("gemma3", None)
    for found in two_ranks.run(losses, "gemma3", manager, (), "freeze_vision_tower"):
        assert found == pytest.approx(alone, rel=1e-5)


# Both samples of one rank in the second step.
SIGHTLESS = (5, 7)


def test_where_some_ranks_have_no_image_copies_follow_one(two_ranks):
    """And its vision tower trains."""
    alone = losses("llava", None, SIGHTLESS)
    for found in two_ranks.run(losses, "llava", "DDPManager", SIGHTLESS):
        assert found == pytest.approx(alone, rel=1e-5)


def test_where_some_ranks_have_no_image_shards_are_refused_and_do_not_wait(two_ranks):
    for said_there in two_ranks.run(refusal, "llava", "FSDP2Manager", SIGHTLESS):
        assert "Some ranks have images" in said_there


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_their_sequences_and_layers_are_not_cut(name):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(CONFIGURATIONS[name](FAMILIES[name][0]()))
    with pytest.raises(UserError, match="it takes more than text"):
        check_model(model)
    with pytest.raises(UserError, match="isn't known"):
        plan_for(model, None)
