"""The order of a stream: whoever reads it and wherever a run stops, each sample comes once."""

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_core.protocols import Portion
from automodel_core.train.order import Layout
from automodel_core.train.packing import WINDOW, first_fit
from automodel_core.train.stream_data import Dealer
from automodel_core.train.stream_order import TOO_LONG, Pass, Plan
from automodel_core.train.streams import Portions

SIZE = 10

# Lengths of the samples of each portion; some portions have none.
portions = st.lists(st.lists(st.integers(1, SIZE + 2), max_size=5), max_size=12)
plans = st.builds(
    Plan, st.integers(0, 9), st.sampled_from([1, 2, 5, 64]), st.sampled_from([0, SIZE])
)


class Lengths:
    """A stream of samples that are nothing but long."""

    sources = ()

    def __init__(self, lengths):
        self.lengths = lengths

    def portions(self, first, step):
        for number in range(first, len(self.lengths), step):
            own = self.lengths[number]
            samples = [{"input_ids": [1] * n, "labels": [1] * n} for n in own]
            yield Portion(samples, own, {"portions": 1}, "", ())

    def read(self, first):
        return iter(Portions(self, first))


def numbers(rows):
    return [[held.number for held in row] for row in rows]


def all_rows(stream, plan, epoch=0):
    return Pass(stream.read, plan, epoch).upcoming(10**6)


@given(portions, plans)
@settings(max_examples=60, deadline=None)
def test_every_sample_of_a_pass_comes_once_and_no_further_than_the_window_away(lengths, plan):
    flat = [each for own in lengths for each in own]
    stream = Lengths(lengths)
    run = Pass(stream.read, plan, 0)
    rows = numbers(run.upcoming(10**6))
    fitting = {n for n, length in enumerate(flat) if not plan.size or length <= plan.size}
    assert Counter(n for row in rows for n in row) == Counter(fitting)
    left_out = len(flat) - len(fitting)
    assert run.counts == +Counter({"portions": len(lengths), TOO_LONG: left_out})
    if not plan.size:
        assert all(place // plan.window == n // plan.window for place, (n,) in enumerate(rows))
    if plan.window == 1 and plan.size:
        kept = sorted(fitting)
        packed = first_fit([flat[n] for n in kept], plan.size)
        assert rows == [[kept[place] for place in row] for row in packed]


@given(portions, plans, st.integers(0, 70), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_a_pass_goes_on_from_any_place_as_if_it_had_not_stopped(lengths, plan, stop, ahead):
    stream = Lengths(lengths)
    whole = Pass(stream.read, plan, 3)
    expected = numbers(whole.upcoming(10**6))
    stop = min(stop, len(expected))
    first = Pass(stream.read, plan, 3)
    for _ in range(stop):
        first.upcoming(ahead)
        first.advance(1)
    first.upcoming(ahead)  # as by a step that a signal drops
    state = json.loads(json.dumps(first.state_dict()))
    again = Pass(stream.read, plan, 3, state)
    assert json.loads(json.dumps(again.state_dict())) == state
    assert numbers(again.upcoming(10**6)) == expected[stop:]
    assert again.counts == whole.counts


@given(portions, plans, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_the_shares_of_ranks_partition_the_stream(lengths, plan, ranks, micro_batch, rounds):
    stream, seen, made = Lengths(lengths), [], set()
    for rank in range(ranks):
        dealer = Dealer(len, Layout(micro_batch, rounds, ranks, rank), plan.size > 0)
        run, batches = Pass(stream.read, plan, 0), 0
        while group := run.upcoming(dealer.layout.group):
            mine = dealer.mine(group)
            batches += len(mine)
            seen += [held.number for own in mine for row in own for held in row]
            run.advance(len(group))
        made.add(batches)
    assert sorted(seen) == sorted(n for row in numbers(all_rows(stream, plan)) for n in row)
    assert len(made) == 1  # all ranks make the same passes


def test_windows_are_shuffled_anew_in_every_epoch_and_alike_everywhere():
    stream, plan = Lengths([[1] * 5] * 40), Plan(seed=7, window=50)
    first, second = (numbers(all_rows(stream, plan, epoch)) for epoch in (0, 1))
    assert first != second != numbers(all_rows(stream, Plan(seed=7)))
    assert first == numbers(all_rows(stream, plan))
    assert first[:50] != [[n - 50] for (n,) in first[50:100]]


def test_a_pass_reads_no_further_than_its_window_and_its_open_rows():
    asked = []

    class Endless(Lengths):
        def portions(self, first, step):
            number = first
            while True:
                asked.append(number)
                yield Portion([{}] * 4, [5] * 4, {}, "", ())
                number += step

    for plan, most in ((Plan(0), 3), (Plan(0, 100), 26), (Plan(0, 1, SIZE), (WINDOW + 8) // 2)):
        asked.clear()
        run = Pass(Endless([]).read, plan, 0)
        assert len(run.upcoming(8)) == 8
        assert len(asked) <= most
