"""The order of the samples is a pure function of (seed, epoch), however it is dealt."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from automodel_core.train.order import (
    Cursor,
    EpochBatches,
    Layout,
    deal,
    epoch_order,
    grouped_by_length,
)

lengths = st.integers(1, 70)
ranks = st.integers(1, 5)
# (micro_batch, grad_acc_steps, ranks) of one stretch of a run, and its optimizer steps.
stretches = st.tuples(st.integers(1, 5), st.integers(1, 4), ranks, st.integers(1, 6))


def layouts(micro_batch, grad_acc_steps, ranks):
    return [Layout(micro_batch, grad_acc_steps, ranks, rank) for rank in range(ranks)]


def one_step(order, cursor, of_each_rank):
    """The indices that all ranks together take in the step at `cursor`."""
    group = order[cursor.samples : cursor.samples + of_each_rank[0].group]
    return [i for layout in of_each_rank for batch in deal(group, layout) for i in batch]


def test_the_order_is_the_same_on_every_machine_and_version():
    first = epoch_order(10, seed=42, epoch=0, shuffle=True)
    assert first.tolist() == [7, 1, 6, 4, 3, 5, 9, 0, 2, 8]
    second = epoch_order(10, seed=42, epoch=1, shuffle=True)
    assert second.tolist() == [4, 9, 5, 3, 0, 2, 7, 1, 6, 8]


def test_without_shuffling_the_order_is_the_datas():
    assert list(epoch_order(5, seed=42, epoch=3, shuffle=False)) == [0, 1, 2, 3, 4]


@given(lengths, st.integers(0, 2**63), st.integers(0, 1000))
def test_an_epoch_holds_every_index_once(length, seed, epoch):
    order = epoch_order(length, seed, epoch, shuffle=True)
    assert sorted(order.tolist()) == list(range(length))


def test_seeds_and_epochs_differ():
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({tuple(epoch_order(50, *key, shuffle=True)) for key in keys}) == len(keys)


def test_every_place_is_as_likely_for_every_index():
    firsts = Counter(int(epoch_order(4, seed, 0, shuffle=True)[0]) for seed in range(4000))
    assert all(count == pytest.approx(1000, rel=0.15) for count in firsts.values())


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), ranks)
def test_a_group_is_dealt_whole_and_evenly(length, micro_batch, grad_acc_steps, ranks):
    of_each_rank = layouts(micro_batch, grad_acc_steps, ranks)
    group = range(min(length, of_each_rank[0].group))
    dealt = [deal(group, layout) for layout in of_each_rank]
    sizes = [len(batch) for batches in dealt for batch in batches]
    assert sorted(i for batches in dealt for batch in batches for i in batch) == list(group)
    assert len({len(batches) for batches in dealt}) == 1, "every rank runs as many micro-batches"
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= micro_batch
    if ranks == 1:
        assert min(sizes) > 0


@given(lengths, st.lists(stretches, min_size=1, max_size=6), st.booleans())
def test_an_epoch_interrupted_and_resumed_on_other_layouts_sees_each_sample_once(
    length, plan, shuffle
):
    """Stretch after stretch of the plan, over and over, until the epoch is done."""
    order, cursor, seen = epoch_order(length, 7, 0, shuffle=shuffle), Cursor(), []
    while cursor.epoch == 0:
        for micro_batch, grad_acc_steps, ranks, steps in plan:
            of_each_rank = layouts(micro_batch, grad_acc_steps, ranks)
            for _ in range(steps):
                if cursor.epoch == 0:
                    taken = one_step(order, cursor, of_each_rank)
                    seen += taken
                    cursor = cursor.advanced(len(taken), length)
    assert sorted(seen) == list(range(length))
    assert cursor == Cursor(1, 0)


@given(lengths, st.integers(1, 5), st.integers(1, 4), ranks, st.integers(0, 69))
def test_a_step_takes_the_same_samples_on_any_number_of_ranks(
    length, micro_batch, grad_acc_steps, ranks, start
):
    """The same global batch, spread over ranks or accumulated on one."""
    order, cursor = epoch_order(length, 3, 2, shuffle=True), Cursor(2, min(start, length - 1))
    spread = one_step(order, cursor, layouts(micro_batch, grad_acc_steps, ranks))
    alone = one_step(order, cursor, layouts(micro_batch, grad_acc_steps * ranks, 1))
    assert sorted(spread) == sorted(alone)


@given(lengths, st.integers(1, 5), st.integers(1, 4), ranks, st.integers(0, 70))
def test_the_sampler_knows_its_length_and_can_be_walked_again(
    length, micro_batch, grad_acc_steps, ranks, start
):
    order = range(length)
    for layout in layouts(micro_batch, grad_acc_steps, ranks):
        batches = EpochBatches(order, min(start, length), layout)
        assert len(list(batches)) == len(batches)
        assert list(batches) == list(batches), "it holds no position of its own"
        full_steps = (length - batches.start) // layout.group
        assert all(len(b) == micro_batch for b in list(batches)[: full_steps * grad_acc_steps])


def test_steps_count_a_short_last_group():
    assert Layout(4, 2).steps(16) == 2
    assert Layout(4, 2).steps(17) == 3
    assert Layout(1, 1, ranks=8).steps(3) == 1


def test_groups_never_straddle_an_epoch():
    assert list(EpochBatches(range(10), 0, Layout(4, 2)))[-1] == [8, 9]
    assert Cursor(0, 8).advanced(2, 10) == Cursor(1, 0)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_keeps_the_order_with_any_number_of_workers(workers):
    batches = EpochBatches(epoch_order(13, 1, 0, shuffle=True), 3, Layout(2, 2))
    loader = DataLoader(
        range(13), batch_sampler=batches, num_workers=workers, collate_fn=lambda rows: rows
    )
    assert list(loader) == list(batches)


@given(st.integers(0, 9000), st.integers(0, 5), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_grouping_by_length_keeps_each_sample_once_and_like_lengths_together(length, seed, epoch):
    lengths = np.random.default_rng(length).integers(1, 500, length)
    if not length:
        return
    order = epoch_order(length, seed, epoch, shuffle=True)
    grouped = grouped_by_length(order, lengths, seed, epoch)
    assert sorted(grouped.tolist()) == list(range(length))
    assert grouped.tolist() == grouped_by_length(order, lengths, seed, epoch).tolist()

    def padding(of) -> int:
        rows = [lengths[of[i : i + 8]] for i in range(0, length, 8)]
        return sum(int(row.max()) * len(row) - int(row.sum()) for row in rows)

    if length > 1000:
        assert padding(grouped) < 0.2 * padding(np.asarray(order))
