"""Sample order: one global order, dealt out; nothing lost and nothing twice, wherever it stops."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from automodel_core.train.order import Cursor, EpochBatches, Layout, deal, epoch_order

layouts = st.builds(Layout, st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


def everybody(group, layout):
    ranks = range(layout.ranks)
    hands = [deal(group, Layout(*key(layout), rank)) for rank in ranks]
    return hands, [index for hand in hands for batch in hand for index in batch]


def key(layout):
    return layout.micro_batch, layout.grad_acc_steps, layout.ranks


@given(st.integers(0, 300), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_is_a_permutation_that_only_seed_and_epoch_decide(length, seed, epoch):
    order = epoch_order(length, seed, epoch, shuffle=True)
    assert sorted(order) == list(range(length))
    assert order == epoch_order(length, seed, epoch, shuffle=True)
    assert list(epoch_order(length, seed, epoch, shuffle=False)) == list(range(length))


def test_the_order_is_pinned_so_that_old_runs_resume():
    assert epoch_order(8, 42, 0, shuffle=True) == [7, 0, 4, 2, 1, 3, 5, 6]
    assert epoch_order(8, 42, 1, shuffle=True) != epoch_order(8, 42, 0, shuffle=True)


@given(st.integers(1, 80), layouts)
def test_a_group_is_dealt_out_whole_and_all_ranks_take_part_equally_often(length, layout):
    group = range(length)[: layout.group]
    hands, seen = everybody(group, layout)
    assert sorted(seen) == list(group)
    assert len({len(hand) for hand in hands}) == 1
    assert len(hands[0]) <= layout.grad_acc_steps
    assert all(len(batch) <= layout.micro_batch for hand in hands for batch in hand)


@given(st.integers(1, 200), st.integers(0, 1000), st.lists(st.tuples(layouts, st.integers(1, 7))))
def test_an_epoch_is_seen_once_however_often_the_layout_changes(length, seed, legs):
    """Random stops, each going on with other micro-batches, accumulation and rank counts."""
    order, cursor, seen = epoch_order(length, seed, 0, shuffle=True), Cursor(), Counter()
    for layout, steps in [*legs, (Layout(3, 2, 2), length)]:
        for _ in range(steps):
            if cursor.epoch:
                break
            group = order[cursor.samples : cursor.samples + layout.group]
            seen.update(everybody(group, layout)[1])
            cursor = cursor.advanced(len(group), length)
    assert seen == Counter(range(length))


@given(st.integers(1, 200), st.integers(0, 199), layouts)
def test_the_batch_sampler_knows_its_length_and_every_rank_has_the_same(length, start, layout):
    order, start = range(length), min(start, length - 1)
    for rank in range(layout.ranks):
        batches = EpochBatches(order, start, Layout(*key(layout), rank))
        assert len(list(batches)) == len(batches)
