"""Who is at fault, from what the ranks tell; and what a rank tells of itself."""

import threading
import time

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from automodel_core.watchdog.beats import Beat, Pulse
from automodel_core.watchdog.judging import Seen, judge, told
from automodel_core.watchdog.watching import Watchdog

PATIENCE = 45.0


def seen(*, waiting: float = 0.0, idle: float = 0.0, silent: float = 0.0, step: int = 7) -> Seen:
    stack = ["train/loop.py:99 in gradients", "datasets/mine.py:7 in __getitem__"]
    beat = Beat(
        number=3, host="node2", pid=17, step=step, samples=[4, 9], waiting=waiting, idle=idle,
        stack=stack,
    )  # fmt: skip
    return Seen(beat, silent)


def test_a_rank_that_doesnt_answer_has_stopped_whatever_the_others_do():
    ranks = {0: seen(waiting=60, idle=60), 1: seen(silent=46), 2: seen(waiting=50)}
    found = judge(ranks, PATIENCE)
    assert (found.kind, found.ranks, found.waiting) == ("stopped", (1,), 2)


def test_a_rank_lags_if_another_waits_for_it_and_it_waits_for_nobody():
    ranks = {0: seen(waiting=46), 1: seen(), 2: seen(waiting=3), 3: seen(waiting=47)}
    found = judge(ranks, PATIENCE)
    assert (found.kind, found.ranks, found.seconds, found.waiting) == ("lagging", (1,), 47, 2)


def test_who_stops_answering_isnt_called_late_before_it_is_called_stopped():
    ranks = {0: seen(waiting=46), 1: seen(silent=20)}
    assert judge(ranks, PATIENCE) is None


def test_ranks_are_deadlocked_if_all_wait_and_nothing_moves_on_any():
    both = {0: seen(waiting=46, idle=46), 1: seen(waiting=50, idle=48)}
    assert judge(both, PATIENCE).kind == "deadlock"
    sending = {0: seen(waiting=46, idle=46), 1: seen(waiting=50, idle=0)}
    assert judge(sending, PATIENCE) is None


@given(st.lists(st.tuples(*[st.floats(0, 44.9)] * 3, st.integers(0, 9)), min_size=1, max_size=8))
def test_nobody_is_at_fault_before_anybody_has_waited_or_been_silent_so_long(told_by_ranks):
    """However long a step takes, and in whatever step each rank is."""
    ranks = {
        rank: seen(waiting=waiting, idle=idle * 100, silent=silent, step=step)
        for rank, (waiting, idle, silent, step) in enumerate(told_by_ranks)
    }
    assert judge(ranks, PATIENCE) is None


def test_a_finding_names_rank_host_step_samples_log_and_where_it_stands():
    ranks = {0: seen(waiting=46), 1: seen()}
    text = told(judge(ranks, PATIENCE), ranks, "runs/a/logs")
    assert "rank 1 on node2 (process 17): step 7, samples 4, 9; log runs/a/logs/rank_1.log" in text
    assert text.endswith("datasets/mine.py:7 in __getitem__")


@pytest.fixture
def paced():
    """A thread that computes or sleeps until it is told to end."""
    over = threading.Event()

    def compute():
        while not over.is_set():
            sum(range(1000))

    threads = []

    def start(work):
        thread = threading.Thread(target=compute if work else over.wait, daemon=True)
        thread.start()
        threads.append(thread)
        return thread

    yield start
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("work", [True, False], ids=["computes", "sleeps"])
def test_a_thread_outside_of_collectives_waits_for_nobody(paced, work):
    pulse = Pulse(lambda: (5, [1, 2]), paced(work))
    for _ in range(3):
        time.sleep(0.02)
        beat = pulse.beat()
    assert beat.waiting == 0.0
    assert (beat.step, beat.samples, beat.number) == (5, [1, 2], 2)
    where = "compute" if work else "wait"
    assert any(line.endswith(f"in {where}") for line in beat.stack)


def test_a_beat_is_read_as_it_was_told():
    beat = Pulse(lambda: (1, [3])).beat()
    assert Beat.from_json(beat.to_json()) == beat


def test_a_watchdog_that_fails_ends_nothing_and_is_not_taken_for_a_stopped_rank(capsys):
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def closed(text):
        raise BrokenPipeError("the terminal is gone")

    ended = []
    watchdog = Watchdog(
        rank=0, size=2, store=store, pulse=Pulse(lambda: (1, [3])), patience=0.09, limit=100.0,
        logs="logs", say=closed, last_words=ended.append,
    )  # fmt: skip
    store.set("1", seen(waiting=1000.0, idle=1000.0).beat.to_json())
    with watchdog.watching():
        while store.get("0"):
            time.sleep(0.005)
            store.set("1", seen(waiting=1000.0 + time.monotonic()).beat.to_json())
    assert not ended
    assert "the terminal is gone" in capsys.readouterr().err


def test_a_rank_that_works_is_not_ended_however_long_the_others_have_waited():
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    said, ended = [], []
    watchdog = Watchdog(
        rank=0, size=2, store=store, pulse=Pulse(lambda: (1, [3])), patience=9.0, limit=100.0,
        logs="logs", say=said.append, last_words=ended.append,
    )  # fmt: skip
    store.set("1", seen(waiting=1000.0, idle=1000.0).beat.to_json())
    watchdog.beat()
    watchdog.beat()
    assert not ended
    assert len(said) == 1, "named once"
    assert "rank 0 on" in said[0]
    assert said[0].endswith("It computes, reads or writes; the run goes on.")
