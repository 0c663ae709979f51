"""Attention within documents alone, forward and backward, by the kernels that can do it.

    python benchmarks/packed_attention.py [--out FILE.json]   # on a GPU, about two minutes
    python benchmarks/packed_attention.py --tune              # FlexAttention's tiles, two minutes
    python benchmarks/packed_attention.py --smoke --all       # tiny, for a CPU: whether it runs

Two rows of 4,096 tokens for the 1B shape and one for 8B, bfloat16, filled with documents of 256 to
4,096 tokens, or of lengths as chats have them; and rows of one document by SDPA's cuDNN kernels,
for what packing could gain. Rounds are interleaved. Results and gradients are compared with
attention in float32. Masks are made before; what making one takes is told apart.

Beside what a call takes stands what its kernels take: more is waiting for the host, which in a step
of many layers runs ahead. What is known is written after each case. cuDNN's graphs need the package
nvidia-cudnn-frontend.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    packed_sequence_mask_function,
)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from automodel_core.train.documents import document_blocks, document_bounds  # noqa: E402
from automodel_models.cudnn_documents import attend_within  # noqa: E402

# Heads, of which keys and values have fewer; width; rows of a step; layers of the model.
SHAPES = {"1b": (32, 8, 64, 2, 16), "8b": (32, 8, 128, 1, 32)}
KINDS = ("even", "chats")
LENGTH, CALLS, ROUNDS = 4096, 5, 5
DEVICE = "cuda"
# Makes masks, and gives what computes attention.
Way = Callable[["Case"], Callable[[], torch.Tensor]]


@attrs.frozen
class Case:
    """Inputs, `[rows, heads, length, width]` as layers give them, and where documents begin."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    positions: torch.Tensor

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        """As collated."""
        host = self.positions.cpu()
        return {"position_ids": host, "attention_mask": torch.ones_like(host)}

    def behind_each_other(self) -> list[torch.Tensor]:
        """Query, key and value, `[tokens, heads, width]`."""
        return [each.transpose(1, 2).flatten(0, 1) for each in (self.query, self.key, self.value)]


def positions_of(kind: str, rows: int) -> torch.Tensor:
    """`[rows, LENGTH]`, rows filled with documents."""
    drawn = torch.Generator().manual_seed(1)
    positions = torch.empty(rows, LENGTH, dtype=torch.long)
    for row in positions:
        start = 0
        while start < LENGTH:
            if kind == "even":
                length = int(torch.randint(256, LENGTH + 1, (), generator=drawn))
            else:
                length = int(torch.empty(()).log_normal_(6.1, 0.8, generator=drawn)) + 8
            end = min(start + length, LENGTH)
            row[start:end] = torch.arange(end - start)
            start = end
    return positions


def case_of(shape: str, kind: str) -> Case:
    heads, kv_heads, width, rows, _ = SHAPES[shape]
    torch.manual_seed(0)
    tensors = [
        torch.randn(rows, LENGTH, count, width, device=DEVICE, dtype=torch.bfloat16)
        .transpose(1, 2)
        .requires_grad_()
        for count in (heads, kv_heads, kv_heads)
    ]
    return Case(*tensors, positions_of(kind, rows).to(DEVICE))


torch._dynamo.config.recompile_limit = 64  # a graph for each shape and way
compiled_flex = torch.compile(flex_attention, dynamic=False)


def flex_as_transformers(case: Case) -> Callable[[], torch.Tensor]:
    documents = (case.positions == 0).cumsum(1)
    visible = and_masks(causal_mask_function, packed_sequence_mask_function(documents))
    rows = len(case.positions)
    mask = create_block_mask(visible, rows, None, LENGTH, LENGTH, device=DEVICE, _compile=True)
    return lambda: compiled_flex(
        case.query, case.key, case.value, block_mask=mask, enable_gqa=True
    ).transpose(1, 2)


def flex(case: Case, **options: Any) -> Callable[[], torch.Tensor]:
    """With FlexAttention's `kernel_options`."""
    mask = document_blocks(case.batch, lambda each: each.to(DEVICE))["attention_mask"]
    return lambda: compiled_flex(
        case.query, case.key, case.value, block_mask=mask, enable_gqa=True, kernel_options=options
    ).transpose(1, 2)


def varlen(case: Case, repeats: bool = True) -> Callable[[], torch.Tensor]:
    """As torch 2.11 documents it, with as many heads of keys and values as of queries; or without
    repeating them."""
    from torch.nn.attention.varlen import varlen_attn

    told = document_bounds(case.batch, lambda each: each.to(DEVICE))
    bounds, longest = told["cu_seq_lens_q"], LENGTH
    times = case.query.shape[1] // case.key.shape[1] if repeats else 1

    def attend() -> torch.Tensor:
        query, key, value = case.behind_each_other()
        key, value = (each.repeat_interleave(times, dim=1) for each in (key, value))
        done = varlen_attn(query, key, value, bounds, bounds, longest, longest, window_size=(-1, 0))
        return done.view(len(case.positions), LENGTH, *done.shape[1:])

    return attend


def varlen_grouped(case: Case) -> Callable[[], torch.Tensor]:
    """The kernels under it, which know of fewer heads."""
    told = document_bounds(case.batch, lambda each: each.to(DEVICE))
    bounds, longest = told["cu_seq_lens_q"], LENGTH

    def attend() -> torch.Tensor:
        done = torch.ops.aten._flash_attention_forward(
            *case.behind_each_other(), bounds, bounds, longest, longest, 0.0, True, False
        )[0]
        return done.view(len(case.positions), LENGTH, *done.shape[1:])

    return attend


def cudnn_ragged(case: Case, longest: int | None = None) -> Callable[[], torch.Tensor]:
    """By cuDNN's kernels, planned for a rounded number of documents, and for the longest of them or
    for one as long."""
    told = document_bounds(case.batch, lambda each: each.to(DEVICE), rounded=True)
    bounds = told["cu_seq_lens_q"]
    longest = longest or int(bounds.diff().max())

    def attend() -> torch.Tensor:
        done = attend_within(*case.behind_each_other(), bounds, longest)
        return done.view(len(case.positions), LENGTH, *done.shape[1:])

    return attend


def masked(case: Case) -> Callable[[], torch.Tensor]:
    """SDPA with a mask of all pairs, as transformers gives it."""
    seen = visible_pairs(case)
    return lambda: scaled_dot_product_attention(
        case.query, case.key, case.value, attn_mask=seen, enable_gqa=True
    ).transpose(1, 2)


def unpacked(case: Case) -> Callable[[], torch.Tensor]:
    """Another computation: each row is one document."""
    attend = partial(
        scaled_dot_product_attention, case.query, case.key, case.value,
        is_causal=True, enable_gqa=True,
    )  # fmt: skip

    def by_cudnn() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return attend().transpose(1, 2)

    return by_cudnn


WAYS: dict[str, Way] = {
    "cuDNN's graphs, as long as rows": lambda case: cudnn_ragged(case, LENGTH),
    "flex, masked by starts": flex,
    "varlen's kernels alone": varlen_grouped,
    "cuDNN, one document a row": unpacked,
}
OTHERS: dict[str, Way] = {
    "cuDNN's graphs, as long as documents": cudnn_ragged,
    "flex, masked as by transformers": flex_as_transformers,
    "varlen": varlen,
    "varlen, without repeating heads": partial(varlen, repeats=False),
    "SDPA with a mask": masked,
}


def visible_pairs(case: Case) -> torch.Tensor:
    """What each token sees, `[rows, 1, queries, keys]`."""
    document = (case.positions == 0).cumsum(1)[:, None]
    return (document[..., None] == document[..., None, :]).tril()


def in_float32(case: Case, gradient: torch.Tensor) -> list[torch.Tensor]:
    """The reference: what attention gives, and its gradients."""
    inputs = [each.detach().float().requires_grad_() for each in (case.query, case.key, case.value)]
    seen = visible_pairs(case)
    out = scaled_dot_product_attention(*inputs, attn_mask=seen, enable_gqa=True).transpose(1, 2)
    return [out, *torch.autograd.grad(out, inputs, gradient.float())]


def difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest, of results and gradients, as a part of the largest value.

    Raises:
        ArithmeticError: Something found isn't finite.
    """
    pairs = list(zip(found, expected, strict=True))
    worst = [((a.float() - b).abs().max() / b.abs().max()).item() for a, b in pairs]
    if not all(map(math.isfinite, worst)):
        raise ArithmeticError(f"not finite: {worst} of the result and its gradients")
    return max(worst)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def timed(run: Callable[[], object]) -> float:
    """Milliseconds of a call, the host's part included where the device waits for it."""
    wait()
    started = time.perf_counter()
    for _ in range(CALLS):
        run()
    wait()
    return (time.perf_counter() - started) * 1000 / CALLS


def kernels_alone(run: Callable[[], object]) -> float | None:
    """Milliseconds that the kernels of a call take; None where they can't be watched."""
    watched = [torch.profiler.ProfilerActivity.CUDA]
    if not set(watched) <= torch.profiler.supported_activities():
        return None
    with torch.profiler.profile(activities=watched) as profile:
        run()
        wait()
    kernels = [
        each
        for each in profile.key_averages()
        if each.device_type == torch.autograd.DeviceType.CUDA and not each.is_user_annotation
    ]
    return sum(each.self_device_time_total for each in kernels) / 1000


def measure(shape: str, kind: str, ways: dict[str, Way]) -> list[dict[str, Any]]:
    """Each of the ways on one case: a row, with the reason where it doesn't work."""
    case = case_of(shape, kind)
    inputs = (case.query, case.key, case.value)
    gradient = torch.randn_like(case.query.transpose(1, 2).contiguous())
    expected = in_float32(case, gradient)
    ready: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    rows = []
    for name, way in ways.items():
        row = {"shape": shape, "documents": kind, "way": name, "forward": [], "both": []}
        try:
            started = time.perf_counter()
            attend = way(case)

            def both(attend: Callable[[], torch.Tensor] = attend) -> list[torch.Tensor]:
                out = attend()
                return [out, *torch.autograd.grad(out, inputs, gradient)]

            both()
            found = both()
            wait()
            row["warm_up_s"] = time.perf_counter() - started
            row["difference"] = None if way is unpacked else difference(found, expected)
            ready[name] = attend, both
        except Exception as problem:  # a kernel that isn't there is a row of the table
            row["failed"] = f"{type(problem).__name__}: {problem}"[:500]
        rows.append(row)
    for _ in range(ROUNDS):
        for row in rows:
            if row["way"] in ready:
                attend, both = ready[row["way"]]
                row["forward"].append(timed(attend))
                row["both"].append(timed(both))
    for row in rows:
        if row["way"] in ready:
            row["kernels"] = kernels_alone(ready[row["way"]][1])
    return rows


# FlexAttention's tiles of the backward pass to try, with stages and warps. PyTorch's own on an H100
# are 64, 128, 128, 64, 3 and 8; those of its forward pass are no slower than others.
TILES = ((64, 64, 64, 64, 3, 4), (64, 64, 64, 64, 2, 4))
BACKWARD = ("BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2", "num_stages", "num_warps")


def tuned() -> Iterator[list[dict[str, Any]]]:
    """Rows of FlexAttention by PyTorch's tiles and by each of TILES, as they become known. Both
    kinds of documents share what is compiled: six times in all."""
    for shape in SHAPES:
        ways: dict[str, Way] = {"PyTorch's tiles": flex}
        for tiles in TILES:
            options = {f"bwd_{name}": size for name, size in zip(BACKWARD, tiles, strict=True)}
            ways[f"backward by {tiles}"] = partial(flex, **options)
        for kind in KINDS:
            yield measure(shape, kind, ways)


def making_a_mask(kind: str) -> dict[str, float]:
    """Milliseconds of the host and the device for the masks of a 1B step, copies included."""
    case = case_of("1b", kind)
    batch, found = case.batch, {}

    def put(each: torch.Tensor) -> torch.Tensor:
        return each.pin_memory().cuda(non_blocking=True)

    ways = {
        "blocks from positions": lambda: document_blocks(batch, put),
        "bounds from positions": lambda: document_bounds(batch, put),
        "create_block_mask, compiled": lambda: flex_as_transformers(case),
    }
    for name, make in ways.items():
        for _ in range(3):
            make()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            make()
        torch.cuda.synchronize()
        found[name] = (time.perf_counter() - started) * 100
    return found


def shown(row: dict[str, Any]) -> str:
    head = f"{row['shape']} {row['documents']:6}{row['way']:46}"
    if "failed" in row:
        return f"{head} {row['failed']}"
    forward, both = (statistics.median(row[each]) for each in ("forward", "both"))
    off = "" if row["difference"] is None else f"  off by {row['difference']:.4f}"
    kernels = "" if row["kernels"] is None else f", kernels {row['kernels']:7.3f}"
    return (
        f"{head}{forward:7.3f} ms forward {both:7.3f} with backward{kernels} "
        f"({both * SHAPES[row['shape']][-1]:6.1f} in all layers){off}"
    )


def measured(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """What was asked for, a case at a time."""
    if options.tune:
        yield from tuned()
        return
    ways = WAYS | OTHERS if options.all else WAYS
    for shape, kind in itertools.product(SHAPES, KINDS):
        yield measure(shape, kind, ways)


def be_small() -> None:
    """Sizes for a CPU, where most ways say that they need a GPU."""
    global SHAPES, LENGTH, CALLS, ROUNDS, DEVICE
    SHAPES = {"1b": (4, 2, 16, 2, 2)}
    LENGTH, CALLS, ROUNDS, DEVICE = 320, 1, 1, "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("packed_attention.json"))
    parser.add_argument("--tune", action="store_true", help="FlexAttention's tiles alone")
    parser.add_argument("--all", action="store_true", help="other ways too, known to be slower")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU")
    options = parser.parse_args()
    if options.smoke:
        be_small()
    found: dict[str, Any] = {"rows": []}
    for rows in measured(options):
        found["rows"] += rows
        options.out.write_text(json.dumps(found, indent=1))
        print(*map(shown, rows), sep="\n", flush=True)
    if options.tune or DEVICE == "cpu":
        return
    found["masks_ms"] = making_a_mask("even")
    options.out.write_text(json.dumps(found, indent=1))
    for name, spent in found["masks_ms"].items():
        print(f"{name}: {spent:.2f} ms a step")


if __name__ == "__main__":
    main()
