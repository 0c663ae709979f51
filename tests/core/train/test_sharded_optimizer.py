"""The optimizer's state is written by all processes and read under any other layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from automodel_core.train.sharded.optimizer import (
    parameter_names,
    read_optimizer,
    staged_optimizer,
    write_optimizer,
)
from automodel_core.train.sharded.reading import read_sharded
from automodel_core.train.sharded.saving import stage_model
from automodel_core.train.together import Together
from tests.sharding import (
    ALONE,
    FSDP_2,
    FSDP_4,
    FSDP_TP_4,
    HSDP_2,
    HSDP_4,
    HSDP_TP_4,
    TP_2,
    odd_llama,
    on_meta,
    shard,
    whole,
)

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
}


def made(layout, kind: str):
    torch.manual_seed(3)
    config = odd_llama(tie_word_embeddings=True)
    model = shard(AutoModelForCausalLM.from_config(config), layout)
    return model, OPTIMIZERS[kind](model.parameters())


def step(model, optimizer, seed: int) -> None:
    """One step on gradients that are the same under every layout."""
    generator = torch.Generator().manual_seed(seed)
    by_name = sorted((name, p) for p, name in parameter_names(model).items())
    for _, parameter in by_name:
        values = torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            values = _like(values, parameter)
        parameter.grad = values
    optimizer.step()


def _like(values: torch.Tensor, parameter: DTensor) -> DTensor:
    from automodel_core.train.sharded.pieces import Piece, copy_overlap, local_pieces

    target = torch.empty_like(parameter, requires_grad=False)
    for part in local_pieces("", target):
        copy_overlap(Piece("", tuple(values.shape), (0,) * values.ndim, values), part)
    assert torch.equal(target.full_tensor(), values)
    return target


def save(folder: Path, layout, kind: str = "adamw") -> int:
    """Two steps, staged; a third that must not reach the files; then write."""
    model, optimizer = made(layout, kind)
    step(model, optimizer, 1)
    step(model, optimizer, 2)
    pieces = staged_optimizer(optimizer, model)
    step(model, optimizer, 3)
    together = Together()
    together.do(lambda: write_optimizer(folder, pieces, together.rank, together.size))
    return sum(piece.values.nbytes for piece in pieces)


def tensors(optimizer, model) -> dict[str, torch.Tensor]:
    names = parameter_names(model)
    return {
        f"{names[p]}/{k}": torch.as_tensor(x)
        for p, state in optimizer.state.items()
        for k, x in state.items()
        if x is not None
    }


def load_and_compare(folder: Path, layout, kind: str = "adamw") -> None:
    """State and the next update equal those of one process that never stopped."""
    model, optimizer = made(layout, kind)
    expected_model, expected = made(ALONE, kind)
    for seed in (1, 2):
        step(expected_model, expected, seed)
    read_optimizer(optimizer, model, folder)
    found, wanted = tensors(optimizer, model), tensors(expected, expected_model)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(whole(found[name]), tensor), name
    step(model, optimizer, 4)
    step(expected_model, expected, 4)
    after = tensors(optimizer, model)
    for name, tensor in tensors(expected, expected_model).items():
        torch.testing.assert_close(whole(after[name]), tensor, msg=name)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_process_reads_what_it_wrote(tmp_path, kind):
    save(tmp_path, ALONE, kind)
    load_and_compare(tmp_path, ALONE, kind)


@pytest.mark.parametrize(
    "written", [ALONE, FSDP_2, HSDP_2, TP_2], ids=["ddp", "fsdp", "hsdp", "tp"]
)
def test_what_two_processes_wrote_is_read_by_one_and_by_two_of_any_layout(tmp_path, two, written):
    two.run(save, tmp_path, written)
    load_and_compare(tmp_path, ALONE)
    for layout in (ALONE, FSDP_2, HSDP_2, TP_2):
        two.run(load_and_compare, tmp_path, layout)


def test_what_one_process_wrote_is_read_by_two(tmp_path, two):
    save(tmp_path, ALONE, "sgd")
    for layout in (FSDP_2, TP_2):
        two.run(load_and_compare, tmp_path, layout, "sgd")


@pytest.mark.slow
@pytest.mark.parametrize("written", [FSDP_TP_4, HSDP_4, HSDP_TP_4, FSDP_4], ids=str)
def test_what_four_processes_wrote_is_read_by_one_two_and_four(tmp_path, two, four, written):
    four.run(save, tmp_path, written)
    load_and_compare(tmp_path, ALONE)
    for layout in (ALONE, FSDP_2, TP_2):
        two.run(load_and_compare, tmp_path, layout)
    for layout in (FSDP_TP_4, HSDP_4, FSDP_4):
        four.run(load_and_compare, tmp_path, layout)


def test_replicas_are_written_once(tmp_path, two):
    alone = save(tmp_path / "alone", ALONE)
    for layout in (ALONE, FSDP_2, HSDP_2, TP_2):
        parts = two.run(save, tmp_path / "two", layout)
        assert sum(parts) == alone
        assert max(parts) <= 0.6 * alone


def test_a_lost_file_is_noticed(tmp_path, two):
    two.run(save, tmp_path, FSDP_2)
    (tmp_path / "00002-of-00002.safetensors").unlink()
    model, optimizer = made(ALONE, "adamw")
    with pytest.raises(ValueError, match="has 1 of 2 files"):
        read_optimizer(optimizer, model, tmp_path)


def test_a_lost_part_is_noticed(tmp_path, two):
    two.run(save, tmp_path, FSDP_2)
    (tmp_path / "00002-of-00002.safetensors").rename(tmp_path / "away")
    (tmp_path / "00001-of-00002.safetensors").rename(tmp_path / "optimizer.safetensors")
    model, optimizer = made(ALONE, "adamw")
    with pytest.raises(ValueError, match=r"a part of .* is missing"):
        read_optimizer(optimizer, model, tmp_path)


def trained(model, optimizer, steps: int) -> list[float]:
    """Losses of some steps on one batch that every process sees."""
    tokens = torch.arange(40).reshape(2, 20) % model.config.vocab_size
    losses = []
    for _ in range(steps):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def train_and_save(folder: Path, layout) -> None:
    model, optimizer = made(layout, "adamw")
    trained(model, optimizer, 3)
    together = Together()
    pieces, stage = staged_optimizer(optimizer, model), stage_model(model, together)
    stage.write(folder / "model", model, NoTokenizer(), together)
    together.do(lambda: write_optimizer(folder / "optimizer", pieces, together.rank, together.size))


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        pass


def resume_and_train(folder: Path, layout) -> list[float]:
    model = shard(on_meta(odd_llama(tie_word_embeddings=True)), layout)
    read_sharded(model, folder / "model", torch.device("cpu"))
    model.train()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    read_optimizer(optimizer, model, folder / "optimizer")
    return trained(model, optimizer, 3)


def test_training_goes_on_with_equal_losses_under_any_layout_of_two(tmp_path, two):
    never_stopped = trained(*made(ALONE, "adamw"), 6)[3:]
    for written in (FSDP_2, TP_2):
        two.run(train_and_save, tmp_path / str(written), written)
        assert resume_and_train(tmp_path / str(written), ALONE) == approx(never_stopped)
        for layout in (ALONE, FSDP_2, HSDP_2, TP_2):
            for losses in two.run(resume_and_train, tmp_path / str(written), layout):
                assert losses == approx(never_stopped)


@pytest.mark.slow
def test_training_on_two_by_two_goes_on_with_equal_losses_on_two_and_on_one(tmp_path, two, four):
    never_stopped = trained(*made(ALONE, "adamw"), 6)[3:]
    four.run(train_and_save, tmp_path, FSDP_TP_4)
    assert resume_and_train(tmp_path, ALONE) == approx(never_stopped)
    for layout in (ALONE, FSDP_2, TP_2):
        assert two.run(resume_and_train, tmp_path, layout)[1] == approx(never_stopped)
    for layout in (HSDP_4, FSDP_TP_4):
        assert four.run(resume_and_train, tmp_path, layout)[3] == approx(never_stopped)


def approx(losses: list[float]):
    return pytest.approx(losses, rel=1e-5)
