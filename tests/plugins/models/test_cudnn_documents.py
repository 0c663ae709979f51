"""cuDNN's attention of documents: what its graphs are told, and what models do with it. On a CPU
its part is PyTorch's (`cudnn_by_pytorch`); `tests/gpu/test_compiled.py` has the kernels."""

import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from automodel_core.config.schema import Compile
from automodel_core.errors import UserError
from automodel_core.train.compiling import Compilation
from automodel_core.train.documents import teller
from automodel_core.train.recompute import checkpoint_activations
from automodel_core.train.step import prepare_micro_batch
from automodel_models import cudnn_plans
from automodel_models.attention import cudnn_attention, register_cudnn
from automodel_models.cudnn_documents import attend_within
from automodel_models.cudnn_plans import Shape
from tests.plugins.models import cudnn_by_pytorch
from tests.plugins.models.documents import by_documents

CPU = torch.device("cpu")
CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture(autouse=True)
def cudnn(monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", cudnn_by_pytorch)
    monkeypatch.setattr(cudnn_plans, "handle_of", lambda device: 1)
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    cudnn_plans.plans_for.cache_clear()
    cudnn_by_pytorch.pygraph.made = 0
    yield cudnn_by_pytorch
    cudnn_plans.plans_for.cache_clear()


def drawn(tokens, heads, width=8):
    made = torch.randn(tokens, heads, width, generator=torch.Generator().manual_seed(heads))
    return made.bfloat16().requires_grad_()


@pytest.mark.parametrize("bounds", [[0, 24], [0, 1, 9, 24], [0, 10, 24, 24, 24]], ids=str)
def test_documents_are_attended_to_each_by_itself_and_so_are_gradients(bounds):
    inputs = drawn(24, 4), drawn(24, 2), drawn(24, 2).detach().neg().requires_grad_()
    found = attend_within(*inputs, torch.tensor(bounds, dtype=torch.int32), 24)
    expected = by_documents(*inputs, bounds)
    gradient = torch.randn(24, 4, 8, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(found, inputs, gradient.bfloat16())
    right = torch.autograd.grad(expected, inputs, gradient.bfloat16().double())
    for one, other in zip([found, *ours], [expected, *right], strict=True):
        assert (one.double() - other.double()).norm() < 0.01 * other.double().norm()


def test_few_plans_serve_all_documents(cudnn):
    inputs = drawn(24, 4), drawn(24, 2), drawn(24, 2)
    for bounds in ([0, 24, 24], [0, 5, 24], [0, 23, 24]):
        for longest in (20, 24, 32):  # of 32 tokens for the plan
            told = torch.tensor(bounds, dtype=torch.int32)
            attend_within(*inputs, told, longest).sum().backward()
    assert cudnn.pygraph.made == 2


@pytest.mark.parametrize("same", [False, True])
def test_a_deterministic_run_asks_for_gradients_of_the_same_bits(same, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: same)
    inputs = drawn(24, 4), drawn(24, 2), drawn(24, 2)
    attend_within(*inputs, torch.tensor([0, 24], dtype=torch.int32), 24).sum().backward()
    shape = Shape.of(inputs[0], inputs[1], torch.ones(1), 24, 8**-0.5)
    given = cudnn_plans.plans_for(shape).backward.graph.given
    assert given["use_deterministic_algorithm"] is same


def test_the_operator_is_what_the_compiler_is_told():
    bounds = torch.tensor([0, 5, 24], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.automodel_models.attend_within.default,
        (drawn(24, 4), drawn(24, 2), drawn(24, 2), bounds.diff(), bounds * 32, bounds * 16,
         bounds * 4, 24, 0.3),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip


def batch_of(*rows):
    """Documents of these lengths, in rows of 64 tokens."""
    filled = [[i for document in row for i in range(document)] for row in rows]
    ids = torch.randint(1, 64, (len(rows), 64), generator=torch.Generator().manual_seed(len(rows)))
    real = torch.tensor([[1] * len(each) + [0] * (64 - len(each)) for each in filled])
    positions = torch.tensor([each + [0] * (64 - len(each)) for each in filled])
    labels = ids.masked_fill(real == 0, -100)
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": real}


def losses(attention, settings=None, recompute=None):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG), dtype=torch.bfloat16).train()
    model.set_attn_implementation(attention)
    checkpoint_activations(model, recompute)
    optimizer, found = torch.optim.SGD(model.parameters(), 0.5), []
    compilation = Compilation(settings)
    with compilation.layers_of(model, deterministic=False):
        for rows in ([[64], [64]], [[30, 34], [10, 20]], [[7] * 9, [64]], [[20, 44], [1, 63]]):
            batch = batch_of(*rows)
            ready = prepare_micro_batch(batch, CPU, documents=teller(model))
            logits = model(**ready.inputs, use_cache=False).logits.float()
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ready.labels.flatten(), ignore_index=-100
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
            compilation.step_done()
    return found, compilation


@pytest.mark.parametrize(
    "settings", [None, Compile(backend="aot_eager")], ids=["plain", "compiled"]
)
@pytest.mark.parametrize("recompute", [None, "selective", "full"])
def test_packed_rows_train_as_with_a_dense_mask_and_compile_once(settings, recompute):
    expected, _ = losses("eager")
    found, cost = losses(register_cudnn(), settings, recompute)
    assert found == pytest.approx(expected, rel=0.01)
    assert cost.recompiles == 0


def test_prompts_are_left_to_sdpa(cudnn):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG), dtype=torch.bfloat16).eval()
    ids = torch.tensor([[0, 0, 3, 4, 5], [6, 7, 8, 9, 10]])
    asked = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**asked, **settings)
    model.set_attn_implementation(register_cudnn())
    assert torch.equal(model.generate(**asked, **settings), expected)
    assert cudnn.pygraph.made == 0


@pytest.mark.parametrize(
    ("has", "name"),
    [
        ({"dropout": 0.1}, "attention_dropout"),
        ({"sliding_window": 4}, "sliding_window"),
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.ones(4)}, "s_aux"),
        ({"dtype": torch.float32}, "float32"),
    ],
)
def test_what_it_does_not_do_is_refused_by_name(has, name):
    query, key = torch.ones(1, 4, 8, 16).bfloat16(), torch.ones(1, 2, 8, 16).bfloat16()
    query, key = (each.to(has.get("dtype", each.dtype)) for each in (query, key))
    bounds = torch.tensor([0, 8], dtype=torch.int32)
    with pytest.raises(UserError, match=name):
        cudnn_attention(None, query, key, key, None, cu_seq_lens_q=bounds, **has)


def test_more_numbers_than_offsets_count_are_refused():
    query = torch.empty(2**17, 128, 128, device="meta")
    with pytest.raises(ValueError, match="counts up to"):
        attend_within(query, query, query, torch.zeros(2), 8)
