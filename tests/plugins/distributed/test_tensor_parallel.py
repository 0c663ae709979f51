"""Layers shared by ranks train as those of one process, for every kind of model in the table."""

import functools

import attrs
import pytest

from tests.plugins.distributed.test_parity import assert_same
from tests.plugins.distributed.training import Case, train_alone, train_spread
from tests.variants import mostly_slow

TP = {"tp_size": 2}
TP_SP = {"tp_size": 2, "sequence_parallel": True}
ADAPTERS = {"dim": 4, "alpha": 8}

CASES = {
    "full": Case(),
    "a loss on whole logits": Case(sharded_logits=False),
    "tied": Case(config={"tie_word_embeddings": True}),
    "uneven vocabulary": Case(config={"vocab_size": 97}),
    "uneven vocabulary chunked": Case(chunked=True, config={"vocab_size": 97}),
    "uneven vocabulary fused": Case(chunked=True, fused=True, config={"vocab_size": 97}),
    "tied chunked": Case(chunked=True, config={"tie_word_embeddings": True}),
    "tied fused": Case(chunked=True, fused=True, config={"tie_word_embeddings": True}),
    "frozen norms": Case(frozen="norm"),
    "lora": Case(adapters=ADAPTERS),
    "lora fused with biases": Case(
        adapters=ADAPTERS, chunked=True, fused=True, config={"attention_bias": True}
    ),
    "lora on the head": Case(adapters={**ADAPTERS, "match_all_linear": True}),
}
FAMILIES = {
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {"tie_word_embeddings": True},
    "Gemma2": {"tie_word_embeddings": True},
    "Gemma3": {"tie_word_embeddings": True},
    "Phi3": {},
}


@functools.cache
def alone(name, steps):
    return train_alone(attrs.evolve(CASES[name], steps=steps))


@functools.cache
def family_alone(family):
    return train_alone(family_case(family))


def family_case(family):
    return Case(family=family, config=FAMILIES[family], steps=3)


def assert_same_steps(ranks, name, options, steps):
    case = attrs.evolve(CASES[name], steps=steps)
    assert_same(ranks.run(train_spread, case, "FSDP2Manager", options), alone(name, steps))


FAST = [
    ("tp", "tied chunked"),
    ("tp", "full"),
    ("tp+sp", "lora fused with biases"),
    ("tp+sp", "uneven vocabulary chunked"),
    ("tp+sp", "a loss on whole logits"),
]


@pytest.mark.parametrize(("way", "case"), mostly_slow(["tp", "tp+sp"], CASES, fast=FAST))
def test_two_ranks_share_layers_and_train_as_one(two_ranks, way, case):
    assert_same_steps(two_ranks, case, {"tp": TP, "tp+sp": TP_SP}[way], steps=5)


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, fast=["Gemma2", "Qwen3"]))
def test_every_kind_of_model_in_the_table_trains_as_on_one(two_ranks, family):
    spread = two_ranks.run(train_spread, family_case(family), "FSDP2Manager", TP_SP)
    assert_same(spread, family_alone(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_model_trains_with_whole_norms_too(two_ranks, family):
    spread = two_ranks.run(train_spread, family_case(family), "FSDP2Manager", TP)
    assert_same(spread, family_alone(family))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["full", "lora"])
@pytest.mark.parametrize("options", [TP, TP_SP], ids=["tp", "tp+sp"])
def test_twenty_steps_of_shared_layers_stay_together(two_ranks, options, case):
    assert_same_steps(two_ranks, case, options, steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [TP, TP_SP], ids=["tp", "tp+sp"])
def test_layers_shared_by_two_and_sharded_over_two(four_ranks, options, case):
    assert_same_steps(four_ranks, case, options, steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["full", "lora"])
def test_layers_shared_by_two_in_two_copies(four_ranks, case):
    assert_same_steps(four_ranks, case, {**TP_SP, "dp_replicate_size": 2}, steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("options", [TP, TP_SP], ids=["tp", "tp+sp"])
def test_head_norms_sharded_too(four_ranks, options):
    spread = four_ranks.run(train_spread, family_case("Qwen3"), "FSDP2Manager", options)
    assert_same(spread, family_alone("Qwen3"))
