"""A rank of the whole engine holds its part of a large model, and no more than once again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.train.test_sharded_reading import zeros_of
from tests.sharding import three_gigabytes
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    zeros_of(three_gigabytes(), folder)
    tiny_tokenizer(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("sizes", [{}, {"tp_size": 2}], ids=["4 shards", "2 x 2"])
def test_four_ranks_read_three_gigabytes_within_twice_their_shares(
    large, config_file, tmp_path, tuned, sizes
):
    changes = {
        "model": {"pretrained_model_name_or_path": str(large), "torch_dtype": "bfloat16"},
        "distributed": {"_target_": "fsdp2", **sizes},
        **({"peft": {"_target_": "lora", "dim": 8}} if tuned == "lora" else {}),
    }
    config = config_file(changes, tmp_path / "run")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    done = subprocess.run(
        [*command, "-m", "tests.loading_memory", config],
        cwd=ROOT, capture_output=True, text=True, timeout=1000, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.findall(r"PEAK (\d+) (\d+) (\d+)", done.stdout)
    assert len(found) == 4, done.stdout
    for peak, own, largest in (map(int, each) for each in found):
        print(f"peak {peak / 1e6:.0f} MB, shard {own / 1e6:.0f} MB")
        assert peak <= 2 * own + largest
