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


@attrs.frozen
class Cursor:
    """Where the next optimizer step begins, over all ranks.

    Attributes:
        epoch: 0 is the first.
        samples: Samples of this epoch that are done.
    """

    epoch: int = 0
    samples: int = 0

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


def epoch_order(length: int, seed: int, epoch: int, *, shuffle: bool) -> Sequence[int]:
    """The indices of one epoch. Philox is counter-based: the same numbers on every platform."""
    if not shuffle:
        return range(length)
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(length).tolist()


def deal(group: Sequence[int], layout: Layout) -> list[list[int]]:
    """This rank's micro-batches of one group, in order.

    Whole micro-batches go round the ranks. A short group may leave some ranks with fewer samples or
    with an empty micro-batch, so that all ranks still take part in the same number of them.
    """
    size, ranks = layout.micro_batch, layout.ranks
    rounds = -(-len(group) // (size * ranks))
    starts = (size * (ranks * turn + layout.rank) for turn in range(rounds))
    return [list(group[start : start + size]) for start in starts]


class EpochBatches:
    """The micro-batches of one rank from a cursor to the end of its epoch: a batch sampler.

    It holds no position of its own, so a loader may read ahead without the run losing its place.
    """

    def __init__(self, order: Sequence[int], start: int, layout: Layout) -> None:
        self.order, self.start, self.layout = order, start, layout

    def __iter__(self) -> Iterator[list[int]]:
        for begin in range(self.start, len(self.order), self.layout.group):
            yield from deal(self.order[begin : begin + self.layout.group], self.layout)

    def __len__(self) -> int:
        full, rest = divmod(len(self.order) - self.start, self.layout.group)
        per_round = self.layout.micro_batch * self.layout.ranks
        return full * self.layout.grad_acc_steps + -(-rest // per_round)
