"""What the losses are tested against: the definition in float64, and inputs drawn for both."""

import torch
from torch import nn

from automodel_core.protocols import IGNORE_INDEX
from automodel_core.train.head import Head


def drawn(batch, sequence, hidden, vocabulary, supervised=0.5, seed=0):
    """Hidden states, head weight and labels of which about `supervised` are kept."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, sequence, hidden, generator=generator)
    weight = torch.randn(vocabulary, hidden, generator=generator)
    labels = torch.randint(vocabulary, (batch, sequence), generator=generator)
    dropped = torch.rand(batch, sequence, generator=generator) >= supervised
    return states, weight, labels.masked_fill(dropped, IGNORE_INDEX)


def reference(states, weight, labels, bias=None, scale=1.0, cap=None):
    """The definition, in float64 and one token at a time: the loss and its gradients."""
    inputs = [states, weight] + ([] if bias is None else [bias])
    inputs = [each.detach().double().clone().requires_grad_() for each in inputs]
    total = sum(each.sum() * 0 for each in inputs)
    rows = inputs[0].flatten(0, -2)
    for hidden, label in zip(rows, labels.flatten().tolist(), strict=True):
        if label != IGNORE_INDEX:
            logits = inputs[1] @ hidden
            if bias is not None:
                logits = logits + inputs[2]
            logits = logits * scale
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            total = total + torch.logsumexp(logits, 0) - logits[label]
    total.backward()
    return [total.detach(), *(each.grad for each in inputs)]


def linear_head(weight, bias=None, scale=1.0, cap=None):
    """A model's head over these parameters."""
    module = nn.Linear(*weight.shape[::-1], bias=bias is not None, device="meta")
    module.weight = nn.Parameter(weight.clone())
    if bias is not None:
        module.bias = nn.Parameter(bias.clone())
    return Head(module, scale, cap)


def with_gradients(loss, states, labels, head):
    """The loss and its gradients by hidden states and the head's parameters, as `reference`."""
    states = states.clone().requires_grad_()
    total = loss(states, labels, head)
    assert total.dtype == torch.float32
    assert total.shape == ()
    total.backward()
    return [total.detach(), states.grad, *(p.grad for p in head.embeddings.parameters())]


def assert_same(ours, expected, tolerance=1e-5):
    """In float32 each is as close to float64 as its largest element allows."""
    assert len(ours) == len(expected)
    for mine, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(
            mine.double(),
            right.double(),
            rtol=tolerance,
            atol=tolerance * max(1.0, right.abs().max().item()),
        )
