"""Time and memory of the losses on a step's hidden states, forward and backward, interleaved.

    python benchmarks/losses.py                        # the heads of Llama 1B and 8B, on a GPU
    python benchmarks/losses.py --shape tiny --cpu     # whether it runs
    python benchmarks/losses.py --kernel               # the softmax kernel's block sizes

Every loss is given the same hidden states, weight and labels in bfloat16; "float32" is with float32
weights under autocast, as full fine-tuning is by default. `masked_ce` computes the
logits of all positions, as models do; the others are given the supervised rows, found on the CPU,
and their gathering is timed. "products" are the matrix products of those rows alone, which no exact
loss can be faster than. Errors are those of the hidden states' and the weight's gradient, by their
norm, against float32. Medians over the rounds; memory is what a call holds beyond its inputs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from automodel_core.bench.environment import environment
from automodel_core.errors import UserError
from automodel_core.protocols import IGNORE_INDEX
from automodel_core.train.head import Head
from automodel_core.train.rows import at_rows, supervised_rows
from automodel_losses.chunked_ce import ChunkedCrossEntropy
from automodel_losses.fused_linear_ce import FusedLinearCrossEntropy, softmax_on
from automodel_losses.masked_ce import MaskedCrossEntropy
from automodel_losses.packaged import CutCrossEntropy, LigerFusedLinearCrossEntropy
from automodel_losses.softmax import Scores

# Hidden size and vocabulary.
SHAPES = {"tiny": (64, 1000), "1b": (2048, 128256), "8b": (4096, 128256)}
MASKED = (0.0, 0.3, 0.9)
KINDS = ("full", "frozen", "float32")
PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy")

Loss = Callable[[torch.Tensor, torch.Tensor, Head], torch.Tensor]


def masked(states: torch.Tensor, labels: torch.Tensor, head: Head) -> torch.Tensor:
    """All logits at once."""
    return MaskedCrossEntropy()(head(states), labels)


def checkpointed(states: torch.Tensor, labels: torch.Tensor, head: Head) -> torch.Tensor:
    """Chunks whose logits are computed again in the backward pass."""
    pairs = zip(states.split(2048), labels.split(2048), strict=True)
    return sum(checkpoint(masked, *pair, head, use_reentrant=False) for pair in pairs)


class Products(torch.autograd.Function):
    """Only the matrix products; what they multiply is as large as logits, and nothing else."""

    @staticmethod
    def forward(ctx, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        of_states = torch.empty_like(states)
        for start in range(0, len(states), 2048):
            chunk = states[start : start + 2048]
            logits = chunk @ weight.T
            of_states[start : start + 2048] = logits @ weight
            if of_weight is not None:
                of_weight.addmm_(logits.T, chunk, beta=int(start > 0))
        ctx.gradients = of_states, of_weight
        return states.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.gradients


def products(states: torch.Tensor, labels: torch.Tensor, head: Head) -> torch.Tensor:
    """What no exact loss can do without."""
    return Products.apply(states, head.embeddings.weight)


def losses(tokens: int) -> dict[str, tuple[Loss, bool]]:
    """By name: the loss, and whether it is given the supervised rows alone."""
    made: dict[str, tuple[Loss, bool]] = {
        "masked_ce": (masked, False),
        "checkpointed": (checkpointed, True),
        "chunked_ce": (ChunkedCrossEntropy(), True),
        "products": (products, True),
        "fused, all rows": (FusedLinearCrossEntropy(), False),
    }
    for chunk_len in (1024, 2048, 4096, 8192):
        if chunk_len <= tokens:
            made[f"fused {chunk_len}"] = FusedLinearCrossEntropy(chunk_len), True
    for name, packaged in (
        ("liger", LigerFusedLinearCrossEntropy),
        ("cut_cross_entropy", CutCrossEntropy),
    ):
        try:
            made[name] = packaged(), True
        except UserError as refused:
            print(f"{name}: {refused}")
    return made


class Case:
    """Inputs on the device.

    Args:
        shape: Of SHAPES.
        tokens: Positions of a step.
        share: Of them, those without a label.
        kind: Of KINDS.
        device: Where.
    """

    def __init__(
        self, shape: str, tokens: int, share: float, kind: str, device: torch.device
    ) -> None:
        hidden, vocabulary = SHAPES[shape]
        generator = torch.Generator().manual_seed(0)
        self.device, self.kind = device, kind
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        self.states = torch.randn(tokens, hidden, generator=generator).bfloat16().to(device, dtype)
        self.states.requires_grad_()
        embeddings = nn.Linear(hidden, vocabulary, bias=False, device=device, dtype=dtype)
        nn.init.normal_(embeddings.weight, std=0.02)
        self.head = Head(embeddings.requires_grad_(kind != "frozen"))
        labels = torch.randint(vocabulary, (tokens,), generator=generator)
        labels[torch.rand(tokens, generator=generator) < share] = IGNORE_INDEX
        rows = supervised_rows(labels[None])
        self.labels, self.rows = labels.to(device), None if rows is None else rows.to(device)

    def run(self, loss: Loss, selects: bool) -> torch.Tensor:
        """Forward and backward, as in a step."""
        self.states.grad = self.head.embeddings.weight.grad = None
        given = at_rows(self.states, self.labels, self.rows if selects else None)
        device = self.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.kind == "float32"):
            total = loss(*given, self.head)
        (total / len(self.labels)).backward()
        return total.detach()

    def gradients(self) -> list[torch.Tensor]:
        found = [self.states.grad, self.head.embeddings.weight.grad]
        return [each.float() for each in found if each is not None]

    def exact(self) -> tuple[float, list[torch.Tensor]]:
        """Loss and gradients in float32."""
        weight = self.head.embeddings.weight
        embeddings = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
        embeddings.weight = nn.Parameter(weight.detach().float(), weight.requires_grad)
        states = self.states.detach().float().requires_grad_()
        total = ChunkedCrossEntropy(512)(states, self.labels, Head(embeddings))
        (total / len(self.labels)).backward()
        found = [states.grad, embeddings.weight.grad]
        return total.item(), [each for each in found if each is not None]


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Of one call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(case: Case, rounds: int, tokens: int) -> list[dict[str, object]]:
    """One row a loss."""
    exact_loss, exact_gradients = case.exact()
    on_gpu = case.device.type == "cuda"
    rows: dict[str, dict[str, object]] = {}
    candidates = losses(tokens)
    if case.kind == "float32":
        del candidates["products"]
    for name, (loss, selects) in list(candidates.items()):
        try:
            case.run(loss, selects)
            case.states.grad = case.head.embeddings.weight.grad = None
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            total = case.run(loss, selects).item()
            row: dict[str, object] = {"loss": name}
            if on_gpu:
                row["GiB"] = (torch.cuda.max_memory_allocated() - before) / 2**30
            if name != "products":
                row["off"] = abs(total - exact_loss) / max(abs(exact_loss), 1e-9)
                row["errors"] = [
                    ((ours - right).norm() / right.norm()).item()
                    for ours, right in zip(case.gradients(), exact_gradients, strict=True)
                ]
            rows[name] = row
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            del candidates[name]
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, (loss, selects) in candidates.items():
            times[name].append(seconds(case.device, lambda: case.run(loss, selects)))  # noqa: B023
    for name, row in rows.items():
        row["ms"] = 1000 * statistics.median(times[name])
        row["fastest ms"] = 1000 * min(times[name])
    return list(rows.values())


def show(title: str, rows: list[dict[str, object]]) -> None:
    print(f"\n{title}\n{'loss':>20} {'ms':>9} {'fastest':>9} {'GiB':>6} {'off':>8}  errors")
    for row in rows:
        errors = " ".join(f"{each:.1e}" for each in row.get("errors", ()))
        print(
            f"{row['loss']:>20} {row['ms']:9.3f} {row['fastest ms']:9.3f} "
            f"{row.get('GiB', float('nan')):6.2f} {row.get('off', float('nan')):8.1e}  {errors}",
            flush=True,
        )


def kernel_alone(shape: str, rounds: int) -> None:
    """The softmax kernel on one chunk, by the size of its blocks and its warps."""
    kernels, device = softmax_on("cuda"), torch.device("cuda")
    logits = torch.randn(2048, SHAPES[shape][1], device=device).bfloat16()
    labels = torch.randint(logits.shape[1], (2048,), device=device)
    moved = 3 * logits.numel() * logits.element_size()
    for block in (2048, 4096, 8192, 16384, 32768):
        for warps in (4, 8, 16, 32):
            kernels.BLOCK, kernels.WARPS = block, warps
            calls = [
                seconds(device, lambda: kernels.losses_then_gradient(logits, labels, Scores()))
                for _ in range(rounds + 2)
            ][2:]
            ms = 1000 * statistics.median(calls)
            print(f"block {block:6} warps {warps:3}: {ms:7.3f} ms, {moved / ms / 1e6:7.0f} GB/s")


def main() -> None:
    """A table for each shape, kind and share of masked labels."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=["1b", "8b"])
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--kernel", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.cpu else "cuda")
    machine = environment(*PACKAGES)
    for name, value in machine.items():
        print(f"{name}: {value}")
    if arguments.kernel:
        kernel_alone(arguments.shape[0], arguments.rounds)
        return
    tables = []
    for shape in arguments.shape:
        for kind in arguments.kind:
            for share in MASKED:
                case = Case(shape, arguments.tokens, share, kind, device)
                title = f"{shape}, {kind}, {arguments.tokens} tokens, {share:.0%} masked"
                rows = measured(case, arguments.rounds, arguments.tokens)
                show(title, rows)
                tables.append({"title": title, "rows": rows})
    if arguments.json:
        found = {"environment": machine, "tables": tables}
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
