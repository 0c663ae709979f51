"""The order of the samples: a pure function of (seed, epoch), walked by one global cursor.

The order is dealt to ranks from one global list, group by group, where a group is what one
optimizer step takes: micro_batch * grad_acc_steps * ranks samples, fewer at the end of an epoch. So
a run may stop anywhere and go on with other ranks, workers or micro-batches, and still see every
sample of the epoch once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np

# The indices of an epoch, or a slice of them.
Order = Sequence[int] | np.ndarray


@attrs.frozen
class Cursor:
    """Where the next optimizer step begins, over all ranks.

    Attributes:
        epoch: 0 is the first.
        samples: Samples of this epoch that are done.
    """

    epoch: int = 0
    samples: int = 0

    @property
    def last_epoch(self) -> int:
        """The epoch of the newest step."""
        return self.epoch if self.samples > 0 or self.epoch == 0 else self.epoch - 1

    def advanced(self, samples: int, length: int) -> Cursor:
        """The cursor after `samples` more of an epoch of `length`."""
        done = self.samples + samples
        return Cursor(self.epoch + 1, 0) if done >= length else Cursor(self.epoch, done)


@attrs.frozen
class Layout:
    """How a global group is spread.

    Attributes:
        micro_batch: Samples in a micro-batch on one rank.
        grad_acc_steps: Micro-batches in an optimizer step on one rank.
        ranks: Data-parallel ranks.
        rank: This one.
    """

    micro_batch: int
    grad_acc_steps: int = 1
    ranks: int = 1
    rank: int = 0

    @property
    def group(self) -> int:
        """Samples in a full optimizer step, over all ranks."""
        return self.micro_batch * self.grad_acc_steps * self.ranks

    def steps(self, samples: int) -> int:
        """Optimizer steps in `samples` samples, a short last one included."""
        return -(-samples // self.group)


def epoch_order(length: int, seed: int, epoch: int, *, shuffle: bool) -> Order:
    """The indices of one epoch, each once; 0, 1, 2, ... without `shuffle`.

    They are sorted by random 64-bit keys, drawn from the raw stream of a counter-based generator
    (Philox, Salmon et al. 2011). NumPy promises that this stream never changes; of its
    `permutation` it does not, and a run must find its order again after an upgrade.
    """
    if not shuffle:
        return range(length)
    keys = np.random.Philox(key=[seed, epoch]).random_raw(length)
    return keys.argsort(kind="stable")


# Samples are sorted by length within so many, and stand together in blocks of so many.
SORTED, BLOCK = 4096, 64


def grouped_by_length(order: Order, lengths: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The same indices with those of like lengths together, in a random order of blocks.

    A pure function of the order, the lengths, seed and epoch, whatever the layout, so a run may go
    on from any cursor. Blocks are longer than most micro-batches, which so get samples of like
    lengths; short and long ones alternate over an epoch, as a model should see them.

    Args:
        order: A shuffled epoch.
        lengths: Tokens in each sample, by index.
        seed: The run's.
        epoch: 0 is the first.
    """
    order = np.asarray(order)
    chunks = [order[start : start + SORTED] for start in range(0, len(order), SORTED)]
    by_length = np.concatenate([chunk[lengths[chunk].argsort(kind="stable")] for chunk in chunks])
    blocks = [by_length[start : start + BLOCK] for start in range(0, len(by_length), BLOCK)]
    # Its own stream: the epoch's keys have been used for the order.
    keys = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 1]).random_raw(len(blocks))
    return np.concatenate([blocks[block] for block in keys.argsort(kind="stable")])


def deal(group: Order, layout: Layout) -> list[list[int]]:
    """This rank's micro-batches of one group, in order.

    The group is cut into as few rounds of micro-batches as hold it, one for each rank in every
    round, their sizes equal within one sample. So every rank takes part in the same number of
    micro-batches; one is empty only where a round has fewer samples than ranks.
    """
    rounds = -(-len(group) // (layout.micro_batch * layout.ranks))
    parts = rounds * layout.ranks
    edges = [-(-len(group) * part // parts) for part in range(parts + 1)]
    mine = range(layout.rank, parts, layout.ranks)
    return [[int(index) for index in group[edges[part] : edges[part + 1]]] for part in mine]


class EpochBatches:
    """The micro-batches of one rank from a cursor to the end of its epoch: a batch sampler.

    It holds no position of its own, so a loader may read ahead without the run losing its place.
    """

    def __init__(self, order: Order, start: int, layout: Layout) -> None:
        self.order, self.start, self.layout = order, start, layout

    def __iter__(self) -> Iterator[list[int]]:
        for begin in range(self.start, len(self.order), self.layout.group):
            yield from deal(self.order[begin : begin + self.layout.group], self.layout)

    def __len__(self) -> int:
        full, rest = divmod(len(self.order) - self.start, self.layout.group)
        per_round = self.layout.micro_batch * self.layout.ranks
        return full * self.layout.grad_acc_steps + -(-rest // per_round)
