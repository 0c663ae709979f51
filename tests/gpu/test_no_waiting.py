"""A step asks the GPU for nothing that the host would have to wait for, but in the model itself:
transformers looks through the positions of every batch for packed documents. It doesn't where we
tell attention about documents, see `test_compiled.py`."""

import pytest
import torch
from transformers import masking_utils

from automodel_core.train import loop

pytestmark = pytest.mark.gpu

CASES = {
    "full": {},
    "chunked loss": {"loss_fn": {"_target_": "chunked_ce"}},
    "fused loss": {"loss_fn": {"_target_": "fused_linear_ce"}},
    "accumulation": {"step_scheduler": {"max_steps": 6, "grad_acc_steps": 2}},
    "bfloat16": {"model": {"torch_dtype": "bfloat16"}},
    "skip": {"guards": {"non_finite": "skip"}, "optimizer": {"fused": True}},
    "lora": {"peft": {"_target_": "lora", "dropout": 0.1}},
    "compiled": {"compile": True, "peft": {"_target_": "lora"}},
    "recomputed": {"activation_checkpointing": "selective"},
    "dora": {"peft": {"_target_": "dora"}},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_step_waits_for_nothing(automodel, monkeypatch, changes):
    step, taken = loop.optimizer_step, []
    create = masking_utils.find_packed_sequence_indices

    def unwatched(positions):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        found = create(positions)
        torch.cuda.set_sync_debug_mode(mode)
        return found

    def watched(run, stop):
        # Before the third step libraries are still being set up.
        torch.cuda.set_sync_debug_mode("error" if run.step > 2 else "default")
        try:
            return step(run, stop)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            taken.append(run.step)

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", unwatched)
    monkeypatch.setattr(loop, "optimizer_step", watched)
    run = automodel({"step_scheduler": {"max_steps": 6}, **changes})
    assert run.code == 0, run.out
    assert len(taken) == 6
    assert [each["step"] for each in run.steps] == [1, 2, 3, 4, 5, 6]


def test_figures_that_come_late_are_all_written_in_order(automodel):
    run = automodel({"step_scheduler": {"max_steps": 30}, "checkpoint": {"enabled": False}})
    assert run.code == 0, run.out
    assert [each["step"] for each in run.steps] == list(range(1, 31))


def test_a_loss_that_is_not_finite_stops_the_run_a_few_steps_later(automodel):
    huge = {"optimizer": {"lr": 1e30}, "step_scheduler": {"max_steps": 60}}
    run = automodel({**huge, "checkpoint": {"save_every_steps": 50}})
    assert run.code == 3, run.out
    assert "non_finite" in run.out
    assert run.checkpoints == []
