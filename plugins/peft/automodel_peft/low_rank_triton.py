"""The adapter's four products as Triton kernels, for LoRA's skinny matrices.

All are read in one precision; products accumulate in float32. A sum that several programs share is
written in parts and added by a second kernel in a fixed order, so that a run repeats to the last
bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Rows (tokens), columns (features), warps and stages. Tuned by `benchmarks/lora.py --tune`.
TILES = {
    "reduce": (64, 128, 4, 2),
    "add": (64, 128, 4, 2),
    "factor": (64, 64, 4, 3),
    "once": (128, 64, 4, 2),
}
# Programs to have at least, so that a GPU of 132 processors has two each.
PROGRAMS = 264
# Numbers that a program of the second kernel adds at a time.
FINISH = 2048


def reduce(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`x factor^T`: `[tokens, features]` by `[rank, features]`, any strides of `factor`."""
    (tokens, features), rank = x.shape, len(factor)
    rows, columns, warps, stages = _sizes("reduce", x, rank)
    parts, span = _parts(triton.cdiv(tokens, rows), features, columns)
    partial = torch.empty(parts, tokens, rank, device=x.device)
    _reduce[(triton.cdiv(tokens, rows), parts)](
        x, factor, partial, tokens, features, x.stride(0), *factor.stride(),
        SPAN=span, RANK=rank, RANKS=_padded(rank), ROWS=rows, COLUMNS=columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return _finished(partial, x.dtype)


def add_expanded(y: torch.Tensor, reduced: torch.Tensor, factor: torch.Tensor) -> None:
    """`y += reduced factor^T` in place: `[tokens, features]`, `[tokens, rank]` and
    `[features, rank]`, any strides of `factor`."""
    (tokens, features), rank = y.shape, factor.shape[1]
    rows, columns, warps, stages = _sizes("add", y, rank)
    _add_expanded[(triton.cdiv(tokens, rows), triton.cdiv(features, columns))](
        y, reduced, factor, tokens, features, y.stride(0), *factor.stride(),
        RANK=rank, RANKS=_padded(rank), ROWS=rows, COLUMNS=columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


def factor_gradient(x: torch.Tensor, reduced: torch.Tensor, transposed: bool) -> torch.Tensor:
    """`x^T reduced` over the tokens, `[features, rank]`, or as `[rank, features]`, in float32."""
    (tokens, features), rank = x.shape, reduced.shape[1]
    rows, columns, warps, stages = _sizes("factor", x, rank)
    parts, span = _parts(triton.cdiv(features, columns), tokens, rows)
    size, strides = (
        ((rank, features), (1, features)) if transposed else ((features, rank), (rank, 1))
    )
    partial = torch.empty(parts, *size, device=x.device)
    _factor_gradient[(triton.cdiv(features, columns), parts)](
        x, reduced, partial, tokens, features, x.stride(0), *strides,
        SPAN=span, RANK=rank, RANKS=_padded(rank), ROWS=rows, COLUMNS=columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return _finished(partial, torch.float32)


def reduce_and_gradient(
    x: torch.Tensor, factor: torch.Tensor, reduced: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x factor` and `x^T reduced`, in float32, in one reading of `x`; `factor` is
    `[features, rank]`.

    What it saves of `x` it spends on parts of the gradient, one for every block of tokens.
    """
    (tokens, features), rank = x.shape, factor.shape[1]
    rows, columns, warps, stages = _sizes("once", x, rank)
    blocks = triton.cdiv(tokens, rows)
    parts, span = _parts(blocks, features, columns)
    sums = torch.empty(parts, tokens, rank, device=x.device)
    partial = torch.empty(blocks, features, rank, device=x.device)
    _reduce_and_gradient[(blocks, parts)](
        x, factor, reduced, sums, partial, tokens, features, x.stride(0), *factor.stride(),
        SPAN=span, RANK=rank, RANKS=_padded(rank), ROWS=rows, COLUMNS=columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return _finished(sums, x.dtype), _finished(partial, torch.float32)


def _sizes(kernel: str, x: torch.Tensor, rank: int) -> tuple[int, int, int, int]:
    """Of TILES, made to fit a processor's registers and shared memory at large ranks."""
    rows, columns, warps, stages = TILES[kernel]
    ranks = _padded(rank)
    fitting = min(rows, max(64, 4096 // ranks)), min(columns, max(32, 8192 // ranks))
    return *fitting, warps, min(stages, 2) if x.element_size() == 4 else stages


def _padded(rank: int) -> int:
    """Tensor cores take 16 at least."""
    return max(16, triton.next_power_of_2(rank))


def _parts(programs: int, length: int, block: int) -> tuple[int, int]:
    """How many parts to sum `length` in, and how long each is, a multiple of `block`."""
    blocks = triton.cdiv(length, block)
    # Powers of two: a kernel is compiled for every span, and lengths vary from step to step.
    each = 2 ** (max(1, blocks // triton.cdiv(PROGRAMS, programs)).bit_length() - 1)
    span = block * each
    return triton.cdiv(length, span), span


def _finished(partial: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The sum of the parts, in order."""
    if len(partial) == 1 and partial.dtype == dtype:
        return partial[0]
    total = torch.empty(partial.shape[1:], dtype=dtype, device=partial.device)
    size, parts = total.numel(), triton.next_power_of_2(len(partial))
    chunk = min(parts, FINISH // 32)
    _finish[(triton.cdiv(size, FINISH // chunk),)](
        partial, total, size, len(partial), PARTS=parts, CHUNK=chunk, BLOCK=FINISH // chunk
    )
    return total


@triton.jit
def _tile(pointer, rows, columns, row_stride, column_stride, height, width):
    """A tile with zeros beyond the matrix."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    offsets = rows[:, None].to(tl.int64) * row_stride + columns[None, :] * column_stride
    return tl.load(pointer + offsets, mask=inside, other=0.0)


@triton.jit
def _put(pointer, values, rows, columns, row_stride, column_stride, height, width):
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    offsets = rows[:, None].to(tl.int64) * row_stride + columns[None, :] * column_stride
    tl.store(pointer + offsets, values, mask=inside)


@triton.jit
def _reduce(
    x, factor, partial, tokens, features, x_stride, rank_stride, feature_stride,
    SPAN: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ranks = tl.arange(0, RANKS)
    total = tl.zeros((ROWS, RANKS), tl.float32)
    for start in range(0, SPAN, COLUMNS):
        columns = part * SPAN + start + tl.arange(0, COLUMNS)
        block = _tile(x, rows, columns, x_stride, 1, tokens, features)
        down = _tile(factor, columns, ranks, feature_stride, rank_stride, features, RANK)
        total = tl.dot(block, down, total, input_precision="ieee")
    partial += part.to(tl.int64) * tokens * RANK
    _put(partial, total, rows, ranks, RANK, 1, tokens, RANK)


@triton.jit
def _add_expanded(
    y, reduced, factor, tokens, features, y_stride, feature_stride, rank_stride,
    RANK: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANKS)
    block = _tile(y, rows, columns, y_stride, 1, tokens, features)
    small = _tile(reduced, rows, ranks, RANK, 1, tokens, RANK)
    up = _tile(factor, ranks, columns, rank_stride, feature_stride, RANK, features)
    total = tl.dot(small, up, block.to(tl.float32), input_precision="ieee")
    _put(y, total.to(block.dtype), rows, columns, y_stride, 1, tokens, features)


@triton.jit
def _factor_gradient(
    x, reduced, partial, tokens, features, x_stride, feature_stride, rank_stride,
    SPAN: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANKS)
    total = tl.zeros((COLUMNS, RANKS), tl.float32)
    for start in range(0, SPAN, ROWS):
        rows = part * SPAN + start + tl.arange(0, ROWS)
        block = _tile(x, rows, columns, x_stride, 1, tokens, features)
        small = _tile(reduced, rows, ranks, RANK, 1, tokens, RANK)
        total = tl.dot(tl.trans(block), small, total, input_precision="ieee")
    partial += part.to(tl.int64) * features * RANK
    _put(partial, total, columns, ranks, feature_stride, rank_stride, features, RANK)


@triton.jit
def _reduce_and_gradient(
    x, factor, reduced, sums, partial, tokens, features, x_stride,
    feature_stride, rank_stride,
    SPAN: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    block_of_rows, part = tl.program_id(0), tl.program_id(1)
    rows = block_of_rows * ROWS + tl.arange(0, ROWS)
    ranks = tl.arange(0, RANKS)
    small = _tile(reduced, rows, ranks, RANK, 1, tokens, RANK)
    total = tl.zeros((ROWS, RANKS), tl.float32)
    partial += block_of_rows.to(tl.int64) * features * RANK
    for start in range(0, SPAN, COLUMNS):
        columns = part * SPAN + start + tl.arange(0, COLUMNS)
        block = _tile(x, rows, columns, x_stride, 1, tokens, features)
        down = _tile(factor, columns, ranks, feature_stride, rank_stride, features, RANK)
        total = tl.dot(block, down, total, input_precision="ieee")
        gradient = tl.dot(tl.trans(block), small, input_precision="ieee")
        _put(partial, gradient, columns, ranks, RANK, 1, features, RANK)
    sums += part.to(tl.int64) * tokens * RANK
    _put(sums, total, rows, ranks, RANK, 1, tokens, RANK)


@triton.jit
def _finish(
    partial, total, size, parts,
    PARTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, PARTS, CHUNK):
        chunk = first + tl.arange(0, CHUNK)
        found += tl.sum(_tile(partial, chunk, places, size, 1, parts, size), axis=0)
    tl.store(total + places, found.to(total.dtype.element_ty), mask=places < size)
