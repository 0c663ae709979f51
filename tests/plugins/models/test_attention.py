"""What computes attention: what the YAML asks for, or what was measured fastest; never silently
something else."""

import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from transformers import (
    BloomForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
)
from transformers.models.llama import modeling_llama

from automodel_core.config.schema import Compile
from automodel_core.errors import UserError
from automodel_core.train.compiling import Compilation
from automodel_core.train.recompute import checkpoint_activations
from automodel_models.attention import (
    FASTEST_FIRST,
    FLEX,
    Attention,
    choose_attention,
    for_documents,
)
from automodel_models.liger import _classes_kept, check_liger
from automodel_models.text import from_config, from_pretrained
from tests.plugins.distributed.training import Case, build_model

WIDE = LlamaConfig()
FLASH_ON_CPU = "aten::_scaled_dot_product_flash_attention_for_cpu"


def choose(asked="auto", patching="auto", method=None, dtype="auto", images=False):
    return choose_attention(asked, patching, method, dtype, images=images)


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("automodel_models.attention.cudnn_version", lambda: 0)


@pytest.fixture
def cudnn(hopper, monkeypatch):
    monkeypatch.setattr("automodel_models.attention.cudnn_version", lambda: 91900)


def test_auto_leaves_transformers_its_choice_on_the_cpu(llama_folder):
    assert choose() == Attention()
    source = from_pretrained(str(llama_folder), attn_implementation="auto", packed=True)
    assert source.empty_model().config._attn_implementation == "sdpa"
    assert source.choices == ()


def test_auto_takes_what_measured_fastest_on_hopper_and_says_so(hopper):
    rows = choose()
    documents = for_documents(rows, WIDE, LlamaForCausalLM)
    assert (rows.implementation, rows.kernels) == (None, FASTEST_FIRST)
    assert rows.choices == (
        "attention: SDPA tries cudnn, flash, efficient, math, the fastest order on Hopper",
    )
    assert documents.implementation == "flex_attention"
    assert documents.choices == ("attention: flex, the fastest for rows of several documents",)
    assert for_documents(rows, LlamaConfig(hidden_size=64), LlamaForCausalLM) is rows  # heads of 2
    assert for_documents(rows, LlamaConfig(attention_dropout=0.1), LlamaForCausalLM) is rows
    assert for_documents(rows, WIDE, BloomForCausalLM) is rows  # which transformers has no flex for
    assert for_documents(rows, Gemma3Config(), Gemma3ForConditionalGeneration) is rows  # sees
    assert for_documents(choose("eager"), WIDE, LlamaForCausalLM).implementation == "eager"
    assert choose(patching=False).kernels == ()
    assert choose("eager").choices == ()


def test_auto_takes_cudnn_for_documents_where_it_measured_faster(cudnn, monkeypatch):
    def chosen(config=WIDE, dtype=torch.bfloat16):
        return for_documents(choose(), config, LlamaForCausalLM, dtype).implementation

    assert chosen() == "cudnn"
    assert chosen(LlamaConfig(dtype="bfloat16"), "auto") == "cudnn"
    assert chosen(LlamaConfig(dtype="float32"), "auto") == chosen(dtype=torch.float32) == FLEX
    assert chosen(LlamaConfig(head_dim=256)) == FLEX
    assert chosen(MistralConfig(sliding_window=128)) == FLEX
    assert chosen(LlamaConfig(attn_logit_softcapping=30.0)) == FLEX
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    assert chosen() == FLEX


def test_cudnn_needs_its_package_and_halves_and_has_no_images(hopper):
    with pytest.raises(UserError, match="nvidia-cudnn-frontend"):
        choose("cudnn")
    with pytest.raises(UserError, match="is for text"):
        choose("cudnn", images=True)


def test_cudnn_has_no_float32(cudnn):
    assert choose("cudnn").implementation == "cudnn"
    with pytest.raises(UserError, match="not float32"):
        choose("cudnn", dtype=torch.float32)


@pytest.mark.parametrize("name", ["flex", "flex_attention", "varlen", "cudnn"])
@pytest.mark.parametrize("build", [from_pretrained, from_config])
def test_what_needs_a_gpu_is_refused_without_one(build, name):
    with pytest.raises(UserError, match="needs a GPU") as refused:
        build("anything", attn_implementation=name)
    assert refused.value.argument == "attn_implementation"


def test_varlen_has_no_float32_and_no_images(hopper):
    with pytest.raises(UserError, match="not float32"):
        choose("varlen", dtype=torch.float32)
    with pytest.raises(UserError, match="is for text"):
        choose("varlen", images=True)


@pytest.mark.parametrize(
    ("patching", "method", "says"),
    [
        (True, ["warp"], "no kernel warp"),
        (True, ["cudnn"], "no kernel that works here"),
        (True, [], "no kernel that works here"),
        (False, ["math"], "says not to use"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(patching, method, says):
    with pytest.raises(UserError, match=says) as refused:
        choose(patching=patching, method=method)
    assert refused.value.argument == "sdpa_method"


@pytest.mark.parametrize("written", ["CUDNN_ATTENTION", "SDPBackend.CUDNN_ATTENTION", "cudnn"])
def test_kernels_by_any_of_their_names(hopper, written):
    assert choose(method=[written, "MATH"]).kernels == ("cudnn", "math")


def test_the_order_is_as_before_afterwards():
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with Attention(kernels=("math", "flash")).running():
        inside = _cur_sdpa_kernel_backends(with_priority=True)
        assert inside == [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


def kernels_of_a_step(kernels):
    """Attention of compiled layers that compute again, by PyTorch's profiler."""
    model = build_model(Case(config={"num_hidden_layers": 1})).train()
    checkpoint_activations(model, "full")
    ids = torch.arange(64)[None]
    compilation = Compilation(Compile(backend="aot_eager"))
    with (
        Attention(kernels=kernels).running(),
        compilation.layers_of(model, deterministic=False),
        torch.profiler.profile() as profile,
    ):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return sum(each.count for each in profile.key_averages() if each.key == FLASH_ON_CPU)


def test_the_order_acts_in_compiled_layers_and_when_they_compute_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert kernels_of_a_step(("flash", "math")) > 0
    assert kernels_of_a_step(("math",)) == 0


def test_liger_is_refused_by_name_where_it_cannot_be_had(monkeypatch, llama_folder):
    config = from_pretrained(str(llama_folder)).config
    assert check_liger("auto", config) is check_liger(False, config) is False
    monkeypatch.setattr("automodel_models.liger.find_spec", lambda package: None)
    with pytest.raises(UserError, match="liger-kernel, which isn't installed") as refused:
        from_pretrained(str(llama_folder), use_liger_kernel=True)
    assert refused.value.argument == "use_liger_kernel"
    assert "pip install liger-kernel" in refused.value.fix


def test_what_liger_puts_into_transformers_does_not_stay_there():
    own = modeling_llama.LlamaMLP
    with _classes_kept():
        modeling_llama.LlamaMLP = object
    assert modeling_llama.LlamaMLP is own
