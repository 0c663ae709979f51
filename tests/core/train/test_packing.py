"""Packed rows: what is put in them, and that their documents don't see each other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from automodel_core.errors import UserError
from automodel_core.train.packing import (
    PackedDataset,
    carries_state,
    check_collated,
    check_documents_apart,
    first_fit,
)
from automodel_core.train.precision import plan_precision
from automodel_core.train.step import Objective
from automodel_core.train.world import World
from automodel_datasets.collate import default_collater
from automodel_losses.masked_ce import MaskedCrossEntropy

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
WINDOWED = {"sliding_window": 6}
MODELS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "mistral": MistralConfig(**SHAPE, **WINDOWED),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        **WINDOWED,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def first_fit_by_definition(lengths, size, window):
    rows, still_open = [], []
    for number, length in enumerate(lengths):
        for row in still_open:
            if row["room"] >= length:
                break
        else:
            if len(still_open) == window:
                still_open.pop(0)
            row = {"items": [], "room": size}
            still_open.append(row)
            rows.append(row["items"])
        row["items"].append(number)
        row["room"] -= length
    return rows


@given(st.data())
def test_rows_are_filled_first_fit_over_a_bounded_window(data):
    size = data.draw(st.integers(1, 30))
    window = data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(1, size), max_size=40))
    rows = first_fit(lengths, size, window)
    assert rows == first_fit_by_definition(lengths, size, window)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= size for row in rows)


def test_rows_of_lengths_as_chats_have_them_are_nearly_full():
    drawn = np.random.default_rng(0).lognormal(6.1, 0.8, 20_000).astype(int) + 8
    lengths = drawn.clip(max=4096).tolist()
    rows = first_fit(lengths, 4096)
    assert sum(lengths) / (4096 * len(rows)) > 0.98


def samples(*lengths: int, seed: int = 0) -> list[dict]:
    drawn = np.random.default_rng(seed)
    every = [drawn.integers(1, 60, length).tolist() for length in lengths]
    return [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in every]


def test_a_row_holds_its_samples_one_after_another():
    data = samples(3, 5, 4, 2)
    packed = PackedDataset.plan(data, 8, seed=1, path=(), collate=default_collater)
    for index in range(len(packed)):
        members, row = packed.members(index), packed[index]
        assert row["input_ids"] == [token for m in members for token in data[m]["input_ids"]]
        assert row["labels"] == [label for m in members for label in data[m]["labels"]]
        lengths = [len(data[m]["input_ids"]) for m in members]
        assert row["position_ids"] == [i for length in lengths for i in range(length)]
    assert sorted(m for i in range(len(packed)) for m in packed.members(i)) == [0, 1, 2, 3]
    assert packed.lengths.tolist() == [len(packed[i]["input_ids"]) for i in range(len(packed))]


def test_samples_that_exceed_a_row_are_left_out_and_counted():
    packed = PackedDataset.plan(samples(3, 50, 4), 8, seed=1, path=(), collate=default_collater)
    assert sorted(m for i in range(len(packed)) for m in packed.members(i)) == [0, 2]
    assert packed.notes[1] == "Samples left out because they exceed a row: 1."
    with pytest.raises(UserError, match="Every sample is longer"):
        PackedDataset.plan(samples(9, 10), 8, seed=1, path=(), collate=default_collater)


def test_a_collator_that_forgets_the_positions_is_refused():
    def forgetful(rows):
        return default_collater(
            [{k: v for k, v in row.items() if k != "position_ids"} for row in rows]
        )

    packed = PackedDataset.plan(samples(3, 5), 8, seed=1, path=(), collate=default_collater)
    check_collated(packed, default_collater, ())
    with pytest.raises(UserError, match="position_ids"):
        check_collated(packed, forgetful, ())


def objective_of(model, multiple: int = 1) -> Objective:
    device = torch.device("cpu")
    precision = plan_precision(torch.float32, device)
    return Objective.of(model, model, MaskedCrossEntropy(), precision, device, World(), multiple)


def build(name: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MODELS[name], attn_implementation=attention)


def loss_and_gradients(objective, model, rows) -> tuple[float, dict]:
    model.zero_grad()
    batch = objective.prepare(default_collater(rows))
    loss = objective.loss_sum(batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_samples_give_the_loss_and_gradients_that_they_give_apart(name, attention):
    """Two rows of several samples, padded to more than they hold; windows shorter than samples."""
    model = build(name, attention)
    data = samples(9, 4, 14, 7, 11, 8)
    packed = PackedDataset.plan(data, 28, seed=0, path=(), collate=default_collater)
    assert max(len(packed.members(i)) for i in range(len(packed))) > 1
    rows = [packed[i] for i in range(len(packed))]
    apart, expected = loss_and_gradients(objective_of(model), model, data)
    together, found = loss_and_gradients(objective_of(model, multiple=28), model, rows)
    assert together == pytest.approx(apart, rel=1e-5)
    for parameter, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", MODELS)
def test_models_that_keep_documents_apart_pass_the_trial(name):
    check_documents_apart(objective_of(build(name)), build(name))


SMALL = {**SHAPE, "num_hidden_layers": 2}
STATEFUL = {
    "mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4),
    "lfm2": Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    "falcon_h1": FalconH1Config(
        **SMALL, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_state=8, mamba_d_head=8
    ),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_model_whose_documents_see_each_other_is_known_and_found_out(name):
    model = AutoModelForCausalLM.from_config(STATEFUL[name])
    assert carries_state(model)
    with pytest.raises(UserError, match=type(model).__name__):
        check_documents_apart(objective_of(model), model)


@pytest.mark.parametrize("name", MODELS)
def test_models_with_attention_alone_carry_no_state(name):
    assert not carries_state(build(name))
