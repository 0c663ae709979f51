"""Losses on hidden states are given the supervised rows, in whole tiles, and nothing is lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_core.protocols import IGNORE_INDEX
from automodel_core.train.precision import plan_precision
from automodel_core.train.rows import TILE, at_rows, supervised_rows
from automodel_core.train.step import Objective
from automodel_core.train.world import World

CPU = torch.device("cpu")


def labels_of(batch, sequence, share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(50, (batch, sequence), generator=generator)
    dropped = torch.rand(batch, sequence, generator=generator) >= share
    return labels.masked_fill(dropped, IGNORE_INDEX)


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 4),
    sequence=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    tile=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 2**16),
)
def test_rows_are_the_supervised_ones_each_once_in_order_and_in_whole_tiles(
    batch, sequence, share, tile, seed
):
    labels = labels_of(batch, sequence, share, seed)
    supervised = (labels.flatten() != IGNORE_INDEX).nonzero()[:, 0].tolist()
    rows = supervised_rows(labels, tile)
    if rows is None:
        assert max(len(supervised), 1) + tile > labels.numel()
        return
    rows = rows.tolist()
    assert rows == sorted(set(rows))
    assert set(supervised) <= set(rows)
    assert len(rows) % tile == 0
    assert 0 < len(rows) < max(len(supervised), 1) + tile


def test_lengths_that_vary_make_few_shapes():
    shapes = {len(supervised_rows(labels_of(4, 512, n / 400))) for n in range(360)}
    assert shapes <= {TILE * tiles for tiles in range(1, 17)}


class Seen:
    """A loss on hidden states that keeps what it was given."""

    input = "hidden_states"

    def __call__(self, hidden_states, labels, head):
        self.given = hidden_states, labels
        logits = head(hidden_states).float()
        return torch.nn.functional.cross_entropy(
            logits, labels, ignore_index=IGNORE_INDEX, reduction="sum"
        )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_engine_hands_on_these_rows_and_the_gradients_are_those_of_all(model, share):
    loss = Seen()
    objective = Objective.of(model, model, loss, plan_precision(torch.float32, CPU), CPU, World())
    tokens = torch.randint(50, (2, 300), generator=torch.Generator().manual_seed(1))
    labels = labels_of(2, 300, share)
    ready = objective.prepare(
        {
            "input_ids": tokens,
            "labels": labels,
            "attention_mask": torch.ones_like(tokens),
            "position_ids": torch.arange(300).expand(2, -1),
        }
    )
    found = []
    for rows in (ready.rows, None):
        model.zero_grad()
        total = objective.token_losses(ready.inputs, ready.labels, rows)
        total.backward()
        found.append([total.detach(), *(p.grad.clone() for p in model.parameters())])
        expected = 600 if rows is None else len(rows)
        assert [len(each) for each in loss.given] == [expected, expected]
    assert (ready.rows is None) == (share == 1.0)
    for few, every in zip(*found, strict=True):
        torch.testing.assert_close(few, every, rtol=1e-5, atol=1e-4)


def test_rows_come_as_they_are_numbered():
    states = torch.arange(12.0).view(2, 3, 2)
    labels = torch.tensor([[-100, 5, -100], [7, -100, -100]])
    hidden, few = at_rows(states, labels, torch.tensor([1, 3]))
    assert hidden.tolist() == [[2.0, 3.0], [6.0, 7.0]]
    assert few.tolist() == [5, 7]
