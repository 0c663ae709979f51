"""Ranks that share every sequence train as one process does; what can't be shared is refused."""

import functools

import attrs
import pytest
import torch
import torch.distributed as dist
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from automodel_core.config.schema import EveryLayer
from automodel_core.errors import UserError
from automodel_distributed.context_parallel import (
    KEYWORD,
    SharedSequence,
    check_attention,
    check_inputs,
    check_model,
    shared_attention,
)
from tests.plugins.distributed.test_parity import assert_same
from tests.plugins.distributed.training import SMALL, Case, build_model, train_alone, train_spread
from tests.variants import mostly_slow

CP = {"cp_size": 2}
CASES = {
    "full": Case(),
    "tied fused": Case(chunked=True, fused=True, config={"tie_word_embeddings": True}),
    "lora": Case(adapters={"dim": 4, "alpha": 8}),
}
FAMILIES = ["Mistral", "Qwen2", "Qwen3", "Gemma", "Phi3", "Olmo2", "Granite"]
PLAIN = {"Mistral": {"sliding_window": None}, "Phi3": {"sliding_window": None}}


@functools.cache
def alone(case):
    return train_alone(attrs.evolve(CASES[case], steps=5))


@functools.cache
def family_case(family):
    return Case(family=family, config=PLAIN.get(family, {}), steps=3)


def attention_on(query, key, value, upstream):
    """A rank's part of an attention's output, and of its gradients."""
    shared = SharedSequence(dist.group.WORLD, query.shape[2])
    mine = [part(each, shared).requires_grad_() for each in (query, key, value)]
    output, _ = shared_attention(None, *mine, None, **{KEYWORD: shared})
    output.transpose(1, 2).backward(part(upstream, shared))
    return [output.transpose(1, 2).detach(), *(each.grad for each in mine)]


def part(whole, shared):
    """`[batch, heads, positions, size]` as SharedSequence deals positions."""
    return shared.part(whole.transpose(1, 2)).transpose(1, 2).clone()


def put_together(parts):
    """All ranks' parts in the order of their positions, by the definition of dealing them."""
    halves = [each.chunk(2, dim=2) for each in parts]
    return torch.cat([first for first, _ in halves] + [last for _, last in halves[::-1]], dim=2)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    quarter=st.integers(1, 5),
    batch=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (4, 2), (2, 2)]),
    seed=st.integers(0, 2**16),
)
def test_attention_over_ranks_is_attention_in_float64(two_ranks, quarter, batch, heads, seed):
    generator = torch.Generator().manual_seed(seed)

    def drawn(number):
        shape = (batch, number, 4 * quarter, 8)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key, value, upstream = (drawn(n) for n in (heads[0], heads[1], heads[1], heads[0]))
    found = two_ranks.run(attention_on, query, key, value, upstream)

    whole = [each.clone().requires_grad_() for each in (query, key, value)]
    expected = scaled_dot_product_attention(*whole, is_causal=True, enable_gqa=True)
    expected.backward(upstream)
    wanted = [expected.detach(), *(each.grad for each in whole)]
    for parts, right in zip(zip(*found, strict=True), wanted, strict=True):
        torch.testing.assert_close(put_together(parts), right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_share_sequences_and_train_as_one(two_ranks, case):
    found = two_ranks.run(train_spread, attrs.evolve(CASES[case], steps=5), "FSDP2Manager", CP)
    assert_same(found, alone(case))


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, fast=["Gemma", "Qwen3"]))
def test_every_kind_of_model_with_full_attention_shares_sequences(two_ranks, family):
    case = family_case(family)
    assert_same(two_ranks.run(train_spread, case, "FSDP2Manager", CP), train_alone(case))


@pytest.mark.parametrize(
    "recompute", mostly_slow(["full", "selective", EveryLayer(every=2)], fast=["selective"])
)
def test_layers_that_compute_again_share_the_same_sequences(two_ranks, recompute):
    case = attrs.evolve(CASES["full"], steps=5, recompute=recompute)
    assert_same(two_ranks.run(train_spread, case, "FSDP2Manager", CP), alone("full"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"dp_replicate_size": 2}, {"tp_size": 2}, {"cp_size": 4}])
def test_four_ranks_share_sequences_beside_other_ways(four_ranks, more):
    case = attrs.evolve(CASES["lora"], steps=5)
    found = four_ranks.run(train_spread, case, "FSDP2Manager", {**CP, **more})
    assert_same(found, alone("lora"))


def tiny(family, **config):
    return build_model(Case(family=family, config=config))


def llava():
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**SMALL),
            vision_config=transformers.CLIPVisionConfig(
                hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
                image_size=16, patch_size=8,
            ),
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: tiny("Mistral", sliding_window=8), "sliding window"),
        (lambda: tiny("Gemma3", sliding_window=8), "sliding_attention"),
        (lambda: tiny("Llama", attn_implementation="eager"), "its attention is eager"),
        (llava, "more than text"),
    ],
)
def test_models_that_do_more_along_the_sequence_are_refused(model, reason):
    with pytest.raises(UserError, match=reason) as refused:
        check_model(model())
    assert refused.value.argument == "cp_size"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sliding_window": 8}, "sliding_window"),
        ({"s_aux": torch.zeros(2)}, "s_aux"),
        ({"is_causal": False}, "is_causal: false"),
    ],
)
def test_a_layer_that_asks_for_another_attention_is_refused(asked, said):
    with pytest.raises(UserError, match=said):
        check_attention(torch.nn.Identity(), asked)
    check_attention(torch.nn.Identity(), {"sliding_window": None, "is_causal": True})


@pytest.mark.parametrize("more", ["attention_mask", "position_ids"])
def test_rows_that_need_a_mask_are_refused(more):
    ids = torch.zeros(1, 8, dtype=torch.long)
    with pytest.raises(UserError, match="padded on the right"):
        check_inputs({"input_ids": ids, more: ids})
