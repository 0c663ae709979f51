"""Layers that compute again: the same losses and gradients, and less that is kept for them."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_core.config.schema import EveryLayer
from automodel_core.errors import UserError
from automodel_core.train.recompute import checkpoint_activations

CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**CONFIG)).train()


def step(choice):
    """The gradients, and the products that were computed, by PyTorch's own count."""
    model, products = llama(), 0
    checkpoint_activations(model, choice)

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            nonlocal products
            products += operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
            return operation(*args, **(kwargs or {}))

    ids = torch.arange(32).view(2, 16)
    with Counted():
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, products


@pytest.fixture(scope="module")
def plain():
    return step(None)


# Of the seven products of a layer, those computed again; four layers.
AGAIN = {"full": 28, True: 28, EveryLayer(every=2): 14, "selective": 0, False: 0}


@pytest.mark.parametrize("choice", AGAIN, ids=str)
def test_gradients_are_the_same_and_as_many_products_as_promised_are_computed_again(plain, choice):
    gradients, products = step(choice)
    torch.testing.assert_close(gradients, plain[0])
    # PyTorch stops computing again at the last tensor that is needed, so the layer's last is not.
    again = AGAIN[choice]
    assert again - again // 7 <= products - plain[1] <= again


def test_no_parameter_is_renamed_and_evaluation_keeps_its_cache():
    model = llama()
    names = list(model.state_dict())
    checkpoint_activations(model, "full")
    assert list(model.state_dict()) == names
    model.eval()
    output = model(input_ids=torch.arange(8)[None], use_cache=True)
    assert output.past_key_values.get_seq_length() == 8


def test_a_model_without_layers_is_refused():
    model = llama()
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(UserError, match="has no list of layers"):
        checkpoint_activations(model, "full")
