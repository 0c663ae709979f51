"""The same YAML on one GPU: what the precision plan promises, against the CPU in float32."""

import pytest
import torch

from automodel_core.train import loop

pytestmark = pytest.mark.gpu


def test_auto_on_a_gpu_keeps_float32_weights_and_follows_the_cpu(automodel, monkeypatch):
    gpu = automodel({"step_scheduler": {"max_steps": 20}})
    assert gpu.code == 0, gpu.out
    assert "bfloat16" in gpu.out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu = automodel({"step_scheduler": {"max_steps": 20}}, folder="cpu")
    assert gpu.losses == pytest.approx(cpu.losses, rel=0.02)


def test_float32_on_a_gpu_follows_the_cpu_closely(automodel, monkeypatch):
    gpu = automodel({"model": {"torch_dtype": "float32"}})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu = automodel({"model": {"torch_dtype": "float32"}}, folder="cpu")
    assert gpu.losses == pytest.approx(cpu.losses, rel=1e-4)


def test_float16_scales_the_loss_and_resumes_with_its_scale(automodel):
    half = {"model": {"torch_dtype": "torch.float16"}, "step_scheduler": {"ckpt_every_steps": 2}}
    whole = automodel(half)
    assert whole.code == 0, whole.out
    first = automodel({**half, "step_scheduler": {"max_steps": 2}}, folder="parts")
    second = automodel(half, folder="parts")
    assert first.code == second.code == 0
    assert second.losses == pytest.approx(whole.losses, rel=1e-3)


@pytest.mark.parametrize("loss", ["masked_ce", "chunked_ce", "fused_linear_ce"])
def test_all_losses_train_in_bfloat16(automodel, loss):
    run = automodel({"loss_fn": {"_target_": loss}, "model": {"torch_dtype": "bfloat16"}})
    assert run.code == 0, run.out
    assert run.losses[-1] < run.losses[0]


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "lora_plus", "pissa"])
def test_adapters_in_float32_train_beside_a_bfloat16_model(automodel, name):
    run = automodel({"peft": {"_target_": name, "dim": 4}, "optimizer": {"lr": 1e-2}})
    assert run.code == 0, run.out
    assert "frozen weights       bfloat16" in run.out
    assert run.losses[-1] < run.losses[0]


@pytest.mark.parametrize(("section", "fused"), [({}, True), ({"foreach": True}, None)])
def test_updates_are_fused_unless_the_yaml_chooses(automodel, monkeypatch, section, fused):
    step, seen = loop.optimizer_step, []

    def watched(run, stop):
        seen.append(run.optimizer.param_groups[0]["fused"])
        return step(run, stop)

    monkeypatch.setattr(loop, "optimizer_step", watched)
    run = automodel({"optimizer": section})
    assert run.code == 0, run.out
    assert set(seen) == {fused}
