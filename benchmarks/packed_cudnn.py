"""cuDNN's attention of documents of any lengths behind each other: PyTorch's call of it, and the
graphs of `nvidia-cudnn-frontend`, for `packed_attention.py`.

PyTorch up to 2.13 builds cuDNN's plan again in every call of the first, forward and backward
(https://github.com/pytorch/pytorch/pull/191576: 42 ms a call), so of it the time of the kernels
alone tells something. A plan of the second is kept. It is made for a number of documents and a
longest one, both rounded up to powers of two: documents that aren't there have no tokens.
"""

from __future__ import annotations

import functools
from typing import Any

import attrs
import torch

# Plans are made for at least so many documents.
FEWEST_DOCUMENTS = 8


@attrs.frozen(eq=False)
class Documents:
    """Where documents begin, of as many as a plan is made for.

    Attributes:
        bounds: `[documents + 1]`, int32, on the device: in tokens, the last ones of no length.
        longest: Tokens that none has more of, a power of two.
    """

    bounds: torch.Tensor
    longest: int

    @classmethod
    def counted(cls, bounds: torch.Tensor) -> Documents:
        """As many as there are, from `[documents + 1]`: where they begin and the last one ends."""
        return cls(bounds.to(torch.int32), power_of_two(int(bounds.diff().max())))

    @classmethod
    def rounded(cls, bounds: torch.Tensor) -> Documents:
        """Some of no length behind them, so that few plans serve all numbers."""
        count = len(bounds) - 1
        missing = max(FEWEST_DOCUMENTS, power_of_two(count)) - count
        return cls.counted(torch.cat([bounds, bounds[-1:].expand(missing)]))


def power_of_two(number: int) -> int:
    """The smallest that is no smaller."""
    return 1 << (number - 1).bit_length()


class RaggedByPyTorch(torch.autograd.Function):
    """`query`, `key` and `value`, `[tokens, heads, width]`, to `[tokens, heads, width]`."""

    @staticmethod
    def forward(ctx, query, key, value, documents):
        bounds, longest = documents.bounds, documents.longest
        out, stats, _, _, _, _, seed, offset, _ = torch.ops.aten._cudnn_attention_forward(
            query, key, value, None, bounds, bounds, longest, longest, True, 0.0, True, False
        )
        ctx.save_for_backward(query, key, value, out, stats, seed, offset, bounds)
        ctx.longest = longest
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, out, stats, seed, offset, bounds = ctx.saved_tensors
        gradients = torch.ops.aten._cudnn_attention_backward(
            gradient.contiguous(), query, key, value, out, stats, seed, offset, None,
            bounds, bounds, ctx.longest, ctx.longest, 0.0, True,
        )  # fmt: skip
        return *gradients, None


class RaggedByGraphs(torch.autograd.Function):
    """As `RaggedByPyTorch`, by plans that are kept."""

    @staticmethod
    def forward(ctx, query, key, value, documents):
        plans = plans_for(Shape.of(query, key, documents))
        ctx.plans, ctx.numbers = plans, numbers_of(documents, plans.shape)
        out, stats = plans.forward(query, key, value, ctx.numbers)
        ctx.save_for_backward(query, key, value, out, stats)
        return out

    @staticmethod
    def backward(ctx, gradient):
        saved = ctx.saved_tensors
        return *ctx.plans.backward(gradient.contiguous(), *saved, ctx.numbers), None


@attrs.frozen
class Shape:
    """What a plan is made for."""

    documents: int
    longest: int
    tokens: int
    heads: int
    kv_heads: int
    width: int

    @classmethod
    def of(cls, query: torch.Tensor, key: torch.Tensor, documents: Documents) -> Shape:
        tokens, heads, width = query.shape
        return cls(len(documents.bounds) - 1, documents.longest, tokens, heads, key.shape[1], width)


@functools.cache
def plans_for(shape: Shape) -> Plans:
    return Plans(shape)


@functools.cache
def numbers_of(documents: Documents, shape: Shape) -> dict[str, torch.Tensor]:
    """What the kernels are told of documents, once for all layers: lengths in tokens, and where
    they begin in elements."""
    bounds = documents.bounds
    return {
        "lengths": bounds.diff(),
        "queries": bounds * (shape.heads * shape.width),
        "keys": bounds * (shape.kv_heads * shape.width),
        "rows": bounds * shape.heads,
    }


@functools.cache
def handle() -> int:
    import cudnn

    return cudnn.create_handle()


class Plans:
    """cuDNN's plans of attention and its gradients for bfloat16 of one shape, built at once."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._forward, self._forward_names = self._planned(self._attention)
        self._backward, self._backward_names = self._planned(self._gradients)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        numbers: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The result, `[tokens, heads, width]`, and the logarithms that backward needs."""
        out = torch.empty_like(query)
        stats = query.new_empty(query.shape[:2], dtype=torch.float32)
        self._run(self._forward, self._forward_names, {
            "query": query, "key": key, "value": value, "out": out, "stats": stats, **numbers,
        })  # fmt: skip
        return out, stats

    def backward(
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        stats: torch.Tensor,
        numbers: dict[str, torch.Tensor],
    ) -> list[torch.Tensor]:
        """The gradients of query, key and value."""
        found = [torch.empty_like(each) for each in (query, key, value)]
        self._run(self._backward, self._backward_names, {
            "query": query, "key": key, "value": value, "out": out, "stats": stats,
            "gradient": gradient, "of_query": found[0], "of_key": found[1], "of_value": found[2],
            **numbers,
        })  # fmt: skip
        return found

    def _run(self, graph: Any, names: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        import cudnn

        cudnn.set_stream(handle(), torch.cuda.current_stream().cuda_stream)
        room = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device="cuda")
        graph.execute({names[name]: each for name, each in tensors.items()}, room, handle=handle())

    def _planned(self, describe: Any) -> tuple[Any, dict[str, Any]]:
        """A graph that is ready, and its tensors by name."""
        import cudnn

        kinds = cudnn.data_type
        graph = cudnn.pygraph(
            io_data_type=kinds.BFLOAT16,
            intermediate_data_type=kinds.FLOAT,
            compute_data_type=kinds.FLOAT,
            handle=handle(),
        )
        names = describe(graph)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
        return graph, names

    def _given(self, graph: Any) -> dict[str, Any]:
        """The tensors that both graphs read."""
        import cudnn

        kinds, shape = cudnn.data_type, self.shape
        sizes = {name: shape.documents + 1 for name in ("queries", "keys", "rows")}
        names = {
            name: graph.tensor(
                dim=[size, 1, 1, 1], stride=[1, 1, 1, 1], data_type=kinds.INT32, name=name
            )
            for name, size in {"lengths": shape.documents, **sizes}.items()
        }
        heads_of = {"query": shape.heads, "key": shape.kv_heads, "value": shape.kv_heads}
        for name, heads in heads_of.items():
            names[name] = graph.tensor(
                dim=self._size(heads),
                stride=self._strides(heads),
                data_type=kinds.BFLOAT16,
                ragged_offset=names["queries" if name == "query" else "keys"],
                name=name,
            )
        return names

    def _attention(self, graph: Any) -> dict[str, Any]:
        import cudnn

        names = self._given(graph)
        out, stats = graph.sdpa(**self._causal(names), generate_stats=True, name="attention")
        self._given_out(out, self.shape.heads, names["queries"])
        self._given_out(stats, self.shape.heads, names["rows"], width=1)
        stats.set_data_type(cudnn.data_type.FLOAT)
        return {**names, "out": out, "stats": stats}

    def _gradients(self, graph: Any) -> dict[str, Any]:
        import cudnn

        names, heads = self._given(graph), self.shape.heads
        read = {"out": self.shape.width, "gradient": self.shape.width, "stats": 1}
        for name, width in read.items():
            kind = cudnn.data_type.FLOAT if name == "stats" else cudnn.data_type.BFLOAT16
            names[name] = graph.tensor(
                dim=self._size(heads, width),
                stride=self._strides(heads, width),
                data_type=kind,
                ragged_offset=names["rows" if name == "stats" else "queries"],
                name=name,
            )
        whole = -(-self.shape.tokens // 64) * 64
        found = graph.sdpa_backward(
            **self._causal(names), o=names["out"], dO=names["gradient"], stats=names["stats"],
            max_total_seq_len_q=whole, max_total_seq_len_kv=whole, name="gradients",
        )  # fmt: skip
        for name, each in zip(("query", "key", "value"), found, strict=True):
            heads = self.shape.heads if name == "query" else self.shape.kv_heads
            self._given_out(each, heads, names["queries" if name == "query" else "keys"])
            names[f"of_{name}"] = each
        return names

    def _causal(self, names: dict[str, Any]) -> dict[str, Any]:
        """Of both graphs: a token sees what is before it, and itself."""
        import cudnn

        return {
            "q": names["query"],
            "k": names["key"],
            "v": names["value"],
            "attn_scale": self.shape.width**-0.5,
            "use_padding_mask": True,
            "seq_len_q": names["lengths"],
            "seq_len_kv": names["lengths"],
            "diagonal_alignment": cudnn.diagonal_alignment.TOP_LEFT,
            "diagonal_band_right_bound": 0,
        }

    def _given_out(self, tensor: Any, heads: int, begins: Any, width: int | None = None) -> None:
        tensor.set_output(True).set_dim(self._size(heads, width))
        tensor.set_stride(self._strides(heads, width)).set_ragged_offset(begins)

    def _size(self, heads: int, width: int | None = None) -> list[int]:
        shape = self.shape
        return [shape.documents, heads, shape.longest, shape.width if width is None else width]

    def _strides(self, heads: int, width: int | None = None) -> list[int]:
        """Of documents as if all were the longest: offsets say where they begin."""
        width = self.shape.width if width is None else width
        return [self.shape.longest * heads * width, width, heads * width, 1]
