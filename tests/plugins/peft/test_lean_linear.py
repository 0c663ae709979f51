"""A frozen linear layer and its LoRA in one function, by every method, against float64.

Triton's interpreter runs the kernels where there is no GPU.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from automodel_core.config.schema import Compile
from automodel_core.errors import UserError
from automodel_core.train.compiling import Compilation
from automodel_core.train.recompute import checkpoint_activations
from automodel_peft.layers import LayerSettings, LoraLinear, adapt_in_place
from automodel_peft.lean_linear import METHODS, lora_linear
from automodel_peft.lora import PeftConfig
from tests.plugins.peft.models import llama, tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Tokens, features in and out, rank: beyond whole tiles, and several parts of a sum.
SHAPES = [(5, 7, 9, 3), (130, 150, 70, 17), (96, 32, 300, 64)]


@pytest.fixture(params=METHODS)
def method(request):
    if METHODS[request.param]:
        pytest.importorskip("triton")
    return request.param


def drawn(tokens, features_in, features_out, rank, dtype=torch.float32):
    """x, W, bias, A and B; W and the bias are frozen."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(tokens, features_in), (features_out, features_in), (features_out,),
             (rank, features_in), (features_out, rank)]  # fmt: skip
    made = [torch.randn(size, generator=generator).to(DEVICE) for size in sizes]
    made[:3] = [each.to(dtype) for each in made[:3]]
    return [each.requires_grad_(number not in (1, 2)) for number, each in enumerate(made)]


def run(function, tensors):
    """The result and the gradients of x, A and B."""
    leaves = [each.detach().clone().requires_grad_(each.requires_grad) for each in tensors]
    result = function(*leaves)
    weights = torch.linspace(-1, 1, result.numel(), device=DEVICE, dtype=torch.float64)
    (result * weights.view(result.shape).to(result.dtype)).sum().backward()
    return [result.detach(), *(each.grad for each in leaves if each.requires_grad)]


def by(method):
    def function(x, weight, bias, a, b):
        return lora_linear(x, weight, bias, (a, b), torch.tensor(0.5, device=DEVICE), method)

    return function


def exact(x, weight, bias, a, b):
    return x @ weight.t() + bias + 0.5 * (x @ a.t()) @ b.t()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_product_and_so_are_its_gradients(method, shape):
    tensors = drawn(*shape)
    found = run(by(method), tensors)
    for ours, right in zip(found, run(exact, [t.double() for t in tensors]), strict=True):
        assert ours.shape == right.shape
        assert (ours - right).norm() < 2e-6 * right.norm()


def test_float32_factors_beside_float16(method):
    tensors = drawn(96, 32, 48, 5, dtype=torch.float16)
    found = run(by(method), tensors)
    assert [each.dtype for each in found] == 2 * [torch.float16] + 2 * [torch.float32]
    for ours, right in zip(found, run(exact, [t.double() for t in tensors]), strict=True):
        assert (ours - right).norm() < 3e-3 * right.norm()


def test_a_second_time_gives_the_same_bits(method):
    tensors = drawn(*SHAPES[1])
    assert all(map(torch.equal, run(by(method), tensors), run(by(method), tensors)))


def test_a_frozen_input_gets_no_gradient(method):
    x, *others = drawn(*SHAPES[0])
    by(method)(x.detach(), *others).sum().backward()
    assert others[2].grad is not None
    assert x.grad is None


def test_an_expert_without_tokens_has_gradients_of_zero(method):
    x, *others = drawn(*SHAPES[0])
    x = x.detach()[:0].requires_grad_()
    by(method)(x, *others).sum().backward()
    assert x.grad.shape == x.shape
    assert not others[2].grad.any()
    assert not others[3].grad.any()


def test_it_takes_batches_and_gradients_that_lie_apart(method):
    x, *others = drawn(24, 16, 8, 4)
    batch = x.detach().view(2, 12, 16).transpose(0, 1)
    found = by(method)(batch, *others).transpose(0, 1)
    torch.testing.assert_close(found.reshape(24, 8), exact(x, *others), rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    expected = torch.autograd.grad(exact(x, *others).square().sum(), others[2])[0]
    torch.testing.assert_close(others[2].grad, expected, rtol=1e-4, atol=1e-3)


def test_it_is_the_same_under_activation_checkpointing(method):
    tensors = drawn(*SHAPES[0])

    def again(*leaves):
        return checkpoint(by(method), *leaves, use_reentrant=False)

    assert all(map(torch.equal, run(by(method), tensors), run(again, tensors)))


def test_the_operators_are_what_the_compiler_is_told():
    x, weight, bias, a, b = (each.detach() for each in drawn(*SHAPES[0]))
    reduced = x @ a.t()
    operators, check = torch.ops.automodel_peft, torch.library.opcheck
    check(operators.lora_product.default, (x, weight, bias, reduced, b, False))
    check(operators.lora_product.default, (x, weight, None, reduced, b, False))
    pytest.importorskip("triton")
    check(operators.lora_product.default, (x, weight, bias, reduced, b, True))
    check(operators.lora_reduce.default, (x, a))
    check(operators.lora_gradient.default, (x, reduced, True))
    check(operators.lora_reduce_and_gradient.default, (x @ weight.t(), b, reduced))


@pytest.mark.parametrize("needs_x", [False, True])
def test_torch_counts_the_operations_of_its_products(needs_x):
    x, weight, bias, a, b = drawn(6, 8, 16, 2)
    x = x.detach().requires_grad_(needs_x)
    with FlopCounterMode(display=False) as counter:
        by("lean")(x, weight, bias, a, b).sum().backward()
    frozen, of_a, of_b = (2 * 6 * size for size in (8 * 16, 8 * 2, 2 * 16))
    backward = of_a + 2 * of_b + needs_x * (frozen + of_a)
    assert counter.get_total_flops() == frozen + of_a + of_b + backward


def layer(method, dtype=torch.float32, demanded=False):
    torch.manual_seed(0)
    made = nn.Linear(24, 16).to(DEVICE, dtype).requires_grad_(False)
    adapt_in_place(made, LoraLinear, LayerSettings(
        rank=4, alpha=8, scale=2.0, dropout=0.0, dtype=torch.float32, seed=1, method=method,
        demanded=demanded,
    ))  # fmt: skip
    nn.init.normal_(made.lora_B)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_the_plain_layer_and_compiles_into_one_graph(dtype):
    def stepped(made, called):
        x = torch.linspace(-1, 1, 240, device=DEVICE).view(2, 5, 24).to(dtype).requires_grad_()
        y = called(x)
        y.square().sum().backward()
        return [y.detach(), x.grad, made.lora_A.grad, made.lora_B.grad]

    plain, lean, other = layer("plain", dtype), layer("lean", dtype), layer("lean", dtype)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    expected, found = stepped(plain, plain), stepped(lean, lean)
    assert all(map(torch.equal, found, stepped(other, compiled)))
    for ours, right in zip(found, expected, strict=True):
        assert ours.dtype == right.dtype
        assert (ours - right).norm() < (1e-5 if dtype == torch.float32 else 0.02) * right.norm()


@pytest.mark.parametrize("compiled", [False, True])
def test_what_was_demanded_is_refused_where_it_cannot_be(compiled):
    made, x = layer("lean", demanded=True), torch.ones(2, 24, device=DEVICE)
    called = torch.compile(made, backend="eager") if compiled else made
    called(x)
    with torch.autocast(DEVICE, torch.bfloat16), pytest.raises(UserError, match="autocast"):
        called(x)
    made.weight.requires_grad_(True)
    with pytest.raises(UserError, match="trains as a whole") as raised:
        made(x)
    assert raised.value.argument == "use_triton"
    made.weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"of torch.float32 is given torch.float64"):
        made(x.double())

    class Quantised(torch.Tensor):
        pass

    made.weight = nn.Parameter(made.weight.as_subclass(Quantised), requires_grad=False)
    with pytest.raises(UserError, match="weight is a Quantised"):
        made(x)


def test_what_cannot_be_and_was_not_demanded_is_computed_all_the_same():
    made, plain, x = layer("lean"), layer("plain"), torch.ones(2, 24, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(made(x), plain(x))


def model_with(method, recompute=None):
    """A model whose adapted layers compute that way, on the CPU."""
    model = llama().train()
    PeftConfig(dim=4).apply(model)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_method = method
            nn.init.normal_(module.lora_B, generator=torch.Generator().manual_seed(0))
    checkpoint_activations(model, recompute)
    return model


def gradients(model):
    ids = tokens()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


# Of 14 layers three are given the frozen embedding.
IN_BACKWARD = 11


@pytest.mark.parametrize(("recompute", "again"), [("selective", 0), ("full", 14)])
def test_selective_activation_checkpointing_keeps_its_result(recompute, again):
    model, products = model_with("lean", recompute), 0

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            nonlocal products
            products += operation is torch.ops.automodel_peft.lora_product.default
            return operation(*args, **(kwargs or {}))

    with Counted():
        found = gradients(model)
    assert products == 14 + again + IN_BACKWARD
    for name, right in gradients(model_with("plain")).items():
        torch.testing.assert_close(found[name], right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("recompute", "again"), [(None, 0), ("selective", 0), ("full", 12)])
def test_a_decoder_layer_compiles_into_one_graph(recompute, again):
    """Computed again in full, each of the two does without its last product."""
    model = model_with("lean", recompute)
    compilation = Compilation(Compile(backend="aot_eager", fullgraph=True))
    with compilation.layers_of(model, deterministic=False):
        gradients(model)  # compiles
        model.zero_grad()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            found = gradients(model)
    products = {event.key: event.count for event in profile.key_averages()}
    assert products["automodel_peft::lora_product"] == 14 + again + IN_BACKWARD
    assert compilation.graphs == 2  # nothing before the first layer trains
    for name, right in gradients(model_with("plain")).items():
        torch.testing.assert_close(found[name], right, rtol=1e-4, atol=1e-5)
