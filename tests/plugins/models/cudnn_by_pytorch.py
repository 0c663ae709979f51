"""What `nvidia-cudnn-frontend` gives, as far as `cudnn_plans` uses it, computed on a CPU: each
document by itself, found by the lengths and offsets that a graph is given."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import torch

data_type = SimpleNamespace(BFLOAT16="bfloat16", HALF="float16", FLOAT="float32", INT32="int32")
heur_mode = SimpleNamespace(A="a", FALLBACK="fallback")
diagonal_alignment = SimpleNamespace(TOP_LEFT="top left")


def set_stream(handle: int, stream: int) -> None: ...


class Tensor:
    made = 0

    def __init__(self, **described: object) -> None:
        Tensor.made += 1
        self.uid = Tensor.made
        self.__dict__.update(described)

    def get_uid(self) -> int:
        return self.uid

    def __getattr__(self, name: str):
        if not name.startswith("set_"):
            raise AttributeError(name)

        def put(value: object) -> Tensor:
            setattr(self, name.removeprefix("set_"), value)
            return self

        return put


def at(address: int, count: int, kind: str | None) -> torch.Tensor:
    """So many numbers in memory; bfloat16 if no kind was said."""
    dtype = getattr(torch, kind or "bfloat16")
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype, count=count)


class pygraph:
    made = 0

    def __init__(self, **kinds: object) -> None:
        pygraph.made += 1

    def tensor(self, **described: object) -> Tensor:
        return Tensor(**described)

    def sdpa(self, **given: object) -> list[Tensor]:
        self.given, self.written = given, [Tensor(), Tensor()]
        return self.written

    def sdpa_backward(self, **given: object) -> list[Tensor]:
        self.given, self.written = given, [Tensor(), Tensor(), Tensor()]
        return self.written

    def validate(self, *_: object) -> None:
        assert self.given["use_padding_mask"]
        assert self.given["diagonal_alignment"] == "top left"
        assert self.given["diagonal_band_right_bound"] == 0

    build_operation_graph = create_execution_plans = check_support = build_plans = validate

    def get_workspace_size(self) -> int:
        return 1

    def execute(self, addresses: dict[int, int], room: int, handle: int) -> None:
        def numbers(tensor: Tensor) -> list[int]:
            return at(addresses[tensor.uid], tensor.dim[0], tensor.data_type).tolist()

        lengths = numbers(self.given["seq_len_q"])
        assert len(lengths) == self.given["q"].dim[0]
        assert max(lengths) <= self.given["q"].dim[2]

        def of(tensor: Tensor, document: int) -> torch.Tensor:
            """`[heads, tokens, width]`, a view."""
            _, heads, _, width = tensor.dim
            kind = getattr(tensor, "data_type", None)
            size = getattr(torch, kind or "bfloat16").itemsize
            begin = addresses[tensor.uid] + numbers(tensor.ragged_offset)[document] * size
            found = at(begin, lengths[document] * heads * width, kind)
            return found.as_strided((heads, lengths[document], width), tensor.stride[1:])

        for document in (i for i, length in enumerate(lengths) if length):
            read = [of(self.given[name], document).float() for name in "qkv"]
            if "dO" in self.given:
                assert of(self.given["stats"], document).eq(document).all()
                gradient = of(self.given["dO"], document).float()
                found = gradients(*read, gradient, self.given["attn_scale"])
            else:
                out, _ = attention(*read, self.given["attn_scale"])
                found = [out, torch.full_like(of(self.written[1], document), document)]
            for tensor, each in zip(self.written, found, strict=True):
                of(tensor, document).copy_(each)


def attention(query, key, value, scale):
    """The result, `[heads, tokens, width]`, and the weights; there are fewer heads of keys."""
    times = len(query) // len(key)
    key, value = (each.repeat_interleave(times, dim=0) for each in (key, value))
    scores = (query @ key.mT) * scale
    seen = torch.ones_like(scores, dtype=torch.bool).tril()
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return weights @ value, weights


def gradients(query, key, value, gradient, scale):
    """By the chain rule: inside an operator there is no autograd."""
    out, weights = attention(query, key, value, scale)
    heads, times = len(key), len(query) // len(key)
    key, value = (each.repeat_interleave(times, dim=0) for each in (key, value))
    of_weights = gradient @ value.mT - (gradient * out).sum(-1, keepdim=True)
    of_scores = weights * of_weights * scale
    of_keys, of_values = of_scores.mT @ query, weights.mT @ gradient
    return [
        of_scores @ key,
        *(each.unflatten(0, (heads, times)).sum(1) for each in (of_keys, of_values)),
    ]
