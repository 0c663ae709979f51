"""A folder of weights appears whole or not at all."""

import errno
import os

import pytest
import torch
from safetensors.torch import load_file

from automodel_core.config.schema import Target
from automodel_core.errors import UserError
from automodel_core.export.adapters import adapter_of
from automodel_core.export.stored import open_stored
from automodel_core.export.writing import ShardWriter, published
from automodel_core.registry import Registry
from automodel_core.targets import Targets
from automodel_core.trust import Trust


def fill(target, error):
    """Start to write `target`; then something happens."""
    with published(target, 0) as aside:
        (aside / "half.safetensors").write_bytes(b"x")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_interrupted_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        fill(tmp_path / "deep" / "out", error())
    assert list((tmp_path / "deep").iterdir()) == []


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="GiB free"), published(tmp_path / "out", 2**60):
        pytest.fail("there is no room")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left"):
        fill(tmp_path / "out", full)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_larger_than_a_shard_has_its_own_file(tmp_path):
    writer = ShardWriter(tmp_path, shard_bytes=40)
    tensors = {name: torch.full((n,), float(n)) for name, n in (("a", 4), ("b", 20), ("c", 6))}
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish()
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [set(load_file(file)) for file in files] == [{"a"}, {"b"}, {"c"}]
    stored = open_stored(tmp_path)
    assert all(torch.equal(stored.read(name), tensor) for name, tensor in tensors.items())


def test_an_adapter_that_cannot_be_merged_says_so(tmp_path):
    targets = Targets(Registry.discover(), Trust.from_environment())

    class Run:
        peft = Target("torch.nn.Identity", "peft")

    with pytest.raises(UserError, match="no method `merger`"):
        adapter_of(Run, tmp_path, targets, {})
