"""Every loss against a float64 reference, and the promise that chunked logits stay small."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from automodel_core.errors import UserError
from automodel_core.train.head import Head
from automodel_losses.chunked_ce import ChunkedCrossEntropy
from automodel_losses.fused_linear_ce import FusedLinearCrossEntropy
from automodel_losses.masked_ce import MaskedCrossEntropy
from automodel_peft.lora import PeftConfig
from tests.plugins.losses.reference import (
    assert_same,
    drawn,
    linear_head,
    reference,
    with_gradients,
)


def masked(states, labels, head):
    return MaskedCrossEntropy()(head(states), labels)


LOSSES = {
    "masked": lambda chunk_len: masked,
    "chunked": ChunkedCrossEntropy,
    "fused": FusedLinearCrossEntropy,
}
IN_CHUNKS = [ChunkedCrossEntropy, FusedLinearCrossEntropy]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    sequence=st.integers(1, 9),
    hidden=st.integers(1, 8),
    vocabulary=st.integers(1, 20),
    supervised=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    chunk_len=st.integers(1, 40),
    biased=st.booleans(),
    scale=st.sampled_from([1.0, 0.25]),
    cap=st.sampled_from([None, 2.0, 30.0]),
    seed=st.integers(0, 2**20),
)
def test_all_losses_and_their_gradients_match_the_definition(
    batch, sequence, hidden, vocabulary, supervised, chunk_len, biased, scale, cap, seed
):
    states, weight, labels = drawn(batch, sequence, hidden, vocabulary, supervised, seed)
    bias = weight[:, 0] * 0.5 if biased else None
    expected = reference(states, weight, labels, bias, scale, cap)
    for loss in LOSSES.values():
        head = linear_head(weight, bias, scale, cap)
        assert head.linear() is not None
        assert_same(with_gradients(loss(chunk_len), states, labels, head), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_supervised_token_is_zero_with_zero_gradients(loss):
    states, weight, labels = drawn(2, 5, 4, 11, supervised=0.0)
    total, *gradients = with_gradients(LOSSES[loss](3), states, labels, linear_head(weight))
    assert total == 0.0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_bfloat16_logits_are_summed_in_float32():
    states, weight, labels = drawn(2, 64, 16, 500, supervised=1.0)
    logits = (states @ weight.T).bfloat16()
    exact = torch.nn.functional.cross_entropy(
        logits.double().flatten(0, 1), labels.flatten(), reduction="sum"
    )
    torch.testing.assert_close(
        MaskedCrossEntropy()(logits, labels).double(), exact, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_in_bfloat16_gradients_stay_near_float64_and_come_in_their_parameters_dtype(loss, autocast):
    states, weight, labels = drawn(2, 64, 16, 50, supervised=0.7)
    states, weight = states.bfloat16().float(), weight.bfloat16().float()
    expected = reference(states, weight, labels)
    dtype = torch.float32 if autocast else torch.bfloat16
    head = linear_head(weight.to(dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = with_gradients(LOSSES[loss](48), states.to(dtype), labels, head)
    assert [each.dtype for each in ours] == [torch.float32, dtype, dtype]
    for mine, right in zip(ours, expected, strict=True):
        assert (mine.double() - right).norm() < 0.01 * right.norm()


@pytest.mark.parametrize("loss", LOSSES)
def test_tied_embeddings_get_the_gradient_of_both_uses(loss):
    """The head's weight also makes the hidden states, as in a model with tied embeddings."""
    _, weight, labels = drawn(2, 9, 6, 30, supervised=0.7)
    tokens = labels.clamp(min=0).flip(1)
    head, exact = linear_head(weight), weight.double().requires_grad_()
    states = torch.nn.functional.embedding(tokens, exact)
    torch.nn.functional.cross_entropy(
        (states @ exact.T).flatten(0, 1), labels.flatten(), reduction="sum"
    ).backward()
    tied = head.embeddings.weight
    LOSSES[loss](4)(torch.nn.functional.embedding(tokens, tied), labels, head).backward()
    assert_same([tied.grad], [exact.grad])


@pytest.mark.parametrize("loss", IN_CHUNKS)
def test_a_frozen_head_gets_no_gradient_and_hands_one_on(loss):
    states, weight, labels = drawn(2, 9, 6, 30)
    head = linear_head(weight)
    head.embeddings.requires_grad_(False)
    total, of_states, none = with_gradients(loss(4), states, labels, head)
    assert none is None
    assert_same([total, of_states], reference(states, weight, labels)[:2])


@pytest.mark.parametrize("loss", IN_CHUNKS)
def test_a_head_alone_trains_on_hidden_states_without_gradients(loss):
    states, weight, labels = drawn(2, 9, 6, 30)
    head = linear_head(weight)
    loss(4)(states, labels, head).backward()
    assert_same([head.embeddings.weight.grad], reference(states, weight, labels)[2:])


class Body(nn.Module):
    """Something with a head, for adapters to be put on."""

    def __init__(self, weight):
        super().__init__()
        self.lm_head = linear_head(weight).embeddings


@pytest.mark.parametrize("loss", IN_CHUNKS)
def test_an_adapter_on_the_head_trains_as_without_chunks(loss):
    states, weight, labels = drawn(2, 9, 6, 30)
    body = Body(weight).requires_grad_(False)
    PeftConfig(dim=2, alpha=4, include_modules=["lm_head"]).apply(body)
    torch.nn.init.normal_(body.lm_head.lora_B)
    head = Head(body.lm_head)
    assert head.linear() is None
    found = []
    for each in (masked, loss(4)):
        body.zero_grad()
        found.append(with_gradients(each, states, labels, head))
    ours, expected = ([g for g in each if g is not None] for each in found[::-1])
    assert len(ours) == 4, "the loss, and the gradients of hidden states, A and B"
    assert_same(ours, expected)


@pytest.mark.parametrize("loss", IN_CHUNKS)
def test_what_a_head_draws_counts_in_its_gradient(loss):
    """An adapter on the output embeddings may drop out; the gradient is that of the same mask."""
    states, weight, labels = drawn(1, 12, 8, 10, supervised=1.0)
    masks = []

    def head(hidden):
        masks.append(torch.nn.functional.dropout(torch.ones_like(hidden), 0.5))
        return (hidden * masks[-1]) @ weight.T

    states.requires_grad_()
    loss(4)(states, labels, head).backward()
    assert len(masks) == 3, "one call a chunk"
    dropped = states.detach() * torch.cat(masks)
    assert_same([states.grad], [reference(dropped, weight, labels)[1] * torch.cat(masks)])


def test_parameters_that_share_a_gradient_are_summed_apart():
    """Autograd hands out one tensor as the gradient of both biases."""
    states, weight, labels = drawn(2, 9, 6, 30)
    biases = [torch.zeros(30, requires_grad=True) for _ in range(2)]

    def head(hidden):
        return hidden @ weight.T + (biases[0] + biases[1])

    ChunkedCrossEntropy(4)(states, labels, head).backward()
    expected = reference(states, weight, labels, torch.zeros(30))[3]
    assert_same([each.grad for each in biases], [expected, expected])


@pytest.mark.parametrize("loss", IN_CHUNKS)
def test_the_backward_pass_scales_by_what_comes_from_above(loss):
    states, weight, labels = drawn(2, 9, 6, 30)
    head = linear_head(weight)
    states.requires_grad_()
    (loss(4)(states, labels, head) / 8).backward()
    expected = [each / 8 for each in reference(states, weight, labels)[1:]]
    assert_same([states.grad, head.embeddings.weight.grad], expected)


@pytest.mark.parametrize("loss", IN_CHUNKS)
def test_a_second_backward_pass_is_refused(loss):
    states, weight, labels = drawn(2, 9, 6, 30)
    total = loss(4)(states.requires_grad_(), labels, linear_head(weight))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed on already"):
        total.backward()


class Logits(TorchDispatchMode):
    """Counts the tensors with a vocabulary's columns that are alive after every operation."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.alive, self.most = vocabulary, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and each.dim() and each.shape[-1] == self.vocabulary:
                storage = each.untyped_storage()
                self.alive[storage._cdata] = (weakref.ref(each), each.numel())
        living = [numel for found, numel in self.alive.values() if found() is not None]
        self.most = max([self.most, *living])
        self.now = sum(living)
        return out


@pytest.mark.parametrize("loss", IN_CHUNKS)
def test_no_more_than_a_chunk_of_logits_ever_exists_and_none_after_the_forward_pass(loss):
    chunk_len, vocabulary = 16, 300
    states, weight, labels = drawn(4, 64, 8, vocabulary)
    states.requires_grad_()
    with Logits(vocabulary) as logits:
        total = loss(chunk_len)(states, labels, linear_head(weight))
        gc.collect()
        torch.zeros(())
        assert logits.now == 0
        total.backward()
    assert logits.most == chunk_len * vocabulary


@pytest.mark.parametrize("loss", IN_CHUNKS)
def test_validation_needs_no_graph(loss):
    states, weight, labels = drawn(2, 9, 6, 30)
    with torch.no_grad():
        total = loss(4)(states, labels, linear_head(weight))
    assert not total.requires_grad
    assert_same([total], reference(states, weight, labels)[:1])


@pytest.mark.parametrize("loss", IN_CHUNKS)
@pytest.mark.parametrize("chunk_len", [0, -1])
def test_an_empty_chunk_is_refused(loss, chunk_len):
    with pytest.raises(UserError) as refused:
        loss(chunk_len)
    assert refused.value.argument == "chunk_len"
