"""Weights reach a sharded model as they reach a whole one, without anybody holding the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
)

from automodel_core.errors import UserError
from automodel_core.train.sharded.deferred import DeferredInit
from automodel_core.train.sharded.reading import can_read_sharded, read_sharded
from tests.processes import AnonymousPeak, Processes
from tests.sharding import (
    FSDP_2,
    FSDP_TP_4,
    HSDP_2,
    HSDP_4,
    HSDP_TP_4,
    TP_2,
    assert_same_shards,
    loss_of,
    odd_llama,
    on_meta,
    shard,
    three_gigabytes,
)

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
CONFIGS = {
    "llama": odd_llama(),
    "tied llama with scaled rotary": odd_llama(
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    ),
    "qwen2": Qwen2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, head_dim=8),
    "gpt2": GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=4),
}


def saved(folder: Path, config, dtype=torch.float32, size="50KB") -> Path:
    """A folder of several files with random weights."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(
        folder, max_shard_size=size
    )
    return folder


def same_as_sharding_a_whole_model(folder: Path, layout, dtype) -> None:
    model = on_meta(AutoModelForCausalLM.from_pretrained(folder).config, dtype)
    assert can_read_sharded(model, folder)
    read_sharded(shard(model, layout), folder, CPU)
    expected = shard(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), layout)
    assert_same_shards(model, expected)
    if dtype == torch.float32:
        assert loss_of(model) == loss_of(expected)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_process_reads_what_from_pretrained_reads(tmp_path, kind):
    folder = saved(tmp_path / "model", CONFIGS[kind])
    same_as_sharding_a_whole_model(folder, (1, 1, 1), torch.float32)


def test_the_type_of_the_meta_model_is_the_type_that_is_read(tmp_path):
    folder = saved(tmp_path / "model", odd_llama(), torch.bfloat16)
    same_as_sharding_a_whole_model(folder, (1, 1, 1), torch.float32)
    same_as_sharding_a_whole_model(folder, (1, 1, 1), torch.bfloat16)


@pytest.mark.parametrize("layout", [FSDP_2, HSDP_2, TP_2], ids=["fsdp", "hsdp", "tp"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_two_processes_read_the_shards_of_the_whole_model(tmp_path, two, layout, tied):
    folder = saved(tmp_path / "model", odd_llama(tie_word_embeddings=tied))
    two.run(same_as_sharding_a_whole_model, folder, layout, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [FSDP_TP_4, HSDP_4, HSDP_TP_4], ids=["2x2", "hsdp", "hsdp-tp"])
def test_four_processes_read_the_shards_of_the_whole_model(tmp_path, four, layout):
    folder = saved(tmp_path / "model", odd_llama(tie_word_embeddings=True))
    four.run(same_as_sharding_a_whole_model, folder, layout, torch.float32)


def keeps_real_tensors(folder: Path) -> None:
    model = on_meta(odd_llama())
    for layer in model.model.layers:
        layer.mlp.register_parameter("extra", torch.nn.Parameter(torch.arange(6.0)))
        layer.mlp.register_buffer("scale", torch.tensor(0.5), persistent=False)
    read_sharded(shard(model, FSDP_2), folder, CPU)
    for layer in model.model.layers:
        assert torch.equal(layer.mlp.extra.full_tensor(), torch.arange(6.0))
        assert layer.mlp.scale == 0.5


def test_what_an_adapter_added_with_values_keeps_them(tmp_path, two):
    two.run(keeps_real_tensors, saved(tmp_path / "model", odd_llama()))


def draws_like_one_process(config, layout, dtype) -> None:
    torch.manual_seed(5)
    expected = AutoModelForCausalLM.from_config(config, dtype=dtype)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    with DeferredInit() as deferred:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), after)
    unsharded = deferred.tensors(model)
    deferred.draw(shard(model, layout), unsharded, CPU)
    assert torch.equal(torch.get_rng_state(), after)
    assert_same_shards(model, shard(expected, layout))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_weights_are_drawn_as_from_config_draws_them(kind, dtype):
    draws_like_one_process(CONFIGS[kind], (1, 1, 1), dtype)


@pytest.mark.parametrize("layout", [FSDP_2, TP_2], ids=["fsdp", "tp"])
def test_two_processes_draw_the_shards_of_the_model_of_one(two, layout):
    two.run(draws_like_one_process, odd_llama(tie_word_embeddings=True), layout, torch.float32)


@pytest.mark.slow
def test_four_processes_draw_the_shards_of_the_model_of_one(four):
    four.run(draws_like_one_process, odd_llama(), FSDP_TP_4, torch.bfloat16)


def rewrite(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_missing_tensors_are_refused_by_name(tmp_path):
    folder = saved(tmp_path / "model", odd_llama(), size="1GB")
    rewrite(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(UserError, match=r"lack 1 of .* such as model.norm.weight"):
        read_sharded(on_meta(odd_llama()), folder, CPU)


def test_tensors_of_another_shape_are_refused_by_name(tmp_path):
    folder = saved(tmp_path / "model", odd_llama(), size="1GB")
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(35)}))
    with pytest.raises(UserError, match=r"other shapes .* such as model.norm.weight"):
        read_sharded(on_meta(odd_llama()), folder, CPU)


def test_tensors_that_the_model_lacks_are_mentioned(tmp_path, caplog):
    folder = saved(tmp_path / "model", odd_llama(), size="1GB")
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda tensors: tensors.update({"head2": torch.ones(3), old: torch.ones(5)}))
    read_sharded(on_meta(odd_llama()), folder, CPU)
    assert "1 tensors that the model doesn't use, such as head2" in caplog.text


def test_damaged_files_are_refused(tmp_path):
    folder = saved(tmp_path / "model", odd_llama(), size="1GB")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="can't be read"):
        read_sharded(on_meta(odd_llama()), folder, CPU)


def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path):
    folder = saved(tmp_path / "model", odd_llama())
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "../other.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match="names files outside its folder"):
        read_sharded(on_meta(odd_llama()), folder, CPU)


def test_models_that_transformers_converts_are_left_to_it(tmp_path):
    config = MixtralConfig(**SMALL, num_local_experts=4)
    assert not can_read_sharded(on_meta(config), saved(tmp_path / "model", config))


def test_names_without_the_models_prefix_are_left_to_transformers(tmp_path):
    config = CONFIGS["gpt2"]
    GPT2Model(config).save_pretrained(tmp_path / "base")
    assert not can_read_sharded(on_meta(config), tmp_path / "base")


def test_folders_without_safetensors_are_left_to_transformers(tmp_path):
    assert not can_read_sharded(on_meta(odd_llama()), tmp_path)


def reads_within_its_share(folder: Path) -> tuple[int, int, int]:
    """Peak of anonymous memory above what importing took; this shard; the largest tensor."""
    with AnonymousPeak() as peak:
        config = LlamaConfig.from_pretrained(folder)
        model = shard(on_meta(config, torch.bfloat16), FSDP_TP_4)
        read_sharded(model, folder, CPU)
    dist.barrier()
    own = sum(p.to_local().nbytes for p in model.parameters())
    return peak.bytes, own, max(p.nbytes for p in model.parameters())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nobody_holds_more_than_twice_its_shard_of_three_gigabytes(tmp_path):
    config = three_gigabytes()
    folder = tmp_path / "model"
    zeros_of(config, folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size > 3e9
    with Processes(4) as processes:
        for peak, own, largest in processes.run(reads_within_its_share, folder, timeout=600):
            print(f"peak {peak / 1e6:.0f} MB, shard {own / 1e6:.0f} MB of {size / 1e6:.0f} MB")
            assert peak <= 2 * own + largest


def zeros_of(config, folder: Path) -> None:
    """A model's folder, file by file, in bfloat16."""
    model = on_meta(config, torch.bfloat16)
    config.save_pretrained(folder)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        part = name.split(".")[2] if ".layers." in name else "rest"
        groups.setdefault(f"model-{part}.safetensors", {})[name] = tensor
    for file, tensors in groups.items():
        values = {k: torch.zeros(x.shape, dtype=x.dtype) for k, x in tensors.items()}
        save_file(values, folder / file, {"format": "pt"})
    names = {name: file for file, tensors in groups.items() for name in tensors}
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
