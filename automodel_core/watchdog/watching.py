"""A thread in each rank that tells how it is and looks after the others, through a store.

It doesn't use the collectives that it watches, nor the connection to the store that the training
uses: a thread that waits for a key holds its connection. So it needs nothing of NCCL's flight
recorder, and works with gloo.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import attrs
import torch.distributed as dist

from automodel_core.errors import STUCK
from automodel_core.watchdog.beats import Beat, Pulse
from automodel_core.watchdog.judging import Finding, Seen, judge, told, whereabouts

# Beats in a rank's patience.
BEATS = 9
VERDICT = "verdict"
WORKS = "It computes, reads or writes; the run goes on."
ORPHANED = (
    "Watchdog: the launcher, or whoever kept the ranks' store, is gone. The run can't go on and is "
    "ended, with exit code {code}."
)


@attrs.define(kw_only=True)
class Watchdog:
    """Tells, judges, and ends the run if it can't go on.

    The first rank that answers speaks: rank 0 reads all beats, the others only those before theirs.
    Who lags is named once. Ranks that have stopped, or wait for each other, end the run at once;
    one that lags does when others have waited `limit` seconds, if it is idle meanwhile.

    Attributes:
        rank: This process's.
        size: How many there are.
        store: Shared by all ranks, with a connection of this thread's own.
        pulse: This rank's.
        patience: Seconds after which something is wrong.
        limit: Seconds that a rank may keep others waiting.
        logs: Where each rank's log lies.
        say: Prints a line to the terminal.
        last_words: Called with what ended the run, before the process ends.
        aside: A file for this rank's whereabouts, if the launcher has a place for it.
    """

    rank: int
    size: int
    store: dist.Store
    pulse: Pulse
    patience: float
    limit: float
    logs: str
    say: Callable[[str], None]
    last_words: Callable[[str], None]
    aside: Path | None = None
    _heard: dict[int, tuple[bytes, float]] = attrs.field(factory=dict)
    _named: Finding | None = None
    _over: threading.Event = attrs.field(factory=threading.Event)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, the ranks are watched."""
        self._tell()  # a rank may stop before its thread has come to it
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        """Until the training is over."""
        interval = self.patience / BEATS
        try:
            before = time.monotonic()
            while not self._over.wait(interval):
                now = time.monotonic()
                if now - before > self.patience / 2:
                    self._heard.clear()  # it was this process that had stopped
                before = now
                self.beat()
            self.store.set(str(self.rank), b"")
        except dist.DistError:
            # At the end of a run whoever keeps the store may be done a moment before the others.
            if not self._over.wait(self.patience):
                self._end(ORPHANED.format(code=STUCK))
        except Exception:
            # Who can't watch mustn't be taken for stopped: without this rank nobody judges.
            traceback.print_exc()
            self.store.set(str(self.rank), b"")

    def beat(self) -> None:
        """Tell how this rank is, hear a verdict, and look after the others if it is its turn."""
        self._tell()
        if self.store.check([VERDICT]):
            self._end(self.store.get(VERDICT).decode())
        if self._speaks():
            self._look()

    def _tell(self) -> None:
        """To the other ranks; and to the launcher, for the case that this process is killed."""
        beat = self.pulse.beat()
        self.store.set(str(self.rank), beat.to_json())
        if self.aside is not None:
            with contextlib.suppress(OSError):
                self.aside.write_text(whereabouts(self.rank, beat, self.logs))

    def _speaks(self) -> bool:
        """Whether no rank before this one answers; one that is done does."""
        for rank in range(self.rank):
            found = self._read([rank])
            if not found or found[rank].silent < self.patience:
                return False
        return True

    def _read(self, ranks: Sequence[int]) -> dict[int, Seen]:
        """What these ranks have told; nothing before all have begun, nor of those that are done."""
        keys, now = [str(rank) for rank in ranks], time.monotonic()
        if not self.store.check(keys):
            return {}
        found = {}
        for rank, last in zip(ranks, self.store.multi_get(keys), strict=True):
            if self._heard.get(rank, (b"", now))[0] != last:
                self._heard[rank] = (last, now)
            if last:
                found[rank] = Seen(Beat.from_json(last), now - self._heard[rank][1])
        return found

    def _look(self) -> None:
        """Judge all ranks, and say what there is to say."""
        seen = self._read(range(self.size))
        finding = judge(seen, self.patience) if len(seen) == self.size else None
        if finding is None:
            self._named = None
            return
        text = told(finding, seen, self.logs)
        busy = finding.kind == "lagging" and finding.idle < self.patience
        if finding.kind != "lagging" or (finding.seconds >= self.limit and not busy):
            verdict = f"{text}\nThe run can't go on and is ended, with exit code {STUCK}."
            self.store.set(VERDICT, verdict)
            wake([seen[rank].beat for rank in finding.ranks] if finding.kind == "stopped" else [])
            self._end(verdict)
        if self._named is None or self._named.ranks != finding.ranks:
            self._named = finding
            end = f"The run is ended if that lasts {self.limit:.0f} s."
            self.say(
                f"{text}\n  {'It computes, reads or writes; the run goes on.' if busy else end}"
            )

    def _end(self, verdict: str) -> None:
        """End this process: its training thread may never return from where it stands."""
        self.last_words(verdict)
        os._exit(STUCK)


def wake(beats: Iterable[Beat]) -> None:
    """Let stopped processes of this host go on: they then find the verdict, where torchrun would
    give them half a minute to answer a signal that they can't hear."""
    for beat in beats:
        if beat.host == socket.gethostname():
            with contextlib.suppress(OSError):
                os.kill(beat.pid, signal.SIGCONT)


def own_connection(size: int, timeout: timedelta) -> dist.Store:
    """A connection to the launcher's store for this thread alone, with keys for this start only."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timeout,
    )
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"watchdog-{restarts}-of-{size}", store)
