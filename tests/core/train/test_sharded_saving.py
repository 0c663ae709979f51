"""All processes write one transformers folder together, and nobody holds the whole."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
)

from automodel_core.errors import UserError
from automodel_core.train.sharded import saving as sharded_saving
from automodel_core.train.sharded.pieces import owned_pieces
from automodel_core.train.sharded.reading import materialise
from automodel_core.train.sharded.saving import (
    PARTS,
    can_save_sharded,
    plan_files,
    saved_tensors,
    stage_model,
)
from automodel_core.train.sharded.stored_tensors import Described
from automodel_core.train.together import Together
from tests.processes import AnonymousPeak, Processes
from tests.sharding import (
    ALONE,
    FSDP_2,
    FSDP_TP_4,
    HSDP_2,
    HSDP_TP_4,
    TP_2,
    local,
    odd_llama,
    on_meta,
    shard,
    three_gigabytes,
)
from tests.tiny import tiny_tokenizer


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    tiny_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def model_of(config, layout, dtype=torch.float32):
    torch.manual_seed(3)
    return shard(AutoModelForCausalLM.from_config(config, dtype=dtype), layout)


def save(folder: Path, tokenizer: Path, config, layout, dtype=torch.float32, smallest=10_000):
    """Stage, train on, and write in another thread."""
    sharded_saving.SMALLEST_FILE = smallest
    model, together = model_of(config, layout, dtype), Together()
    stage = stage_model(model, together)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    words = AutoTokenizer.from_pretrained(tokenizer)
    writer = threading.Thread(target=stage.write, args=(folder, model, words, together))
    writer.start()
    writer.join()
    return len(stage.parts)


def opens_with_the_same_tensors(folder: Path, config, dtype=torch.float32) -> None:
    expected = model_of(config, ALONE, dtype)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state, wanted = model.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert state[name].dtype == dtype
        assert torch.equal(state[name], tensor), name
    plain = folder.with_name("plain")
    expected.save_pretrained(plain)
    for file in ("config.json", "generation_config.json"):
        assert json.loads((folder / file).read_text()) == json.loads((plain / file).read_text())
    assert not (folder / PARTS).exists()
    assert (folder / "tokenizer.json").is_file()
    assert stored_names(folder) == stored_names(plain)


def stored_names(folder: Path) -> list[str]:
    """Every tensor in the folder's files, as often as it is there."""
    names = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            names += file.keys()
    return sorted(names)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_one_process_writes_what_save_pretrained_writes(tmp_path, tokenizer, tied):
    config = odd_llama(tie_word_embeddings=tied)
    save(tmp_path / "model", tokenizer, config, ALONE)
    opens_with_the_same_tensors(tmp_path / "model", config)


@pytest.mark.parametrize("layout", [ALONE, FSDP_2, HSDP_2, TP_2], ids=["ddp", "fsdp", "hsdp", "tp"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_two_processes_write_one_transformers_folder(tmp_path, tokenizer, two, layout, tied):
    config = odd_llama(tie_word_embeddings=tied)
    two.run(save, tmp_path / "model", tokenizer, config, layout)
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    opens_with_the_same_tensors(tmp_path / "model", config)


def test_the_type_of_the_weights_is_kept(tmp_path, tokenizer, two):
    config = odd_llama()
    two.run(save, tmp_path / "model", tokenizer, config, FSDP_2, torch.bfloat16)
    opens_with_the_same_tensors(tmp_path / "model", config, torch.bfloat16)


def test_a_small_model_is_one_file_without_an_index(tmp_path, tokenizer, two):
    two.run(save, tmp_path / "model", tokenizer, odd_llama(), FSDP_2, torch.float32, 10**9)
    assert [p.name for p in (tmp_path / "model").glob("model*")] == ["model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [FSDP_TP_4, HSDP_TP_4], ids=["2x2", "hsdp-tp"])
def test_four_processes_write_one_transformers_folder(tmp_path, tokenizer, four, layout):
    config = odd_llama(tie_word_embeddings=True)
    four.run(save, tmp_path / "model", tokenizer, config, layout)
    opens_with_the_same_tensors(tmp_path / "model", config)


def staged_bytes(config, layout) -> int:
    return sum(p.values.nbytes for p in owned_pieces(saved_tensors(model_of(config, layout))))


@pytest.mark.parametrize("layout", [ALONE, FSDP_2, HSDP_2, TP_2], ids=["ddp", "fsdp", "hsdp", "tp"])
def test_every_byte_is_staged_once_and_the_processes_share_them(two, layout):
    config = odd_llama(num_hidden_layers=4)
    total = sum(x.nbytes for x in saved_tensors(model_of(config, ALONE)).values())
    parts = two.run(staged_bytes, config, layout)
    assert sum(parts) == total
    assert max(parts) <= 0.6 * total


def save_without_room(folder: Path, tokenizer: Path) -> str:
    together = Together()
    model = model_of(odd_llama(), FSDP_2)
    stage = stage_model(model, together)
    if together.rank == 1:
        folder = Path("/dev/full/model")
    try:
        stage.write(folder, model, AutoTokenizer.from_pretrained(tokenizer), together)
    except (OSError, RuntimeError) as error:
        return str(error)
    return "saved"


def test_if_one_process_cannot_write_all_of_them_hear_of_it(tmp_path, tokenizer, two):
    there, here = two.run(save_without_room, tmp_path / "model", tokenizer)
    assert there == "rank 1 failed, and says there why"
    assert "/dev/full" in here


def save_apart(folder: Path, tokenizer: Path) -> str:
    together = Together()
    model = model_of(odd_llama(), FSDP_2)
    stage = stage_model(model, together)
    own = folder / str(together.rank)
    try:
        stage.write(own, model, AutoTokenizer.from_pretrained(tokenizer), together)
    except UserError as error:
        return f"{error.message} {error.fix}"
    return "saved"


def test_a_folder_that_the_nodes_do_not_share_is_refused(tmp_path, tokenizer, two):
    first, second = two.run(save_apart, tmp_path, tokenizer)
    assert "doesn't see what rank 1 wrote" in first
    assert "doesn't see what rank 0 wrote" in second
    assert "file system that all nodes share" in first


def test_models_that_transformers_converts_are_left_to_it():
    sizes = {
        "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    assert can_save_sharded(on_meta(LlamaConfig(**sizes)))
    assert can_save_sharded(on_meta(GPT2Config(vocab_size=101, n_embd=32, n_layer=1, n_head=4)))
    assert not can_save_sharded(on_meta(MixtralConfig(**sizes, num_local_experts=4)))


def test_large_models_are_cut_into_files_of_five_gigabytes_that_the_processes_share():
    layer = {f"{number}": Described("BF16", (10**9,)) for number in range(40)}
    for ranks, most in ((1, 5e9), (4, 5e9), (16, 5e9)):
        files = plan_files(layer, ranks)
        assert [name for file in files for name in file.tensors] == list(layer)
        loads = [
            sum(x.nbytes for file in files if file.rank == rank for x in file.tensors.values())
            for rank in range(ranks)
        ]
        assert sum(loads) == 80 * 10**9
        assert max(loads) - min(loads) <= most
        assert all(sum(x.nbytes for x in file.tensors.values()) <= most for file in files)
        assert files[-1].name == f"model-{len(files):05}-of-{len(files):05}.safetensors"


def peak_while_saving(folder: Path, config) -> tuple[int, int, int]:
    """Peak of anonymous memory above what the model takes; this shard; the largest tensor."""
    model = shard(on_meta(config, torch.bfloat16), FSDP_TP_4)
    materialise(model, torch.device("cpu"))
    for parameter in model.parameters():
        local(parameter).fill_(1.0)
    together = Together()
    with AnonymousPeak() as peak:
        stage = stage_model(model, together)
        stage.write(folder, model, NoTokenizer(), together)
    own = sum(local(p).nbytes for p in model.parameters())
    return peak.bytes, own, max(p.nbytes for p in model.parameters())


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        pass


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_saving_three_gigabytes_costs_a_shard_and_a_tensor(tmp_path):
    config = three_gigabytes()
    with Processes(4) as processes:
        for peak, own, largest in processes.run(
            peak_while_saving, tmp_path / "model", config, timeout=600
        ):
            print(f"peak {peak / 1e6:.0f} MB beside a shard of {own / 1e6:.0f} MB")
            assert peak <= 1.1 * own + largest
    files = list((tmp_path / "model").glob("*.safetensors"))
    assert len(files) >= 4
    for path in files:
        with safe_open(path, "pt") as file:
            assert all((file.get_tensor(key) == 1).all() for key in file.keys())  # noqa: SIM118
