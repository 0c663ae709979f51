"""Options that are refused before anything is read."""

import pytest
import torch

from automodel_core.errors import UserError
from automodel_models.text import from_config, from_pretrained


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("auto", "auto"),
        ("bfloat16", torch.bfloat16),
        ("torch.bfloat16", torch.bfloat16),
        ("torch.float16", torch.float16),
        ("float32", torch.float32),
    ],
)
def test_torch_dtype(llama_folder, written, meant):
    assert from_pretrained(str(llama_folder), torch_dtype=written).torch_dtype == meant


@pytest.mark.parametrize("written", ["int8", "bf16", "torch.bfloat17"])
def test_other_dtypes_are_refused(written):
    with pytest.raises(UserError, match=f"{written} is no dtype") as refused:
        from_pretrained("anything", torch_dtype=written)
    assert refused.value.argument == "torch_dtype"


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attn_implementation_reaches_the_model(llama_folder, name):
    source = from_pretrained(str(llama_folder), attn_implementation=name)
    model = source.load_model(torch.float32, torch.device("cpu"))
    assert model.config._attn_implementation == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("flash_attention_2", "needs the package flash_attn"),
        ("kernels-community/flash-attn3", "fetched and run"),
        ("telepathy", "no attention called telepathy"),
    ],
)
@pytest.mark.parametrize("build", [from_pretrained, from_config])
def test_other_attentions_are_refused_with_the_one_that_works(build, name, says, monkeypatch):
    monkeypatch.setattr("automodel_models.attention.find_spec", lambda package: None)
    with pytest.raises(UserError, match=says) as refused:
        build("anything", attn_implementation=name)
    assert refused.value.argument == "attn_implementation"
    assert "sdpa" in refused.value.fix
