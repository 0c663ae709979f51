"""Folders that PEFT saved, merged by the command line; plain transformers and PEFT are referees."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from automodel_core.cli import main
from tests.tiny import VOCABULARY, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


@torch.no_grad()
def logits(model):
    return model.eval()(torch.arange(3, 43).reshape(2, 20)).logits


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def learned(model, folder, embeddings="auto", **settings):
    """PEFT's adapter with random updates, saved to `folder`; returns the unmerged model."""
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8} | settings))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder, save_embedding_layers=embeddings)
    return model


@pytest.fixture
def base(tmp_path):
    """A folder with a tiny Llama, whose embeddings are tied, and its tokenizer."""
    tiny_tokenizer(tmp_path / "base")
    tiny_llama(tmp_path / "base", initializer_range=0.1)
    return tmp_path / "base"


@pytest.fixture
def merge(tmp_path, capsys):
    """Merge `adapter` in the temporary folder; returns the exit code, folder and all output."""

    def run(*options: str):
        out = tmp_path / "out"
        code = main(["merge", str(tmp_path / "adapter"), "--out", str(out), *options])
        printed = capsys.readouterr()
        return code, out, printed.out + printed.err

    return run


@pytest.mark.parametrize("settings", [
    {"target_modules": ["q_proj"], "use_dora": True},
    {"target_modules": ["q_proj"], "use_rslora": True},
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
], ids=["dora", "rslora", "embeddings", "both embeddings whole"])  # fmt: skip
def test_an_adapter_of_peft_is_merged_and_compared(base, merge, tmp_path, settings):
    unmerged = learned(load(base), tmp_path / "adapter", **settings)
    code, out, printed = merge()
    assert code == 0, printed
    assert (logits(load(out)) - logits(unmerged)).abs().max() < 1e-5
    assert "after 4 prompts" in printed, "sentences of our own: there is no run"


def with_more_rows(base):
    model = load(base)
    model.resize_token_embeddings(VOCABULARY + 5)
    return model


WHOLE = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}


def test_tokens_that_were_added_to_tied_embeddings(base, merge, tmp_path):
    """What https://github.com/huggingface/transformers/issues/45127 loses."""
    unmerged = learned(with_more_rows(base), tmp_path / "adapter", **WHOLE)
    code, out, printed = merge()
    assert code == 0, printed
    merged = load(out)
    assert merged.config.vocab_size == VOCABULARY + 5
    assert merged.config.tie_word_embeddings is False
    assert (logits(merged) - logits(unmerged)).abs().max() < 1e-5
    assert "compared" not in printed


def test_added_tokens_whose_embeddings_did_not_train_stay_tied(base, merge, tmp_path):
    unmerged = learned(with_more_rows(base), tmp_path / "adapter", target_modules=["q_proj"])
    code, out, printed = merge()
    assert code == 0, printed
    merged = load(out)
    assert merged.config.vocab_size == VOCABULARY + 5
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert (logits(merged) - logits(unmerged)).abs().max() < 1e-5


def test_rows_for_new_tokens_in_one_embedding_only_are_refused(base, merge, tmp_path):
    one = WHOLE | {"modules_to_save": ["embed_tokens"]}
    learned(with_more_rows(base), tmp_path / "adapter", embeddings=False, **one)
    code, out, printed = merge()
    assert code == 2
    assert f"lm_head.weight {VOCABULARY}" in printed
    assert not out.exists()


def test_files_without_the_prefix_of_the_base_class_are_matched(merge, tmp_path):
    """As GPT-2's on the Hub: `wte.weight` is the model's `transformer.wte.weight`."""
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**small)).save_pretrained(tmp_path / "base")
    tiny_tokenizer(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): each for name, each in load_file(path).items()}
    assert "wte.weight" in tensors
    save_file(tensors, path, metadata={"format": "pt"})
    unmerged = learned(load(tmp_path / "base"), tmp_path / "adapter", fan_in_fan_out=True,
                       target_modules=["c_attn", "wte"])  # fmt: skip
    code, out, printed = merge()
    assert code == 0, printed
    assert (logits(load(out)) - logits(unmerged)).abs().max() < 1e-5


def test_shards_are_read_and_written(base, merge, tmp_path):
    model = load(base)
    model.save_pretrained(base, max_shard_size="30KB")
    (base / "model.safetensors").unlink()
    unmerged = learned(model, tmp_path / "adapter", target_modules=["q_proj"])
    code, out, printed = merge("--max-shard-size", "40KB")
    assert code == 0, printed
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(
        each.nbytes for file in files for each in load_file(out / file).values()
    )
    assert (logits(load(out)) - logits(unmerged)).abs().max() < 1e-5


def test_a_moved_base_is_named(base, merge, tmp_path):
    unmerged = learned(load(base), tmp_path / "adapter", target_modules=["q_proj"])
    base.rename(tmp_path / "moved")
    code, _, printed = merge()
    assert code == 2
    assert "--base" in printed
    code, out, printed = merge("--base", str(tmp_path / "moved"))
    assert code == 0, printed
    assert (logits(load(out)) - logits(unmerged)).abs().max() < 1e-5


def test_a_tensor_that_the_base_lacks_is_refused_by_name(base, merge, tmp_path):
    learned(load(base), tmp_path / "adapter", target_modules=["q_proj"])
    path, lost = base / "model.safetensors", "model.layers.1.self_attn.q_proj.weight"
    tensors = load_file(path)
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})
    code, out, printed = merge()
    assert code == 2
    assert lost in printed
    assert not out.exists()


def test_a_quantized_base_is_refused(base, merge, tmp_path):
    learned(load(base), tmp_path / "adapter", target_modules=["q_proj"])
    path = base / "config.json"
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))
    code, _, printed = merge()
    assert code == 2
    assert "quantized" in printed


def in_fp8(folder, block=16):
    """Quantize the linear layers of a model as DeepSeek and Qwen store theirs: 8-bit floats, one
    scale per block of a weight."""
    path = folder / "model.safetensors"
    stored = {}
    for name, weight in load_file(path).items():
        stored[name] = weight
        if name.endswith("proj.weight"):
            rows, columns = weight.shape
            blocks = weight.reshape(rows // block, block, columns // block, block)
            scale = blocks.abs().amax((1, 3)) / 448
            small = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            stored |= {name: small.reshape(rows, columns), f"{name}_scale_inv": scale}
    save_file(stored, path, metadata={"format": "pt"})
    how = {"quant_method": "fp8", "weight_block_size": [block] * 2, "activation_scheme": "dynamic"}
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": how}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_quantized_base_is_merged_on_demand_and_the_loss_is_told(base, merge, tmp_path):
    in_fp8(base)
    full = AutoConfig.from_pretrained(base)
    full.quantization_config["dequantize"] = True
    model = AutoModelForCausalLM.from_pretrained(base, config=full, dtype=torch.float32)
    unmerged = learned(model, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    code, out, printed = merge()
    assert code == 2
    assert "quantized (fp8)" in printed
    assert "--lossy" in printed
    code, out, printed = merge("--lossy")
    assert code == 0, printed
    assert "What quantizing it has lost stays lost" in printed
    assert "after 4 prompts" in printed, "with the tokenizer of the quantized model"
    merged = load(out)
    assert getattr(merged.config, "quantization_config", None) is None
    assert (logits(merged) - logits(unmerged)).abs().max() < 1e-5
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_a_quantization_that_cannot_be_undone_here_is_refused(base, merge, tmp_path):
    learned(load(base), tmp_path / "adapter", target_modules=["q_proj"])
    path = base / "config.json"
    quantized = {"quantization_config": {"quant_method": "hqq"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))
    code, out, printed = merge("--lossy")
    assert code == 2
    assert "(hqq) can't be dequantized here" in printed
    assert "Traceback" not in printed
    assert not out.exists()


def test_a_folder_that_is_there_is_not_touched(base, merge, tmp_path):
    learned(load(base), tmp_path / "adapter", target_modules=["q_proj"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    code, out, printed = merge()
    assert code == 2
    assert "is there already" in printed
    assert [each.name for each in out.iterdir()] == ["mine.txt"]
    shutil.rmtree(out)
    out.mkdir()
    assert merge("--no-check")[0] == 0, "an empty folder is as good as none"


def test_what_holds_no_model_is_refused(tmp_path, capsys):
    assert main(["merge", str(tmp_path)]) == 2
    assert "holds neither" in capsys.readouterr().err
    assert main(["merge", str(tmp_path), "--max-shard-size", "huge"]) == 2
    assert "no size" in capsys.readouterr().err


# Prints how many bytes a merge takes at its most, beyond what the imports took. Pages of files that
# are mapped count too, as long as something refers to them.
MEASURE = r"""
import re, sys
import torch, peft, transformers
from automodel_core.cli import main
import automodel_core.export.merge, automodel_peft.lora
from transformers.models.llama import modeling_llama

def peak():
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024

before = peak()
assert main(["merge", *sys.argv[1:], "--no-check"]) == 0
print("took", peak() - before)
"""


@pytest.mark.slow
def test_a_merge_stays_within_two_shards(tmp_path):
    """A model of 663 MB in shards of 200 MB; the largest tensor takes 66 MB in float32."""
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 20}
    model = tiny_llama(tmp_path / "base", **shape, vocab_size=16_000, num_attention_heads=16,
                       tie_word_embeddings=False, dtype=torch.bfloat16)  # fmt: skip
    model = model.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    total = sum(each.nbytes for each in model.parameters())
    learned(model, tmp_path / "adapter", target_modules=["q_proj", "down_proj", "embed_tokens"])
    words = [str(tmp_path / "adapter"), "--base", str(tmp_path / "base")]
    words += ["--out", str(tmp_path / "out"), "--max-shard-size", "200MB"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, check=True
    )
    taken = int(done.stdout.split("took ")[1])
    print(f"{taken / 1e6:.0f} MB for a model of {total / 1e6:.0f} MB")
    assert total > 600e6
    assert taken < 400e6
