"""Folders that someone sent: nothing in them is run."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from automodel_core.errors import UserError
from automodel_models.text import from_config, from_pretrained

CPU = torch.device("cpu")


class Payload:
    """Unpickling it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def mark(tmp_path):
    """Exists once hostile code has run."""
    return tmp_path / "it-ran"


def bring_code(folder, mark, **config):
    """Python files beside the model, and configurations that ask for them."""
    code = f"open({str(mark)!r}, 'w').close()\n"
    for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py"):
        (folder / name).write_text(code)
    auto_map = {
        "AutoConfig": "configuration_evil.EvilConfig",
        "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
    }
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map} | config))


@pytest.mark.parametrize("build", [from_pretrained, from_config])
def test_a_model_that_only_its_own_code_can_build_is_refused(own_folder, mark, build):
    bring_code(own_folder, mark, model_type="evil")
    with pytest.raises(UserError, match="Python files of its own") as refused:
        build(str(own_folder))
    assert "--trust-remote-code" in refused.value.fix
    assert not mark.exists()


def test_code_for_an_architecture_that_transformers_has_is_left_alone(own_folder, mark):
    bring_code(own_folder, mark)
    source = from_pretrained(str(own_folder))
    model = source.load_model(torch.float32, CPU)
    assert type(model).__module__.startswith("transformers.")
    assert not mark.exists()


def test_a_tokenizers_code_is_not_run(own_folder, mark):
    bring_code(own_folder, mark)
    path = own_folder / "tokenizer_config.json"
    asks = {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | asks))
    with pytest.raises(UserError, match="Python files of its own"):
        from_pretrained(str(own_folder)).load_tokenizer()
    assert not mark.exists()


def test_trusted_code_is_run(own_folder, mark):
    """The core asks for the command line's consent before it calls us with true."""
    bring_code(own_folder, mark, model_type="evil")
    with pytest.raises(Exception, match="EvilConfig"):
        from_pretrained(str(own_folder), trust_remote_code=True)
    assert mark.exists()


def test_attention_kernels_named_by_the_configuration_are_not_fetched(own_folder):
    path = own_folder / "config.json"
    kernel = {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}
    path.write_text(json.dumps(json.loads(path.read_text()) | kernel))
    model = from_pretrained(str(own_folder)).load_model(torch.float32, CPU)
    assert model.config._attn_implementation == "sdpa"


def as_pickle(folder, extra):
    """The weights as a .bin file with something else among them."""
    path = folder / "model.safetensors"
    torch.save(load_file(path) | extra, folder / "pytorch_model.bin")
    path.unlink()


def test_pickled_weights_are_read(own_folder):
    as_pickle(own_folder, {})
    source = from_pretrained(str(own_folder))
    assert source.weight_bytes == (own_folder / "pytorch_model.bin").stat().st_size
    assert source.load_model(torch.float32, CPU).dtype == torch.float32


@pytest.mark.parametrize("where", ["among the tensors", "alone"])
def test_a_malicious_pickle_does_nothing(own_folder, mark, where):
    as_pickle(own_folder, {"evil": Payload(mark)})
    if where == "alone":
        (own_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    source = from_pretrained(str(own_folder))
    with pytest.raises(UserError, match="never unpickled"):
        source.load_model(torch.float32, CPU)
    assert not mark.exists()
