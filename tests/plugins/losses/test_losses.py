"""Both losses against a float64 reference, and the promise that chunked logits stay small."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX
from automodel_losses.chunked_ce import ChunkedCrossEntropy
from automodel_losses.masked_ce import MaskedCrossEntropy


def drawn(batch, sequence, hidden, vocabulary, supervised=0.5, seed=0):
    """Hidden states, head weight and labels of which about `supervised` are kept."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, sequence, hidden, generator=generator)
    weight = torch.randn(vocabulary, hidden, generator=generator)
    labels = torch.randint(vocabulary, (batch, sequence), generator=generator)
    dropped = torch.rand(batch, sequence, generator=generator) >= supervised
    return states, weight, labels.masked_fill(dropped, IGNORE_INDEX)


def reference(states, weight, labels):
    """The definition, in float64 and one token at a time: the loss and its two gradients."""
    states = states.double().clone().requires_grad_()
    weight = weight.double().clone().requires_grad_()
    total = states.sum() * 0 + weight.sum() * 0
    for hidden, label in zip(states.flatten(0, 1), labels.flatten().tolist(), strict=True):
        if label != IGNORE_INDEX:
            logits = weight @ hidden
            total = total + torch.logsumexp(logits, 0) - logits[label]
    total.backward()
    return total.detach(), states.grad, weight.grad


def masked(states, weight, labels):
    return MaskedCrossEntropy()(states @ weight.T, labels)


def chunked(chunk_len):
    def loss(states, weight, labels):
        return ChunkedCrossEntropy(chunk_len)(states, labels, lambda hidden: hidden @ weight.T)

    return loss


def with_gradients(loss, states, weight, labels):
    states, weight = states.clone().requires_grad_(), weight.clone().requires_grad_()
    total = loss(states, weight, labels)
    assert total.dtype == torch.float32
    assert total.shape == ()
    total.backward()
    return total.detach(), states.grad, weight.grad


def assert_same(ours, expected):
    for mine, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.double(), right.double(), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    sequence=st.integers(1, 9),
    hidden=st.integers(1, 8),
    vocabulary=st.integers(1, 20),
    supervised=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    chunk_len=st.integers(1, 40),
    seed=st.integers(0, 2**20),
)
def test_both_losses_and_their_gradients_match_the_definition(
    batch, sequence, hidden, vocabulary, supervised, chunk_len, seed
):
    inputs = drawn(batch, sequence, hidden, vocabulary, supervised, seed)
    expected = reference(*inputs)
    assert_same(with_gradients(masked, *inputs), expected)
    assert_same(with_gradients(chunked(chunk_len), *inputs), expected)


@pytest.mark.parametrize("loss", [masked, chunked(3)])
def test_no_supervised_token_is_zero_with_zero_gradients(loss):
    total, *gradients = with_gradients(loss, *drawn(2, 5, 4, 11, supervised=0.0))
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


def test_tied_embeddings_get_the_gradient_of_both_uses():
    """The head's weight also makes the hidden states, as in a model with tied embeddings."""
    _, weight, labels = drawn(2, 9, 6, 30, supervised=0.7)
    tokens = labels.clamp(min=0).flip(1)
    gradients = []
    for loss in (masked, chunked(4)):
        tied = weight.clone().requires_grad_()
        loss(torch.nn.functional.embedding(tokens, tied), tied, labels).backward()
        gradients.append(tied.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


def test_dropout_in_the_head_is_the_same_when_it_is_computed_again():
    """An adapter on the output embeddings may drop out; backward must see the same mask."""
    states, weight, labels = drawn(1, 12, 8, 10, supervised=1.0)
    masks = []

    def head(hidden):
        kept = torch.nn.functional.dropout(torch.ones_like(hidden), 0.5)
        masks.append(kept)
        return (hidden * kept) @ weight.T

    ChunkedCrossEntropy(4)(states.requires_grad_(), labels, head).backward()
    forward, again = masks[:3], masks[3:]
    assert sorted(map(str, forward)) == sorted(map(str, again))


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def test_no_more_than_a_chunk_of_logits_ever_exists():
    chunk_len, vocabulary = 16, 300
    states, weight, labels = drawn(4, 64, 8, vocabulary)
    limit = chunk_len * vocabulary
    assert weight.numel() < limit, "else the weight's own gradient would hide the logits"
    sizes = {}
    for name, loss in (("whole", masked), ("chunked", chunked(chunk_len))):
        with LargestTensor() as largest:
            with_gradients(loss, states, weight, labels)
        sizes[name] = largest.numel
    assert sizes["whole"] == states.shape[0] * states.shape[1] * vocabulary
    assert sizes["chunked"] <= limit


def test_no_logits_are_kept_for_the_backward_pass():
    vocabulary = 300
    states, weight, labels = drawn(4, 64, 8, vocabulary)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        chunked(16)(states.requires_grad_(), weight.requires_grad_(), labels)
    assert max(kept, default=0) <= max(weight.numel(), states.numel())


def test_validation_needs_no_graph():
    states, weight, labels = drawn(2, 9, 6, 30)
    with torch.no_grad():
        total = chunked(4)(states, weight, labels)
    assert not total.requires_grad
    torch.testing.assert_close(total, masked(states, weight, labels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_len", [0, -1])
def test_an_empty_chunk_is_refused(chunk_len):
    with pytest.raises(UserError) as refused:
        ChunkedCrossEntropy(chunk_len)
    assert refused.value.argument == "chunk_len"
