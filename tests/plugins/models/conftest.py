"""A tiny model as every kind of folder that users have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from transformers import LlamaForCausalLM

from tests.tiny import tiny_llama, tiny_tokenizer

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """A tiny Llama and its tokenizer, as save_pretrained writes them."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_tokenizer(folder)
    tiny_llama(folder)
    return folder


@pytest.fixture
def own_folder(llama_folder, tmp_path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "own"))


@pytest.fixture
def sharded_folder(llama_folder, tmp_path) -> Path:
    """The same model in several files of weights."""
    folder = Path(shutil.copytree(llama_folder, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    LlamaForCausalLM.from_pretrained(llama_folder).save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture(scope="session")
def llama_gguf(llama_folder, tmp_path_factory) -> Path:
    """The same model as one GGUF file, its matrices in blocks of 8-bit integers."""
    path = tmp_path_factory.mktemp("gguf") / "llama.Q8_0.gguf"
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, json.loads((llama_folder / "tokenizer.json").read_text()))
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        array = tensor.numpy()
        count = heads.get(name.split(".")[-2])
        add_tensor(writer, gguf_name(name), interleaved(array, count) if count else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict) -> None:
    added = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = {id_: token for token, id_ in tokenizer["model"]["vocab"].items()} | added
    ordered = [tokens[id_] for id_ in sorted(tokens)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(ordered)
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.NORMAL}
    writer.add_token_types([kinds[id_ in added] for id_ in sorted(tokens)])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ordered.index("<|im_start|>"))
    writer.add_eos_token_id(ordered.index("<|im_end|>"))


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, number, inner = stem.split(".", 3)
        return f"blk.{number}.{GGUF_NAMES[inner]}.weight"
    return f"{GGUF_NAMES[stem]}.weight"


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: rotary pairs side by side."""
    rows, columns = array.shape
    return (
        array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def add_tensor(writer: gguf.GGUFWriter, name: str, array: np.ndarray) -> None:
    if array.ndim == 1:
        writer.add_tensor(name, array)
    else:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
