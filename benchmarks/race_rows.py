"""The rows that every contestant of `race.py` trains on: written once, read by all in one order.

Random tokens; the first 30% of each document aren't learned. A row is one document, or several that
fill it exactly, so that whoever packs documents in their order gets these rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from automodel_core.train.order import epoch_order

# Labels that aren't learned, and their share.
IGNORED, MASKED = -100, 0.3


def write_rows(path: Path, rows: int, length: int, vocabulary: int, shortest: int = 0) -> None:
    """Draw rows and store them.

    Args:
        path: A safetensors file: `ids`, `labels` and `positions`, (rows, length), int64; the
            positions begin again with each document.
        rows: How many.
        length: Tokens in each.
        vocabulary: Tokens to draw from.
        shortest: Lengths of a row's documents are drawn evenly from here up to `length`, and the
            last is cut; 0 makes each row one document.
    """
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows, length), generator=drawn)
    labels, positions = ids.clone(), torch.empty_like(ids)
    for row in range(rows):
        start = 0
        while start < length:
            wanted = length
            if shortest:
                wanted = int(torch.randint(shortest, length + 1, (), generator=drawn))
            end = start + wanted if start + wanted + 8 <= length else length
            labels[row, start : start + max(int(MASKED * (end - start)), 1)] = IGNORED
            positions[row, start:end] = torch.arange(end - start)
            start = end
    save_file({"ids": ids, "labels": labels, "positions": positions}, path)


def write_documents(path: Path, documents: int, longest: int, vocabulary: int) -> None:
    """Draw documents of lengths as chats have them: log-normal, about 600 tokens on average.

    Args:
        path: As for `write_rows`: one row, with all documents behind each other.
        documents: How many.
        longest: Tokens that none exceeds.
        vocabulary: Tokens to draw from.
    """
    drawn = torch.Generator().manual_seed(0)
    lengths = torch.empty(documents).log_normal_(6.1, 0.8, generator=drawn).long() + 8
    ends = lengths.clamp_(max=longest).cumsum(0)
    ids = torch.randint(vocabulary, (int(ends[-1]),), generator=drawn)
    positions = torch.arange(len(ids)) - (ends - lengths).repeat_interleave(lengths)
    unlearned = positions < (MASKED * lengths).long().repeat_interleave(lengths)
    labels = ids.masked_fill(unlearned, IGNORED)
    rows = {"ids": ids, "labels": labels, "positions": positions}
    save_file({name: each[None] for name, each in rows.items()}, path)


def lengths_of(positions: torch.Tensor) -> list[int]:
    """Of all documents, in their order."""
    starts = (positions.flatten() == 0).nonzero().flatten().tolist()
    return [b - a for a, b in zip(starts, [*starts[1:], positions.numel()], strict=True)]


class Documents:
    """A data set of the documents in such a file, for a YAML file.

    Args:
        path: What `write_rows` wrote.
        packed: Whether they will be packed, which looks at them in the order of the seed's first
            epoch: they are dealt so that it meets them in the order of the file.
        seed: The run's seed.
    """

    def __init__(self, path: str, packed: bool = False, seed: int = 0) -> None:
        stored = load_file(path)
        lengths = lengths_of(stored["positions"])
        self.ids = stored["ids"].flatten().split(lengths)
        self.labels = stored["labels"].flatten().split(lengths)
        self.places = np.arange(len(lengths))
        if packed:
            looked_at = np.asarray(epoch_order(len(lengths), seed, 0, shuffle=True))
            self.places[looked_at] = np.arange(len(lengths))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        index = self.places[number]
        return {
            "input_ids": self.ids[index].tolist(),
            "labels": self.labels[index].tolist(),
        }


class Rows(torch.utils.data.Dataset):
    """The rows as transformers' Trainer takes them.

    Args:
        path: What `write_rows` wrote.
        packed: Whether positions are told, which tell documents of one row apart.
    """

    def __init__(self, path: Path, packed: bool) -> None:
        stored = load_file(path)
        self.columns = {"input_ids": stored["ids"], "labels": stored["labels"]}
        if packed:
            self.columns["position_ids"] = stored["positions"]

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self.columns.items()}


class Ragged(torch.utils.data.Dataset):
    """Documents of many lengths as transformers' Trainer takes them.

    Args:
        path: What `write_documents` wrote.
    """

    def __init__(self, path: Path) -> None:
        stored = load_file(path)
        lengths = lengths_of(stored["positions"])
        self.columns = {
            "input_ids": stored["ids"].flatten().split(lengths),
            "labels": stored["labels"].flatten().split(lengths),
        }

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self.columns.items()}


def padded(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of documents, as long as the longest."""
    columns = {
        name: pad_sequence([each[name] for each in samples], batch_first=True, padding_value=fill)
        for name, fill in (("input_ids", 0), ("labels", IGNORED))
    }
    lengths = torch.tensor([len(each["input_ids"]) for each in samples])
    real = torch.arange(columns["labels"].shape[1]) < lengths[:, None]
    return columns | {"attention_mask": real.long()}


def stacked(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of rows that are all of one length."""
    return {name: torch.stack([each[name] for each in samples]) for name in samples[0]}
