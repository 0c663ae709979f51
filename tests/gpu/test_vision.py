"""A model of 4B parameters that sees, beside Trainer and PEFT on the same GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "vision_step.py"


def test_lora_on_a_shape_of_gemma_3_4b_learns_as_trainer_and_peft_in_less_memory(tmp_path):
    """Frozen tower, bfloat16; each side in a process of its own, on the same images. The benchmark
    prints tokens and images a second too, which docs/vision.md compares."""
    out = tmp_path / "figures.json"
    words = ["--shape", "gemma3-4b", "--rounds", "1", "--out", str(out)]
    subprocess.run([sys.executable, str(BENCHMARK), *words], check=True, timeout=600)
    (both,) = json.loads(out.read_text())["rounds"]
    ours, theirs = both["ours"], both["theirs"]
    assert ours["peak_gib"] < theirs["peak_gib"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
