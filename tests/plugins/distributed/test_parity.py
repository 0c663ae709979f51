"""Losses, gradient norms and weights over many ranks are those of one process.

float32 and no dropout; every row of a batch supervises another number of tokens, so the ranks do.
"""

import functools

import attrs
import pytest
import torch

from automodel_core.config.schema import EveryLayer
from tests.plugins.distributed.training import Case, train_alone, train_spread
from tests.variants import mostly_slow

CASES = {
    "full": Case(),
    "tied": Case(config={"tie_word_embeddings": True}),
    "chunked": Case(chunked=True),
    "tied fused": Case(chunked=True, fused=True, config={"tie_word_embeddings": True}),
    "frozen embeddings": Case(frozen="embed_tokens"),
    "lora": Case(adapters={"dim": 4, "alpha": 8}),
    "lora fused": Case(adapters={"dim": 4, "alpha": 8}, chunked=True, fused=True),
}
DDP = ("DDPManager", {})
FSDP2 = ("FSDP2Manager", {})
WAYS_ON_TWO = {
    "ddp": DDP,
    "fsdp2": FSDP2,
    "fsdp2 kept": ("FSDP2Manager", {"reshard_after_forward": False}),
    "copies": ("FSDP2Manager", {"dp_replicate_size": 2}),
    "offload": ("FSDP2Manager", {"cpu_offload": True}),
}
WAYS_ON_FOUR = {
    "ddp": DDP,
    "fsdp2": FSDP2,
    "hsdp": ("FSDP2Manager", {"dp_replicate_size": 2}),
}


@functools.cache
def alone(name):
    """Chunking changes nothing but memory, so the referee knows nothing of it."""
    return train_alone(CASES[name])


def assert_same(ranks, expected):
    """Equal on every rank, and equal to one process."""
    for rank in ranks:
        assert rank.losses == pytest.approx(expected.losses, rel=1e-5)
        assert rank.norms == pytest.approx(expected.norms, rel=1e-5)
        assert rank.evaluation == pytest.approx(expected.evaluation, rel=1e-5)
        assert rank.state.keys() == expected.state.keys()
        for name, tensor in rank.state.items():
            torch.testing.assert_close(tensor, expected.state[name], rtol=1e-3, atol=1e-4)
    assert len({tuple(rank.norms) for rank in ranks}) == 1


FAST = [
    ("ddp", "full"),
    ("ddp", "lora fused"),
    ("fsdp2", "tied fused"),
    ("fsdp2", "lora"),
    ("fsdp2", "frozen embeddings"),
]


@pytest.mark.parametrize(("way", "case"), mostly_slow(["ddp", "fsdp2"], CASES, fast=FAST))
def test_two_ranks_train_as_one(two_ranks, way, case):
    assert_same(two_ranks.run(train_spread, CASES[case], *WAYS_ON_TWO[way]), alone(case))


@pytest.mark.parametrize(
    ("way", "case"),
    mostly_slow(
        ["fsdp2 kept", "copies", "offload"],
        ["tied", "lora"],
        fast=[("offload", "lora"), ("copies", "tied")],
    ),
)
def test_the_options_of_fsdp2_change_no_number(two_ranks, way, case):
    assert_same(two_ranks.run(train_spread, CASES[case], *WAYS_ON_TWO[way]), alone(case))


@pytest.mark.parametrize(
    ("way", "case"),
    [
        (DDP, "lora"),
        (FSDP2, "full"),
        (FSDP2, "frozen embeddings"),
        (WAYS_ON_TWO["copies"], "tied"),
        (WAYS_ON_TWO["offload"], "lora"),
        (("FSDP2Manager", {"tp_size": 2, "sequence_parallel": True}), "full"),
    ],
)
def test_an_update_that_clips_gradients_itself_changes_no_number(two_ranks, way, case):
    """The referee clips with torch.nn.utils.clip_grad_norm_ and then takes the same fused step."""
    fused = attrs.evolve(CASES[case], max_norm=0.02, fused_update=True)
    assert_same(two_ranks.run(train_spread, fused, *way), train_alone(fused))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS_ON_FOUR)
def test_four_ranks_train_as_one(four_ranks, way, case):
    assert_same(four_ranks.run(train_spread, CASES[case], *WAYS_ON_FOUR[way]), alone(case))


@pytest.mark.parametrize("way", ["DDPManager", "FSDP2Manager"])
@pytest.mark.parametrize("choice", ["full", "selective", EveryLayer(every=2)])
@pytest.mark.parametrize("case", ["tied fused", "lora"])
def test_recomputed_activations_change_no_number(two_ranks, way, choice, case):
    short = attrs.evolve(CASES[case], steps=4)
    recomputed = attrs.evolve(short, recompute=choice)
    assert_same(two_ranks.run(train_spread, recomputed, way, {}), train_alone(short))


@pytest.mark.parametrize(
    ("way", "case", "choice"),
    [
        ("DDPManager", "tied fused", None),
        ("FSDP2Manager", "lora", "full"),
        pytest.param("DDPManager", "lora", "full", marks=pytest.mark.slow),
        pytest.param("DDPManager", "full", "selective", marks=pytest.mark.slow),
        pytest.param("FSDP2Manager", "full", "selective", marks=pytest.mark.slow),
        pytest.param("FSDP2Manager", "tied fused", None, marks=pytest.mark.slow),
    ],
)
def test_compiled_layers_change_no_number(two_ranks, way, case, choice):
    short = attrs.evolve(CASES[case], steps=2)
    compiled = attrs.evolve(short, compiled=True, recompute=choice)
    assert_same(two_ranks.run(train_spread, compiled, way, {}), train_alone(short))
