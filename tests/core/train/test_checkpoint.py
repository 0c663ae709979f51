import os
import threading

import pytest
import torch

from automodel_core.errors import UserError
from automodel_core.train import checkpoint as ck
from automodel_core.train import state as st
from automodel_core.train.sharded.optimizer import staged_optimizer
from automodel_core.train.together import Together
from automodel_core.train.world import World


def stepped(optimizer_class, **keys):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = optimizer_class(model.parameters(), lr=1e-2, **keys)
    for _ in range(3):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize(
    ("optimizer_class", "keys"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adagrad, {}),
        (torch.optim.RMSprop, {"momentum": 0.9}),
        (torch.optim.Adafactor, {}),
    ],
)
def test_an_optimizer_comes_back_bitwise(optimizer_class, keys, tmp_path):
    model, optimizer = stepped(optimizer_class, **keys)
    pieces = staged_optimizer(optimizer, model)
    st.save_training_state(tmp_path / "training", pieces, {"step": 3}, {"torch": 1}, World())
    assert st.load_training_state(tmp_path) == {"step": 3}
    assert st.load_randomness(tmp_path, World()) == {"torch": 1}

    torch.manual_seed(0)
    twin = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    twin.load_state_dict(model.state_dict())
    again = optimizer_class(twin.parameters(), lr=1e-2, **keys)
    st.load_optimizer(again, twin, tmp_path)
    data = torch.randn(5, 3)
    for net, opt in ((model, optimizer), (twin, again)):
        net(data).square().sum().backward()
        opt.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def write(folder):
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"1234")


def test_a_checkpoint_appears_whole_and_latest_points_to_it(tmp_path):
    target = tmp_path / "epoch_0_step_1"
    ck.write_checkpoint(target, write, {"model": "tiny"}, Together())
    assert ck.read_manifest(target)["files"]["model/weights"]["bytes"] == 4
    assert (tmp_path / "latest").resolve() == target
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_0_step_1", "latest"]


@pytest.mark.parametrize("damage", [b"12345", b"1235", None])
def test_a_damaged_file_is_named(tmp_path, damage):
    target = tmp_path / "epoch_0_step_1"
    ck.write_checkpoint(target, write, {}, Together())
    weights = target / "model" / "weights"
    weights.unlink() if damage is None else weights.write_bytes(damage)
    with pytest.raises(UserError, match="model/weights"):
        ck.read_manifest(target)


def test_a_foreign_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="is not a checkpoint"):
        ck.read_manifest(tmp_path)


def test_a_write_that_fails_leaves_the_older_checkpoint_alone(tmp_path):
    first = tmp_path / "epoch_0_step_1"
    ck.write_checkpoint(first, write, {}, Together())

    def full(folder):
        write(folder)
        raise OSError(28, os.strerror(28))

    with pytest.raises(UserError, match="No space left on device"):
        ck.write_checkpoint(tmp_path / "epoch_0_step_2", full, {}, Together())
    assert (tmp_path / "latest").resolve() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_0_step_1", "latest"]


def test_a_writer_finishes_what_it_has_begun_when_its_run_fails(tmp_path):
    """Else the next run, which may take the folder at once, would find it half written."""
    begun, go_on = threading.Event(), threading.Event()
    writer = ck.CheckpointWriter(background=True, published=lambda path: None, together=Together())

    def fill(folder):
        begun.set()
        go_on.wait(10)
        (folder / "file").write_text("whole")

    writer.write(tmp_path / "epoch_0_step_1", fill, {})
    begun.wait(10)
    threading.Timer(0.2, go_on.set).start()
    writer.finish()
    assert (tmp_path / "epoch_0_step_1" / "file").read_text() == "whole"
