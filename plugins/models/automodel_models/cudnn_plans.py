"""cuDNN's plans for attention within documents and its gradients, made once for a shape.

https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

# By name, tensors of a graph.
Names = dict[str, Any]


@attrs.frozen
class Shape:
    """What plans are made for.

    Attributes:
        documents: Their number.
        longest: Tokens of the longest, a power of two.
        tokens: Of all, a power of two; the backward pass makes room for so many.
        device: Its index.
        same: Whether gradients must be the same bits in every run.
    """

    documents: int
    longest: int
    tokens: int
    heads: int
    kv_heads: int
    width: int
    scale: float
    dtype: torch.dtype
    device: int
    same: bool

    @classmethod
    def of(
        cls,
        query: torch.Tensor,
        key: torch.Tensor,
        lengths: torch.Tensor,
        longest: int,
        scale: float,
    ) -> Shape:
        tokens, heads, width = query.shape
        return cls(
            len(lengths), power_of_two(longest), power_of_two(tokens), heads, key.shape[1], width,
            scale, query.dtype, query.device.index, torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip


def power_of_two(number: int) -> int:
    """The smallest that is no smaller."""
    return 1 << (number - 1).bit_length()


@functools.cache
def plans_for(shape: Shape) -> Plans:
    return Plans(shape)


@functools.cache
def handle_of(device: int) -> int:
    """cuDNN's, for one device."""
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


class Plans:
    """Of attention and of its gradients for one shape, each made when it is first called for."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    @functools.cached_property
    def forward(self) -> Plan:
        return Plan(self.shape, attention)

    @functools.cached_property
    def backward(self) -> Plan:
        return Plan(self.shape, gradients)


class Plan:
    """One of cuDNN's, called with all of its tensors by name.

    Raises:
        RuntimeError: cuDNN has none for that shape.
    """

    def __init__(self, shape: Shape, describe: Callable[[Any, Shape], Names]) -> None:
        import cudnn

        self.handle = handle_of(shape.device)
        self.graph = cudnn.pygraph(
            io_data_type=_kind(shape.dtype),
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=self.handle,
        )
        names = describe(self.graph, shape)
        self.graph.validate()
        self.graph.build_operation_graph()
        self.graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        self.graph.check_support()
        self.graph.build_plans()
        self.numbers = {name: each.get_uid() for name, each in names.items()}
        self.room = self.graph.get_workspace_size()

    def __call__(self, device: torch.device, **tensors: torch.Tensor) -> None:
        import cudnn

        assert all(each.is_contiguous() for each in tensors.values()), "offsets count on it"
        # Numbers for tensors and addresses: a call takes the host a tenth of a millisecond less.
        stream = torch.cuda.current_stream(device).cuda_stream
        cudnn.set_stream(self.handle, stream)
        room = torch.empty(self.room, dtype=torch.uint8, device=device)
        given = {self.numbers[name]: each.data_ptr() for name, each in tensors.items()}
        self.graph.execute(given, room.data_ptr(), handle=self.handle)


def attention(graph: Any, shape: Shape) -> Names:
    """Describes attention in a graph."""
    import cudnn

    names = _read(graph, shape, {"query": "queries", "key": "keys", "value": "keys"})
    out, stats = graph.sdpa(**_causal(names, shape), generate_stats=True, name="attention")
    _written(out, shape, shape.heads, shape.width, names["queries"])
    _written(stats, shape, shape.heads, 1, names["rows"]).set_data_type(cudnn.data_type.FLOAT)
    return {**names, "out": out, "stats": stats}


def gradients(graph: Any, shape: Shape) -> Names:
    """Describes its gradients."""
    begins = {"query": "queries", "key": "keys", "value": "keys"}
    names = _read(
        graph, shape, {**begins, "out": "queries", "gradient": "queries", "stats": "rows"}
    )
    found = graph.sdpa_backward(
        **_causal(names, shape), o=names["out"], dO=names["gradient"], stats=names["stats"],
        max_total_seq_len_q=shape.tokens, max_total_seq_len_kv=shape.tokens,
        use_deterministic_algorithm=shape.same, name="gradients",
    )  # fmt: skip
    for (name, offsets), each in zip(begins.items(), found, strict=True):
        heads = shape.heads if name == "query" else shape.kv_heads
        names[f"of_{name}"] = _written(each, shape, heads, shape.width, names[offsets])
    return names


def _read(graph: Any, shape: Shape, tensors: Mapping[str, str]) -> Names:
    """What a graph reads: lengths and offsets, and tensors by what says where documents begin."""
    import cudnn

    kinds, names = cudnn.data_type, {}
    begins = shape.documents + 1
    for name, size in dict(
        lengths=shape.documents, queries=begins, keys=begins, rows=begins
    ).items():
        names[name] = graph.tensor(
            dim=[size, 1, 1, 1], stride=[1, 1, 1, 1], data_type=kinds.INT32, name=name
        )
    for name, offsets in tensors.items():
        heads = shape.kv_heads if offsets == "keys" else shape.heads
        width = 1 if name == "stats" else shape.width
        names[name] = graph.tensor(
            dim=_size(shape, heads, width),
            stride=_strides(shape, heads, width),
            data_type=kinds.FLOAT if name == "stats" else _kind(shape.dtype),
            ragged_offset=names[offsets],
            name=name,
        )
    return names


def _causal(names: Names, shape: Shape) -> dict[str, Any]:
    """Of both: a token sees what is before it in its document, and itself."""
    import cudnn

    return {
        "q": names["query"],
        "k": names["key"],
        "v": names["value"],
        "attn_scale": shape.scale,
        "use_padding_mask": True,
        "seq_len_q": names["lengths"],
        "seq_len_kv": names["lengths"],
        "diagonal_alignment": cudnn.diagonal_alignment.TOP_LEFT,
        "diagonal_band_right_bound": 0,
    }


def _written(tensor: Any, shape: Shape, heads: int, width: int, offsets: Any) -> Any:
    tensor.set_output(True).set_dim(_size(shape, heads, width))
    return tensor.set_stride(_strides(shape, heads, width)).set_ragged_offset(offsets)


def _size(shape: Shape, heads: int, width: int) -> list[int]:
    return [shape.documents, heads, shape.longest, width]


def _strides(shape: Shape, heads: int, width: int) -> list[int]:
    """As if all documents were as long as the longest; offsets say where they begin."""
    return [shape.longest * heads * width, width, heads * width, 1]


def _kind(dtype: torch.dtype) -> Any:
    import cudnn

    kinds = cudnn.data_type
    return {torch.bfloat16: kinds.BFLOAT16, torch.float16: kinds.HALF}[dtype]
