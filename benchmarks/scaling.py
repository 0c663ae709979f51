"""What a second GPU adds: tokens per second per GPU, full tuning of a 1B-shaped Llama under FSDP2.

    python benchmarks/scaling.py [--rounds 2] [--steps 14] [--json FILE]

Two sequences of 4,096 random tokens a GPU, bfloat16 compute over float32 weights, fused AdamW, no
activation checkpointing. Our engine runs from a YAML file on one GPU and on two; beside it the
shortest hand-written FSDP2 loop, on the same model, data and loss. All take turns; a figure is the
median over the steps after the first six, of all rounds. Prints the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

LENGTH, BATCH, WARM_UP = 4096, 2, 6
SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}


def torchrun(processes: int, *command: str) -> None:
    """Run something on so many GPUs; what it printed is shown if it fails."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *launch, *command],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "8"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-6000:])


def ours(folder: Path, processes: int, steps: int) -> list[float]:
    """Seconds of each step, from the log of a run of the engine."""
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    torchrun(
        processes, "-m", "automodel_core", "run", str(folder / "config.yaml"), "--quiet",
        f"step_scheduler.max_steps={steps}", f"checkpoint.checkpoint_dir={run}",
    )  # fmt: skip
    lines = (run / "training.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines][WARM_UP:]


def by_hand(folder: Path, processes: int, steps: int) -> list[float]:
    out = folder / "hand.json"
    torchrun(processes, __file__, "--hand", str(folder), "--steps", str(steps))
    return json.loads(out.read_text())[WARM_UP:]


def write_inputs(folder: Path) -> None:
    from ruamel.yaml import YAML
    from transformers import LlamaConfig

    from tests.tiny import tiny_tokenizer

    tiny_tokenizer(folder / "model")
    LlamaConfig(**SHAPE).save_pretrained(folder / "model")
    config = {
        "model": {"_target_": "causal_lm_from_config", "config": str(folder / "model")},
        "dataset": {"_target_": "mock", "length": LENGTH},
        "dataloader": {"batch_size": BATCH, "num_workers": 2},
        "step_scheduler": {"max_steps": 10},
        "optimizer": {"_target_": "adamw", "lr": 1e-5, "fused": True},
        "loss_fn": {"_target_": "chunked_ce"},
        "distributed": {"_target_": "fsdp2"},
        "checkpoint": {"enabled": False},
        "guards": {"effective_batch": "off"},
    }
    with (folder / "config.yaml").open("w") as handle:
        YAML(typ="safe").dump(config, handle)


def hand_written(folder: Path, steps: int) -> None:
    """One rank of the loop that somebody would write for this model alone."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers import AutoConfig, AutoModelForCausalLM

    from automodel_datasets.mock import MockDataset

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if size == 1:
        model.cuda()
    else:
        for layer in model.model.layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy, reshard_after_forward=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    data, seconds, cross_entropy = MockDataset(LENGTH, vocabulary=SHAPE["vocab_size"]), [], None
    rows = [data[index] for index in range(BATCH)]
    ids = torch.tensor([row["input_ids"] for row in rows]).cuda()
    labels = torch.tensor([row["labels"] for row in rows]).cuda()
    for _ in range(steps):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
            cross_entropy = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        cross_entropy.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        (folder / "hand.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--hand", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hand:
        hand_written(options.hand, options.steps)
        return 0
    import torch

    from automodel_core.bench.environment import environment

    found = {
        "environment": environment("torch", "transformers") | {"gpus": torch.cuda.device_count()}
    }
    sides = {"ours": ours, "by hand": by_hand}
    seconds: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        for _ in range(options.rounds):
            for name, side in sides.items():
                for processes in (1, 2):
                    steps = side(Path(folder), processes, options.steps)
                    seconds.setdefault((name, processes), []).extend(steps)
    rates = {key: BATCH * LENGTH / statistics.median(each) for key, each in seconds.items()}
    print(*(f"{name}: {value}" for name, value in found["environment"].items()), sep="\n")
    print(f"\n{'tokens/s per GPU':<18}{'one GPU':>10}{'two':>10}{'two / one':>11}")
    for name in sides:
        one, two = rates[name, 1], rates[name, 2]
        print(f"{name:<18}{one:>10,.0f}{two:>10,.0f}{two / one:>11.3f}")
    if options.json:
        found["rates"] = {f"{name}, {count}": rate for (name, count), rate in rates.items()}
        options.json.write_text(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
