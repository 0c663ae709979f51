"""Two GPUs through NCCL follow one: float32 closely, bfloat16 within its precision."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import Finished
from tests.same_run import assert_same_losses_and_tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

STEPS = {
    "dataloader": {"batch_size": 1, "shuffle": True},
    "step_scheduler": {"max_steps": 20, "global_batch_size": 4},
}
FSDP = {"_target_": "fsdp2"}
LAYOUTS = {
    "ddp": {"_target_": "ddp"},
    "fsdp2": FSDP,
    "hsdp": {**FSDP, "dp_replicate_size": 2},
    "tp": {**FSDP, "tp_size": 2},
    "tp+sp": {**FSDP, "tp_size": 2, "sequence_parallel": True},
    "offload": {**FSDP, "cpu_offload": True},
    "cp": {**FSDP, "cp_size": 2},
    "recomputed": {**FSDP, "activation_checkpointing": "full"},  # another spelling of the key
    "cp recomputed": {**FSDP, "cp_size": 2, "activation_checkpointing": "full"},
}
# What the losses may differ by, relatively: other orders of summation, and FSDP2's bfloat16
# residual stream beside autocast's float32.
CLOSE = {"float32": 1e-4, "auto": 3e-2}


@pytest.fixture
def torchrun(tmp_path, config_file):
    def run(changes: dict, *arguments: str, folder: str = "two") -> Finished:
        place = tmp_path / folder
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node=2", "-m", "automodel_core", "run"]
        done = subprocess.run(
            [*command, config_file(changes, place), *arguments],
            capture_output=True, text=True, timeout=300, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "4"},
        )  # fmt: skip
        return Finished(done.returncode, place, done.stdout + done.stderr)

    return run


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_tuning(automodel, torchrun, layout, dtype):
    changes = {**STEPS, "model": {"torch_dtype": dtype}, "loss_fn": {"_target_": "chunked_ce"}}
    one = automodel(changes, folder="one")
    two = torchrun({**changes, "distributed": LAYOUTS[layout]})
    assert two.code == 0, two.out[-4000:]
    assert two.losses == pytest.approx(one.losses, rel=CLOSE[dtype])


@pytest.mark.parametrize("layout", ["ddp", "fsdp2", "recomputed"])
@pytest.mark.parametrize("peft", [None, {"_target_": "lora"}], ids=["full", "lora"])
def test_compiled_layers(automodel, torchrun, layout, peft):
    changes = {**STEPS, "model": {"torch_dtype": "bfloat16"}, **({"peft": peft} if peft else {})}
    one = automodel({**changes, "compile": False}, folder="one")
    two = torchrun({**changes, "compile": True, "distributed": LAYOUTS[layout]})
    assert two.code == 0, two.out[-4000:]
    assert "compiled " in two.out
    assert two.losses == pytest.approx(one.losses, rel=CLOSE["auto"])


@pytest.mark.parametrize("layout", ["fsdp2", "tp", "tp+sp", "cp"])
def test_the_fused_loss_on_whole_and_on_cut_logits(automodel, torchrun, layout):
    changes = {**STEPS, "model": {"torch_dtype": "float32"}}
    changes["loss_fn"] = {"_target_": "fused_linear_ce"}
    one = automodel(changes, folder="one")
    two = torchrun({**changes, "distributed": LAYOUTS[layout]})
    assert two.code == 0, two.out[-4000:]
    assert two.losses == pytest.approx(one.losses, rel=CLOSE["float32"])


@pytest.mark.parametrize("layout", ["ddp", "fsdp2", "tp", "cp"])
def test_adapters_in_float32_beside_a_bfloat16_model(automodel, torchrun, layout):
    changes = {**STEPS, "model": {"torch_dtype": "bfloat16"}, "peft": {"_target_": "lora"}}
    one = automodel(changes, folder="one")
    two = torchrun({**changes, "distributed": LAYOUTS[layout]})
    assert two.code == 0, two.out[-4000:]
    assert two.losses == pytest.approx(one.losses, rel=CLOSE["auto"])


@pytest.mark.parametrize("layout", ["ddp", "fsdp2", "offload", "tp"])
def test_float16_with_one_loss_scale(automodel, torchrun, layout):
    changes = {**STEPS, "model": {"torch_dtype": "float16"}}
    one = automodel(changes, folder="one")
    two = torchrun({**changes, "distributed": LAYOUTS[layout]})
    assert two.code == 0, two.out[-4000:]
    assert two.losses == pytest.approx(one.losses, rel=CLOSE["auto"])


@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_sgd(automodel, torchrun, layout):
    changes = {**STEPS, "model": {"torch_dtype": "float32"}}
    changes["optimizer"] = {"_target_": "sgd", "lr": 0.1}
    one = automodel(changes, folder="one")
    two = torchrun({**changes, "distributed": LAYOUTS[layout]})
    assert two.code == 0, two.out[-4000:]
    assert two.losses == pytest.approx(one.losses, rel=CLOSE["float32"])


@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_stopped_and_resumed(torchrun, layout):
    changes = {**STEPS, "distributed": LAYOUTS[layout], "deterministic": True}
    part = {**changes, "step_scheduler": {**STEPS["step_scheduler"], "max_steps": 7}}
    whole = torchrun(changes, folder="whole")
    first, second = torchrun(part, folder="parts"), torchrun(changes, folder="parts")
    assert whole.code == first.code == second.code == 0, second.out[-4000:]
    assert second.losses == pytest.approx(whole.losses, rel=1e-5)
    if layout == "ddp":
        assert_same_losses_and_tensors(second, whole)


def test_nvfsdp(automodel, torchrun):
    pytest.importorskip("megatron_fsdp")
    changes = {**STEPS, "model": {"torch_dtype": "bfloat16"}, "checkpoint": {"enabled": False}}
    one = automodel(changes, folder="one")
    two = torchrun({**changes, "distributed": {"_target_": "nvfsdp"}})
    assert two.code == 0, two.out[-4000:]
    assert two.losses == pytest.approx(one.losses, rel=CLOSE["auto"])
