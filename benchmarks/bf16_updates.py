"""What weights in bfloat16 lose at small learning rates, and two ways not to lose it.

    python benchmarks/bf16_updates.py [--first 1500] [--then 600] [--lr 1e-5]

A small Llama learns the bytes of Python's standard library in float32. Then each arm goes on from
the same weights, on the same batches of other files, at a fine-tuning rate: float32 weights,
bfloat16 weights rounded to the nearest, and bfloat16 weights rounded at random. Printed: the loss
on held-out text before and after, what of float32's gain each arm has, and the share of the weights
with a gradient that an average step left unmoved.
"""

from __future__ import annotations

import argparse
import copy
import sysconfig
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from automodel_core.bench.environment import environment
from automodel_optimizers.stochastic_rounding import StochasticAdamW

LENGTH, BATCH = 256, 16


def text(pattern: str) -> torch.Tensor:
    """The bytes of some of Python's own files, one after another."""
    folder = Path(sysconfig.get_path("stdlib"))
    return torch.frombuffer(
        bytearray(b"".join(path.read_bytes() for path in sorted(folder.glob(pattern)))),
        dtype=torch.uint8,
    ).long()


def batches(data: torch.Tensor, steps: int, seed: int, device: str):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(data) - LENGTH, (BATCH,), generator=draw)
        yield torch.stack([data[start : start + LENGTH] for start in starts]).to(device)


@torch.no_grad()
def held_out(model: torch.nn.Module, data: torch.Tensor, device: str) -> float:
    losses = [model(ids, labels=ids).loss.double() for ids in batches(data, 20, 7, device)]
    return torch.stack(losses).mean().item()


def train(model, optimizer, data, steps: int, seed: int, device: str) -> float:
    """Returns the mean share of weights with a gradient that a step left unmoved."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    still = torch.zeros((), device=device)
    for ids in batches(data, steps, seed, device):
        model(ids, labels=ids).loss.backward()
        before = [weight.detach().clone() for weight in weights]
        optimizer.step()
        wanted = [weight.grad != 0 for weight in weights]
        stayed = [w == old for w, old in zip(weights, before, strict=True)]
        lost = sum((a & b).sum() for a, b in zip(wanted, stayed, strict=True))
        still += lost / sum(each.sum() for each in wanted)
        optimizer.zero_grad()
    return (still / steps).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--first", type=int, default=1500)
    parser.add_argument("--then", type=int, default=600)
    parser.add_argument("--lr", type=float, default=1e-5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, value in environment("torch", "transformers").items():
        print(f"{name}: {value}")
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_attention_heads=8, **shape)).to(device)
    library, other = text("[a-m]*.py"), text("email/*.py")
    unseen = text("http/*.py")
    train(base, torch.optim.AdamW(base.parameters(), lr=1e-3), library, options.first, 1, device)

    arms = {
        "float32 weights": (torch.float32, torch.optim.AdamW),
        "bfloat16, to the nearest": (torch.bfloat16, torch.optim.AdamW),
        "bfloat16, at random": (torch.bfloat16, StochasticAdamW),
    }
    print(f"\nlr {options.lr}, {options.then} steps of {BATCH} x {LENGTH} bytes")
    print(f"{'':<26}{'before':>8}{'after':>8}{'gain':>8}{'of float32':>12}{'unmoved':>9}")
    gains = []
    for name, (dtype, optimizer_class) in arms.items():
        model = copy.deepcopy(base).to(dtype)
        optimizer = optimizer_class(model.parameters(), lr=options.lr, weight_decay=0.0)
        before = held_out(model, unseen, device)
        still = train(model, optimizer, other, options.then, 2, device)
        after = held_out(model, unseen, device)
        gains.append(before - after)
        share = gains[-1] / gains[0]
        print(f"{name:<26}{before:>8.4f}{after:>8.4f}{gains[-1]:>8.4f}{share:>12.0%}{still:>9.1%}")


if __name__ == "__main__":
    main()
