"""What a model source knows before weights are read, and what it loads."""

import json
import types

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from automodel_core.errors import UserError
from automodel_models.text import from_config, from_pretrained
from tests.tiny import tiny_llama

CPU = torch.device("cpu")
SMALL = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def logits(model):
    return model.eval()(torch.arange(20)[None]).logits


def test_a_source_is_known_without_its_weights(own_folder):
    weights = own_folder / "model.safetensors"
    expected = weights.stat().st_size
    source = from_pretrained(str(own_folder))
    weights.unlink()  # nothing below needs them
    assert source.name == str(own_folder)
    assert source.revision is None
    assert source.config.model_type == "llama"
    assert source.torch_dtype == "auto"
    assert source.weight_bytes == expected
    assert source.parameter_count == 30_880
    assert source.load_processor() is None
    assert len(source.load_tokenizer()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loaded_model_is_transformers_own_in_the_plans_dtype(llama_folder, dtype):
    model = from_pretrained(str(llama_folder)).load_model(dtype, CPU)
    expected = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=0)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_model_in_several_files_is_the_same_model(llama_folder, sharded_folder):
    assert len(list(sharded_folder.glob("*.safetensors"))) > 1
    whole, sharded = (from_pretrained(str(f)) for f in (llama_folder, sharded_folder))
    assert sharded.weight_bytes == sum(
        path.stat().st_size for path in sharded_folder.glob("*.safetensors")
    )
    torch.testing.assert_close(
        logits(sharded.load_model(torch.float32, CPU)), logits(whole.load_model(torch.float32, CPU))
    )


def test_a_checkpoints_weights_are_taken_instead(llama_folder, tmp_path):
    later = tiny_llama(tmp_path / "later", seed=7)
    model = from_pretrained(str(llama_folder)).load_model(torch.float32, CPU, tmp_path / "later")
    torch.testing.assert_close(logits(model), logits(later))


def test_the_generation_config_survives(own_folder, tmp_path):
    GenerationConfig(max_new_tokens=17, do_sample=True, temperature=0.6).save_pretrained(own_folder)
    from_pretrained(str(own_folder)).load_model(torch.float32, CPU).save_pretrained(tmp_path / "s")
    saved = GenerationConfig.from_pretrained(tmp_path / "s")
    assert (saved.max_new_tokens, saved.do_sample, saved.temperature) == (17, True, 0.6)


@pytest.mark.parametrize(
    "contradiction", [{"temperature": 0.6}, {"temperature": 0.6, "top_p": 0.9}]
)
def test_contradicting_generation_settings_can_be_saved_again(own_folder, tmp_path, contradiction):
    """As Llama 2 was published: a temperature, and no sampling."""
    settings = {"do_sample": False, **contradiction}
    (own_folder / "generation_config.json").write_text(json.dumps(settings))
    from_pretrained(str(own_folder)).load_model(torch.float32, CPU).save_pretrained(tmp_path / "s")
    assert GenerationConfig.from_pretrained(tmp_path / "s").temperature == 0.6


def test_the_tokenizer_is_left_as_it_is(llama_folder):
    tokenizer = from_pretrained(str(llama_folder)).load_tokenizer()
    expected = AutoTokenizer.from_pretrained(llama_folder)
    assert tokenizer.pad_token is None
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert tokenizer.chat_template == expected.chat_template


def test_a_larger_tokenizer_is_refused_unless_rows_may_be_added(llama_folder):
    source = from_pretrained(str(llama_folder))
    model, tokenizer = source.load_model(torch.float32, CPU), source.load_tokenizer()
    source.check_vocabulary(model, tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"<new {number}>" for number in range(rows - len(tokenizer) + 3)])
    with pytest.raises(UserError, match=f"{rows + 3} tokens and the model embeds only {rows}") as e:
        source.check_vocabulary(model, tokenizer)
    assert e.value.argument == "resize_embeddings"
    assert "resize_embeddings: true" in e.value.fix
    allowed = from_pretrained(str(llama_folder), resize_embeddings=True)
    allowed.check_vocabulary(model, tokenizer)
    assert model.config.vocab_size == model.lm_head.weight.shape[0] == rows + 3


def test_hf_kwargs_change_the_configuration(llama_folder):
    source = from_pretrained(str(llama_folder), hf_kwargs={"attention_dropout": 0.25})
    assert source.config.attention_dropout == 0.25
    assert source.load_model(torch.float32, CPU).config.attention_dropout == 0.25


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention_dropot": 0.1}, "no key attention_dropot"),
        ({"dtype": "float16"}, "can't set dtype"),
        ({"use_kernels": True}, "no key use_kernels"),
        ({"trust_remote_code": True}, "no key trust_remote_code"),
    ],
)
def test_hf_kwargs_that_are_no_keys_of_the_configuration_are_refused(llama_folder, changes, says):
    with pytest.raises(UserError, match=says) as refused:
        from_pretrained(str(llama_folder), hf_kwargs=changes)
    assert refused.value.argument == "hf_kwargs"


def test_transformers_is_as_loud_afterwards_as_before(llama_folder, capfd):
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    from_pretrained(str(llama_folder)).load_model(torch.float32, CPU)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


# GGUF


def test_a_gguf_is_found_as_a_file_and_in_a_folder(llama_gguf):
    for name in (llama_gguf, llama_gguf.parent):
        source = from_pretrained(str(name))
        assert source.parameter_count == 30_880
        assert source.weight_bytes == llama_gguf.stat().st_size


def test_a_gguf_is_dequantized_trains_and_saves_as_a_plain_model(
    llama_gguf, llama_folder, tmp_path
):
    source = from_pretrained(str(llama_gguf))
    model = source.load_model(torch.float32, CPU)
    original = from_pretrained(str(llama_folder)).load_model(torch.float32, CPU)
    torch.testing.assert_close(logits(model), logits(original), rtol=0.05, atol=0.01)
    model(torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(reopened), logits(model))
    assert source.load_model(torch.bfloat16, CPU).dtype == torch.bfloat16


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="older versions take other tokens for a GGUF's special ones; the next test",
)
def test_a_ggufs_tokenizer_spells_as_the_original(llama_gguf, llama_folder):
    tokenizer = from_pretrained(str(llama_gguf)).load_tokenizer()
    original = AutoTokenizer.from_pretrained(llama_folder)
    text = "Question: where does the river run?<|im_end|>"
    assert tokenizer(text).input_ids == original(text).input_ids
    assert tokenizer.eos_token == original.eos_token


def test_a_ggufs_tokenizer_that_transformers_misreads_is_refused(llama_gguf, monkeypatch):
    """Older versions take another token than the file's for the end of text."""
    monkeypatch.setattr(
        "automodel_models.source.read_tokenizer",
        lambda *arguments: types.SimpleNamespace(eos_token_id=1),
    )
    with pytest.raises(UserError, match="its end of text is token 2, not 1"):
        from_pretrained(str(llama_gguf)).load_tokenizer()


def test_of_several_ggufs_one_must_be_named(llama_gguf, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(llama_gguf.read_bytes())
    with pytest.raises(UserError, match=r"2 GGUF files: a\.gguf, b\.gguf") as refused:
        from_pretrained(str(tmp_path))
    assert refused.value.argument == "gguf_file"
    assert from_pretrained(str(tmp_path), gguf_file="b.gguf").files.gguf_file == "b.gguf"


# from_config


def test_random_weights_are_drawn_from_the_seed():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(from_config(SMALL).load_model(torch.float32, CPU))
    first, again, other = (logits(model) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_spelled_out_configuration_has_no_tokenizer():
    source = from_config(SMALL, torch_dtype="bfloat16")
    assert source.weight_bytes is None
    assert source.parameter_count == sum(
        p.numel() for p in source.load_model(torch.bfloat16, CPU).parameters()
    )
    with pytest.raises(UserError, match="no tokenizer") as refused:
        source.load_tokenizer()
    assert "tokenizer: section" in refused.value.fix


@pytest.mark.parametrize("suffix", ["", "/config.json"])
def test_a_folders_configuration_comes_with_its_tokenizer_and_needs_no_weights(own_folder, suffix):
    (own_folder / "model.safetensors").unlink()
    source = from_config(f"{own_folder}{suffix}", hf_kwargs={"num_hidden_layers": 1})
    model = source.load_model(torch.float32, CPU)
    assert model.config.num_hidden_layers == 1
    source.check_vocabulary(model, source.load_tokenizer())


def test_a_transformers_configuration_is_taken_as_it_is():
    config = LlamaConfig(**{k: v for k, v in SMALL.items() if k != "model_type"})
    assert from_config(config).config is config


@pytest.mark.parametrize(
    ("config", "says", "fix"),
    [
        ({"model_type": "lama"}, "not lama", "did you mean llama?"),
        ({"hidden_size": 8}, "not None", "model_type: llama"),
        ({"model_type": "vit"}, "no causal language model of type vit", "llama"),
        ({**SMALL, "hiden_size": 8}, "no key hiden_size", "did you mean hidden_size?"),
        ({**SMALL, "hidden_size": "wide"}, "can't be used", ""),
        (5, "5 is no configuration", "model_type"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(config, says, fix):
    with pytest.raises(UserError, match=says) as refused:
        from_config(config)
    assert refused.value.argument == "config"
    assert fix in refused.value.fix


@pytest.mark.parametrize("option", [{"revision": "main"}, {"hf_kwargs": {"vocab_size": 5}}])
def test_a_spelled_out_configuration_takes_nothing_that_changes_another(option):
    with pytest.raises(UserError, match="from a folder or the Hub") as refused:
        from_config(SMALL, **option)
    assert refused.value.argument == next(iter(option))
