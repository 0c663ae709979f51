"""The contestants of `race.py` that are plain loops: one by hand, and torchtitan's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from by_hand import ORDER, WithLoss
from race_contestants import ALPHA, CLIP, RANK, RATE, TARGETS, Case, Gate
from race_rows import IGNORED, Rows, stacked
from torch import nn
from torch.nn.attention import sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import linear
from torch.utils.data import DataLoader
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

Batch = dict[str, torch.Tensor]


def batches(case: Case) -> Iterator[Batch]:
    """The rows, copied without waiting; from the first again after the last."""
    loader = DataLoader(
        Rows(case.rows, packed=True),
        batch_size=case.batch,
        num_workers=2,
        collate_fn=stacked,
        pin_memory=case.on_gpu,
        drop_last=True,
    )
    while True:
        for batch in loader:
            yield {name: each.to(case.device, non_blocking=True) for name, each in batch.items()}


def race(
    case: Case, gate: Gate, model: nn.Module, loss_of: Callable[[Batch], torch.Tensor]
) -> None:
    """Forward, backward, clip and step, for ever."""
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
    for batch in batches(case):
        gate.before()
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        gate.after(loss.detach(), (batch["labels"][:, 1:] != IGNORED).sum())


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank addition (Hu et al. 2021,
    https://arxiv.org/abs/2106.09685), in the layer's dtype."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(base.weight.new_empty(RANK, base.in_features).normal_(std=0.02))
        self.up = nn.Parameter(base.weight.new_zeros(base.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (ALPHA / RANK) * linear(linear(x, self.down), self.up)


def adapt(model: PreTrainedModel) -> None:
    """Freeze the model, and add adapters to the projections of its attention."""
    model.requires_grad_(False)
    for layer in model.model.layers:
        for name in TARGETS:
            setattr(layer.self_attn, name, Adapted(getattr(layer.self_attn, name)))


def by_document(positions: torch.Tensor) -> BlockMask:
    """Causal attention within documents.

    Args:
        positions: (rows, length), which begin again with each document.
    """
    document = (positions == 0).cumsum(1)

    def visible(row, head, query, key):
        return (query >= key) & (document[row, query] == document[row, key])

    rows, length = positions.shape
    # Compiled, it keeps no dense mask.
    on = positions.device
    return create_block_mask(
        visible, rows, None, length, length, device=on, _compile=on.type == "cuda"
    )


def flex(module, query, key, value, mask, scaling=None, **_):
    """Attention as transformers calls it: (rows, heads, length, width) to (rows, length, ...)."""
    done = flex_attention(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)
    return done.transpose(1, 2).contiguous(), None


class OfDocuments(WithLoss):
    """Rows of several documents. The layers are called here, for transformers makes no block mask
    for an attention that it doesn't know."""

    def of(self, batch: Batch) -> torch.Tensor:
        """The mean loss."""
        inner, positions = self.model.model, batch["position_ids"]
        hidden, mask = inner.embed_tokens(batch["input_ids"]), by_document(positions)
        angles = inner.rotary_emb(hidden, position_ids=positions)
        for layer in inner.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=angles,
                use_cache=False,
            )
        return self.loss(inner.norm(hidden), batch["labels"])


def by_hand(case: Case, gate: Gate) -> None:
    """transformers' Llama with compiled layers, cuDNN's attention or flex, and a chunked loss."""
    packed = case.kind == "packed"
    if packed:
        AttentionInterface.register("race_flex", flex)
    model = AutoModelForCausalLM.from_pretrained(
        case.model, dtype=torch.bfloat16, attn_implementation="race_flex" if packed else "sdpa"
    ).to(case.device)
    if case.kind == "lora":
        adapt(model)
    if case.on_gpu:
        for layer in model.model.layers:
            layer.compile()
    model.train()
    if packed:
        race(case, gate, model, OfDocuments(model).of)
    whole = WithLoss(model)
    with sdpa_kernel(ORDER, set_priority=True) if case.on_gpu else nullcontext():
        race(case, gate, model, lambda batch: whole(batch["input_ids"], batch["labels"]))


def torchtitan(case: Case, gate: Gate) -> None:
    """torchtitan's parts: see `titan.py`."""
    from titan import Titan

    whole = Titan(case.model, case.length, torch.device(case.device)).train()
    race(case, gate, whole, lambda batch: whole(batch["input_ids"], batch["labels"]))
