"""Compiled layers, attention and recomputation on one GPU follow their plain references."""

import pytest
import torch

from automodel_core.config.schema import Compile, EveryLayer
from automodel_core.train.compiling import Compilation
from automodel_core.train.documents import teller
from automodel_core.train.recompute import checkpoint_activations
from automodel_core.train.step import prepare_micro_batch
from automodel_models.attention import Attention, register_cudnn, register_flex, register_varlen
from automodel_peft.dora import Dora
from automodel_peft.lora import PeftConfig
from tests.plugins.distributed.training import Case, build_model

pytestmark = pytest.mark.gpu
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
LENGTHS = [128, 64, 192, 256, 128, 320]
CUDNN = "aten::_scaled_dot_product_cudnn_attention"


def model_of(attention="sdpa", family="Llama"):
    torch.manual_seed(0)
    model = build_model(Case(family=family, config=WIDE)).to("cuda", torch.bfloat16).train()
    model.set_attn_implementation(attention)
    return model


def trained(model, settings=None, recompute=None, adapter=None, kernels=()):
    """Losses over batches of many lengths, and what compiling cost."""
    if adapter:
        adapter.apply(model)
    checkpoint_activations(model, recompute)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    compilation, losses = Compilation(settings), []
    torch.manual_seed(1)
    with Attention(kernels=kernels).running(), compilation.layers_of(model, deterministic=False):
        for length in LENGTHS:
            ids = torch.randint(0, 90, (2, length), generator=torch.Generator().manual_seed(length))
            ids = ids.cuda()
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            compilation.step_done()
    return losses, compilation


ADAPTERS = {
    "full": (None, 1),
    "lora": (lambda: PeftConfig(dim=8, dropout=0.1), 2),
    "dora": (lambda: Dora(dim=8), 2),
}


@pytest.mark.parametrize("recompute", [None, "full", "selective", EveryLayer(every=2)], ids=str)
@pytest.mark.parametrize("name", ADAPTERS)
def test_compiled_layers_follow_plain_ones_at_two_graphs_for_all_lengths(name, recompute):
    make, graphs = ADAPTERS[name]
    plain, _ = trained(model_of(), recompute=recompute, adapter=make and make())
    losses, cost = trained(model_of(), Compile(), recompute, make and make())
    assert losses == pytest.approx(plain, rel=0.02)
    kinds = 2 if isinstance(recompute, EveryLayer) else 1  # layers that recompute, and others
    assert cost.graphs <= 2 * graphs * kinds


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma3"])
@pytest.mark.parametrize("settings", [None, Compile()], ids=["plain", "compiled"])
@pytest.mark.parametrize("attention", ["flex", "varlen", "cudnn"])
def test_every_attention_follows_sdpa(attention, settings, family):
    if attention == "varlen" and family == "Gemma3":
        pytest.skip("its layers with windows have other masks")
    plain, _ = trained(model_of(family=family))
    name = {"flex": register_flex, "varlen": register_varlen}.get(attention, lambda: "sdpa")()
    kernels = ("cudnn", "flash", "efficient", "math") if attention == "cudnn" else ()
    losses, _ = trained(model_of(name, family), settings, kernels=kernels)
    assert losses == pytest.approx(plain, rel=0.02)


# By name, what tells documents; cuDNN's needs a package.
TOLD = {"flex": register_flex, "varlen": register_varlen, "cudnn": register_cudnn}


@pytest.fixture(params=TOLD)
def register(request):
    if request.param == "cudnn":
        pytest.importorskip("cudnn")
    return TOLD[request.param]


def packed_batch(*documents):
    """Two rows of documents of these lengths each."""
    positions = torch.cat([torch.arange(each) for each in documents]).repeat(2, 1)
    drawn = torch.Generator().manual_seed(len(documents))
    ids = torch.randint(0, 90, positions.shape, generator=drawn)
    real = torch.ones_like(ids)
    return {"input_ids": ids, "labels": ids, "position_ids": positions, "attention_mask": real}


def packed_logits(attention, autocast):
    """Two documents in each row, of a model in bfloat16 or in float32 under autocast."""
    model = model_of(attention).to(torch.float32 if autocast else torch.bfloat16)
    device = torch.device("cuda")
    told = prepare_micro_batch(packed_batch(100, 156), device, documents=teller(model)).inputs
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        return model(use_cache=False, **told).logits.float()


@pytest.mark.parametrize("autocast", [False, True])
def test_documents_in_a_row_see_only_themselves(register, autocast):
    expected = packed_logits("eager", autocast)
    found = packed_logits(register(), autocast)
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


def packed_gradients(attention, dtype, settings=None):
    """Of all weights, of rows that are longer than many of attention's blocks."""
    model = model_of(attention).to(dtype)
    batch = packed_batch(100, 300, 24, 512, 88)
    ready = prepare_micro_batch(batch, torch.device("cuda"), documents=teller(model))
    with Compilation(settings).layers_of(model, deterministic=False):
        logits = model(use_cache=False, **ready.inputs).logits.float()
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ready.labels.flatten(), ignore_index=-100
        ).backward()
    return torch.cat([each.grad.float().flatten() for each in model.parameters()])


@pytest.mark.parametrize("settings", [None, Compile()], ids=["plain", "compiled"])
def test_gradients_of_packed_rows_are_those_of_a_dense_mask(register, settings):
    expected = packed_gradients("eager", torch.float32)
    found = packed_gradients(register(), torch.bfloat16, settings)
    assert (found - expected).norm() < 0.03 * expected.norm()


def packed_training(attention, settings):
    """Losses over rows of ever other documents, and what compiling cost. Compiled, a step is asked
    for nothing that the host would wait for once everything is set up."""
    model, losses = model_of(attention), []
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    compilation, cuda = Compilation(settings), torch.device("cuda")
    with compilation.layers_of(model, deterministic=False):
        for documents in ([512], [100, 412], [60] * 8 + [32], [256, 256], [200, 12, 300]):
            batch = packed_batch(*documents)
            watched = settings is not None and len(losses) > 1
            torch.cuda.set_sync_debug_mode("error" if watched else "default")
            ready = prepare_micro_batch(batch, cuda, documents=teller(model))
            logits = model(use_cache=False, **ready.inputs).logits.float()
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ready.labels.flatten(), ignore_index=-100
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.cuda.set_sync_debug_mode("default")
            losses.append(loss.item())
            compilation.step_done()
    return losses, compilation


def test_packed_rows_train_as_with_a_dense_mask_and_compile_once(register):
    expected, _ = packed_training("eager", None)
    losses, cost = packed_training(register(), Compile())
    assert losses == pytest.approx(expected, rel=0.02)
    assert cost.recompiles == 0


@pytest.mark.parametrize("settings", [None, Compile()], ids=["plain", "compiled"])
def test_the_order_of_sdpas_kernels_acts_in_layers_of_every_kind(settings):
    """Also where the compiler's cache holds the same layer for another order."""
    ran = []
    for kernels in [("cudnn", "flash", "math"), ("flash", "math"), ("cudnn", "math")]:
        model = model_of()
        checkpoint_activations(model, "full")
        ids = torch.arange(64, device="cuda")[None]
        compilation = Compilation(settings)
        with (
            Attention(kernels=kernels).running(),
            compilation.layers_of(model, deterministic=False),
        ):
            for profiled in (False, True):
                with torch.profiler.profile() as profile:
                    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
                if profiled:
                    names = {each.key for each in profile.key_averages()}
                    ran.append(CUDNN in names)
    assert ran == [True, False, True]


def test_liger_follows_the_models_own_layers_and_touches_no_other_model():
    pytest.importorskip("liger_kernel")
    from automodel_models.liger import use_liger

    plain, _ = trained(model_of())
    patched = model_of()
    names = list(patched.state_dict())
    use_liger(patched)
    losses, _ = trained(patched)
    assert losses == pytest.approx(plain, rel=0.02)
    assert list(patched.state_dict()) == names
    assert trained(model_of())[0] == pytest.approx(plain, rel=1e-3)


def test_a_run_is_compiled_from_the_yaml_and_says_so(automodel):
    changes = {"step_scheduler": {"max_steps": 6}, "checkpoint": {"enabled": False}}
    plain = automodel({**changes, "compile": False}, folder="plain")
    run = automodel({**changes, "compile": True}, folder="compiled")
    assert run.code == 0, run.out
    assert "compiled " in run.out
    assert run.losses == pytest.approx(plain.losses, rel=0.02)
    auto = automodel(changes, folder="auto")
    assert "compile: auto is off. 6 steps" in auto.out
