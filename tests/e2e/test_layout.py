"""The loss and the gradients of a step are those of its samples, however they are laid out."""

from functools import partial

import attrs
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from automodel_core.protocols import IGNORE_INDEX
from automodel_core.train.order import Layout, deal
from automodel_core.train.precision import plan_precision
from automodel_core.train.rows import supervised_rows
from automodel_core.train.step import Objective, accumulate_gradients, evaluate
from automodel_core.train.world import World
from automodel_datasets.collate import default_collater
from automodel_losses.fused_linear_ce import FusedLinearCrossEntropy
from automodel_losses.masked_ce import MaskedCrossEntropy

CPU = torch.device("cpu")
VOCABULARY, SAMPLES, TOLERANCE = 64, 12, 1e-5


def few(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )


def gpt2():
    """Absolute positions, which padding on the left moves unless they are given."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def objective(make_model, loss):
    torch.manual_seed(0)
    model = make_model()
    return Objective.of(model, model, loss, plan_precision(torch.float32, CPU), CPU, World())


@pytest.fixture(scope="module", params=["llama", "gpt2", "llama, fused_linear_ce"])
def goal(request):
    """A tiny model and its loss."""
    model, _, loss = request.param.partition(", ")
    make = {"llama": llama, "gpt2": gpt2}[model]
    if not loss:
        return objective(make, MaskedCrossEntropy())
    few_rows = partial(supervised_rows, tile=4)
    return attrs.evolve(objective(make, FusedLinearCrossEntropy(chunk_len=7)), rows_of=few_rows)


@pytest.fixture(scope="module")
def samples():
    """Of many lengths; each begins with a prompt, and one is all prompt."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(SAMPLES):
        length, prompt = 2 + (7 * number) % 23, 1 + number % 5
        ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        prompt = length if number == 5 else min(prompt, length - 1)
        labels = [IGNORE_INDEX] * prompt + ids[prompt:]
        made.append({"input_ids": ids, "labels": labels, "sample_id": number})
    return made


def gradients(goal, groups):
    """Loss and gradients of one step over ready batches."""
    goal.spread.zero_grad(set_to_none=True)
    ready = [goal.prepare(group) for group in groups]
    label_tokens = sum(each.label_tokens for each in ready)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss = accumulate_gradients(goal, ready, label_tokens, scaler)[0]
    return loss.item(), {name: p.grad for name, p in goal.spread.named_parameters()}


@pytest.fixture(scope="module")
def reference(goal, samples):
    """Every sample alone, in a row without a pad."""
    return gradients(goal, [default_collater([sample]) for sample in samples])


def largest_difference(found, expected):
    """Over all parameters: how far the gradient is off, by its own largest element."""
    return max(
        ((found[name] - grad).abs().max() / grad.abs().max()).item()
        for name, grad in expected.items()
    )


layouts = st.fixed_dictionaries(
    {
        "micro_batch": st.integers(1, SAMPLES),
        "padding_side": st.sampled_from(["right", "left"]),
        "pad_to_multiple_of": st.sampled_from([None, 8, 48]),
        "order": st.permutations(range(SAMPLES)),
    }
)
LEFT = {
    "micro_batch": SAMPLES,
    "padding_side": "left",
    "pad_to_multiple_of": 48,
    "order": list(range(SAMPLES)),
}


@example(layout=LEFT)
@given(layout=layouts)
@few(12)
def test_loss_and_gradients_of_a_step_are_those_of_its_samples(goal, samples, reference, layout):
    layout = dict(layout)
    micro_batch, order = layout.pop("micro_batch"), layout.pop("order")
    dealt = deal(order, Layout(micro_batch, grad_acc_steps=-(-SAMPLES // micro_batch)))
    batches = [default_collater([samples[i] for i in indices], **layout) for indices in dealt]
    loss, grads = gradients(goal, batches)
    assert loss == pytest.approx(reference[0], rel=TOLERANCE)
    assert largest_difference(grads, reference[1]) < TOLERANCE


@given(cut=st.integers(1, SAMPLES - 1))
@few(4)
def test_a_short_last_step_is_divided_by_its_own_tokens(goal, samples, cut):
    rest = samples[cut:]
    alone = gradients(goal, [default_collater([sample]) for sample in rest])
    together = gradients(goal, [default_collater(rest)])
    assert together[0] == pytest.approx(alone[0], rel=TOLERANCE, nan_ok=True)
    if any(label != IGNORE_INDEX for sample in rest for label in sample["labels"]):
        assert largest_difference(together[1], alone[1]) < TOLERANCE


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_validation_is_the_same_whatever_the_batch(goal, samples, size, side):
    def loss(size, **collate):
        parts = (samples[i : i + size] for i in range(0, SAMPLES, size))
        batches = (default_collater(part, **collate) for part in parts)
        return evaluate(goal, (goal.prepare(batch) for batch in batches))

    alone, label_tokens = loss(1)
    assert loss(size, padding_side=side) == (pytest.approx(alone, rel=1e-6), label_tokens)


def test_the_samples_tell_a_mean_of_means_and_moved_positions_apart(goal, samples, reference):
    """The faults that the properties above are there to find do show in these samples."""
    alone = [default_collater([s]) for s in samples if set(s["labels"]) != {IGNORE_INDEX}]
    means = [gradients(goal, [batch])[0] for batch in alone]
    assert abs(sum(means) / len(means) - reference[0]) > 10 * TOLERANCE * reference[0]
    if isinstance(goal.spread, GPT2LMHeadModel):
        moved = default_collater(samples, padding_side="left")
        moved["position_ids"] = torch.arange(1, 1 + moved["input_ids"].shape[1]).expand(SAMPLES, -1)
        _, grads = gradients(goal, [moved])
        assert largest_difference(grads, reference[1]) > 100 * TOLERANCE
