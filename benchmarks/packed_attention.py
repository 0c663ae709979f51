"""Attention within documents alone, forward and backward, by all kernels that can do it.

    python benchmarks/packed_attention.py [--out FILE.json]

Two rows of 4,096 tokens for the 1B shape and one for 8B, bfloat16, filled with documents of 256 to
4,096 tokens, or of lengths as chats have them; and rows of one document by SDPA's cuDNN kernels,
for what packing could gain. Rounds are interleaved. Results and gradients are compared with
attention in float32. Masks are made before; what making one takes is told apart. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
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

# Heads, of which keys and values have fewer; width; rows of a step; layers of the model.
SHAPES = {"1b": (32, 8, 64, 2, 16), "8b": (32, 8, 128, 1, 32)}
LENGTH, CALLS, ROUNDS = 4096, 5, 5
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
        torch.randn(rows, LENGTH, count, width, device="cuda", dtype=torch.bfloat16)
        .transpose(1, 2)
        .requires_grad_()
        for count in (heads, kv_heads, kv_heads)
    ]
    return Case(*tensors, positions_of(kind, rows).cuda())


torch._dynamo.config.recompile_limit = 64  # a graph for each shape and way
compiled_flex = torch.compile(flex_attention, dynamic=False)


def flex_as_transformers(case: Case) -> Callable[[], torch.Tensor]:
    documents = (case.positions == 0).cumsum(1)
    visible = and_masks(causal_mask_function, packed_sequence_mask_function(documents))
    rows = len(case.positions)
    mask = create_block_mask(visible, rows, None, LENGTH, LENGTH, device="cuda", _compile=True)
    return lambda: compiled_flex(
        case.query, case.key, case.value, block_mask=mask, enable_gqa=True
    ).transpose(1, 2)


def flex(case: Case) -> Callable[[], torch.Tensor]:
    mask = document_blocks(case.batch, lambda each: each.cuda())["attention_mask"]
    return lambda: compiled_flex(
        case.query, case.key, case.value, block_mask=mask, enable_gqa=True
    ).transpose(1, 2)


def varlen(case: Case, repeats: bool = True) -> Callable[[], torch.Tensor]:
    """As torch 2.11 documents it, with as many heads of keys and values as of queries; or without
    repeating them."""
    from torch.nn.attention.varlen import varlen_attn

    told = document_bounds(case.batch, lambda each: each.cuda())
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
    told = document_bounds(case.batch, lambda each: each.cuda())
    bounds, longest = told["cu_seq_lens_q"], LENGTH

    def attend() -> torch.Tensor:
        done = torch.ops.aten._flash_attention_forward(
            *case.behind_each_other(), bounds, bounds, longest, longest, 0.0, True, False
        )[0]
        return done.view(len(case.positions), LENGTH, *done.shape[1:])

    return attend


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


WAYS = {
    "flex, masked as by transformers": flex_as_transformers,
    "flex, masked by starts": flex,
    "varlen": varlen,
    "varlen, without repeating heads": partial(varlen, repeats=False),
    "varlen's kernels alone": varlen_grouped,
    "cuDNN, one document a row": unpacked,
}


def in_float32(case: Case, gradient: torch.Tensor) -> list[torch.Tensor]:
    """The reference: what attention gives, and its gradients."""
    inputs = [each.detach().float().requires_grad_() for each in (case.query, case.key, case.value)]
    documents = (case.positions == 0).cumsum(1)[:, None]
    seen = (documents[..., None] == documents[..., None, :]).tril()
    out = scaled_dot_product_attention(*inputs, attn_mask=seen, enable_gqa=True).transpose(1, 2)
    return [out, *torch.autograd.grad(out, inputs, gradient.float())]


def difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest, of results and gradients, as a part of the largest value."""
    pairs = zip(found, expected, strict=True)
    return max(((a.float() - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def timed(run: Callable[[], object]) -> float:
    """Milliseconds of a call, on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / CALLS


def measure(shape: str, kind: str) -> list[dict[str, Any]]:
    """All ways on one case."""
    case = case_of(shape, kind)
    inputs = (case.query, case.key, case.value)
    gradient = torch.randn_like(case.query.transpose(1, 2).contiguous())
    expected = in_float32(case, gradient)
    ready: dict[str, Callable[[], torch.Tensor]] = {}
    rows = []
    for name, way in WAYS.items():
        row = {"shape": shape, "documents": kind, "way": name, "forward": [], "both": []}
        try:
            started = time.perf_counter()
            attend = way(case)
            for _ in range(2):
                out = attend()
                found = [out, *torch.autograd.grad(out, inputs, gradient)]
            torch.cuda.synchronize()
            row["warm_up_s"] = time.perf_counter() - started
            row["difference"] = None if way is unpacked else difference(found, expected)
            ready[name] = attend
        except Exception as problem:  # a kernel that isn't there is a row of the table
            row["failed"] = f"{type(problem).__name__}: {problem}"[:300]
        rows.append(row)
    for _ in range(ROUNDS):
        for row in rows:
            attend = ready.get(row["way"])
            if attend is None:
                continue

            def both(attend: Callable[[], torch.Tensor] = attend) -> None:
                torch.autograd.grad(attend(), inputs, gradient)

            row["forward"].append(timed(attend))
            row["both"].append(timed(both))
    return rows


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("packed_attention.json"))
    options = parser.parse_args()
    rows = []
    for shape in SHAPES:
        for kind in ("even", "chats"):
            rows += measure(shape, kind)
            options.out.write_text(json.dumps({"rows": rows}, indent=1))
            for row in rows[-len(WAYS) :]:
                head = f"{shape} {kind:6}{row['way']:46}"
                if "failed" in row:
                    print(head, row["failed"])
                    continue
                forward, both = (statistics.median(row[each]) for each in ("forward", "both"))
                off = "" if row["difference"] is None else f"  off by {row['difference']:.4f}"
                print(
                    f"{head}{forward:7.3f} ms forward {both:7.3f} with backward "
                    f"({both * SHAPES[shape][-1]:6.1f} in all layers){off}",
                    flush=True,
                )
    masks = making_a_mask("even")
    options.out.write_text(json.dumps({"rows": rows, "masks_ms": masks}, indent=1))
    for name, spent in masks.items():
        print(f"{name}: {spent:.2f} ms a step")


if __name__ == "__main__":
    main()
