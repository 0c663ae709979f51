"""Folders that are no whole model: each its own screen, before anything is loaded."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, ViTConfig

from automodel_core.errors import UserError
from automodel_models.text import from_config, from_pretrained

NAME = "pretrained_model_name_or_path"


def refusal(folder, **options):
    with pytest.raises(UserError) as refused:
        from_pretrained(str(folder), **options)
    return refused.value


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_that_is_not_there(tmp_path):
    error = refusal(tmp_path / "nowhere")
    assert error.message == f"There is no folder {tmp_path / 'nowhere'}."
    assert error.argument == NAME


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "is a file, and no GGUF" in refusal(tmp_path / "notes.txt").message


def test_a_folder_without_a_configuration(own_folder):
    (own_folder / "config.json").unlink()
    error = refusal(own_folder)
    assert "has no config.json" in error.message
    assert error.argument == NAME


@pytest.mark.parametrize("text", ["{not json", "[1, 2]"])
def test_a_broken_configuration(own_folder, text):
    (own_folder / "config.json").write_text(text)
    assert "isn't a JSON object" in refusal(own_folder).message


def test_a_configuration_that_transformers_refuses(own_folder):
    change_config(own_folder, hidden_size="wide")
    assert "can't be used" in refusal(own_folder).message


def test_a_folder_without_weights(own_folder):
    (own_folder / "model.safetensors").unlink()
    error = refusal(own_folder)
    assert "no weights" in error.message
    assert "causal_lm_from_config" in error.fix


def test_a_shard_is_missing(sharded_folder):
    shards = sorted(sharded_folder.glob("*.safetensors"))
    shards[1].unlink()
    error = refusal(sharded_folder)
    assert f"1 of {len(shards)} files of weights are missing" in error.message
    assert shards[1].name in error.message


def test_a_broken_index(sharded_folder):
    (sharded_folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    assert "is damaged" in refusal(sharded_folder).message


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_weights_that_were_cut_short(own_folder, kept):
    path = own_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    error = refusal(own_folder)
    assert "cut short or is damaged" in error.message
    assert error.argument == NAME


def test_a_git_lfs_pointer(own_folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (own_folder / "model.safetensors").write_text(pointer)
    error = refusal(own_folder)
    assert "Git LFS pointer" in error.message
    assert "git lfs pull" in error.fix


def test_an_adapter_is_no_model(own_folder):
    (own_folder / "adapter_config.json").write_text("{}")
    assert "an adapter, not a whole model" in refusal(own_folder).message


def test_an_architecture_that_transformers_does_not_know(own_folder):
    change_config(own_folder, model_type="tomorrow")
    error = refusal(own_folder)
    assert "a tomorrow model" in error.message
    assert "upgrade transformers" in error.fix


def test_a_model_that_does_not_generate_text(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert "no causal language model of that type" in refusal(tmp_path).message


def test_a_model_that_fills_in_masked_words(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertForMaskedLM(BertConfig(**sizes, intermediate_size=8)).save_pretrained(tmp_path)
    assert "fills in masked words" in refusal(tmp_path).message


def test_quantized_weights_cannot_be_trained(own_folder):
    change_config(own_folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantized (gptq)" in refusal(own_folder).message


def test_revisions_belong_to_the_hub(own_folder):
    assert refusal(own_folder, revision="main").argument == "revision"


def test_a_folder_without_a_tokenizer(own_folder):
    for path in own_folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="has no tokenizer") as refused:
        from_pretrained(str(own_folder)).load_tokenizer()
    assert "tokenizer: section" in refused.value.fix


def test_a_broken_tokenizer(own_folder):
    (own_folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "none"}}')
    with pytest.raises(UserError, match=r"tokenizer of .* can't be read"):
        from_pretrained(str(own_folder)).load_tokenizer()


def test_weights_that_leave_a_part_of_the_model_random(own_folder):
    path = own_folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 of .*layers\.1\.mlp\.up_proj"):
        from_pretrained(str(own_folder)).load_model(torch.float32, torch.device("cpu"))


def test_weights_of_another_shape(own_folder):
    change_config(own_folder, intermediate_size=128)
    with pytest.raises(UserError, match="other shapes than the configuration"):
        from_pretrained(str(own_folder)).load_model(torch.float32, torch.device("cpu"))


def test_weights_that_the_model_does_not_use_are_mentioned(own_folder, caplog):
    path = own_folder / "model.safetensors"
    save_file(load_file(path) | {"extra": torch.ones(2)}, path, metadata={"format": "pt"})
    from_pretrained(str(own_folder)).load_model(torch.float32, torch.device("cpu"))
    assert "1 tensors that the model doesn't use, such as extra" in caplog.text


def test_from_config_names_its_own_argument(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json") as refused:
        from_config(str(tmp_path))
    assert refused.value.argument == "config"
