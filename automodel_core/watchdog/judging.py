"""From the beats of all ranks to what is wrong, if anything is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from automodel_core.watchdog.beats import Beat


@attrs.frozen
class Seen:
    """A rank's last beat, and for how many seconds it has been its last."""

    beat: Beat
    silent: float


@attrs.frozen
class Finding:
    """What is wrong.

    Attributes:
        kind: `stopped`: ranks that don't answer. `lagging`: ranks that others wait for. `deadlock`:
            all ranks wait for each other.
        ranks: Those at fault.
        seconds: For how long.
        waiting: How many ranks wait for them.
        idle: For how long those at fault have neither computed, read nor written, at least.
    """

    kind: Literal["stopped", "lagging", "deadlock"]
    ranks: tuple[int, ...]
    seconds: float
    waiting: int
    idle: float = 0.0


def judge(seen: Mapping[int, Seen], patience: float) -> Finding | None:
    """What has been wrong for `patience` seconds.

    Nobody is late by the clock alone: a step, a compilation or a validation may take as long as
    they like while all ranks are at it. A rank lags if another has sat in one wait for so long and
    it sits in none; ranks are deadlocked if all sit in one, and no thread of any computes, sends
    or receives.
    """
    stopped = tuple(rank for rank, each in seen.items() if each.silent >= patience)
    if stopped:
        longest = max(seen[rank].silent for rank in stopped)
        return Finding("stopped", stopped, longest, len(seen) - len(stopped))
    waiting = [rank for rank, each in seen.items() if each.beat.waiting >= patience]
    if not waiting:
        return None
    seconds = max(seen[rank].beat.waiting for rank in waiting)
    late = tuple(rank for rank, each in seen.items() if not each.beat.waiting)
    if any(seen[rank].silent >= patience / 3 for rank in late):
        return None  # it will answer, or be seen to have stopped
    if late:
        still = min(seen[rank].beat.idle for rank in late)
        return Finding("lagging", late, seconds, len(waiting), still)
    idle = all(min(each.beat.waiting, each.beat.idle) >= patience for each in seen.values())
    return Finding("deadlock", tuple(seen), seconds, len(waiting)) if idle else None


def told(finding: Finding, seen: Mapping[int, Seen], logs: str) -> str:
    """A finding for people.

    Args:
        finding: What is wrong.
        seen: The beats that it was found in.
        logs: Where each rank's log lies.
    """
    lines = [HEADINGS[finding.kind].format(seconds=finding.seconds, waiting=finding.waiting)]
    for rank in finding.ranks:
        beat = seen[rank].beat
        lines.append(f"  {whereabouts(rank, beat, logs)}")
        where = "stood here when it last answered" if finding.kind == "stopped" else "stands here"
        lines += [f"    it {where}, the innermost call last:", *(f"      {x}" for x in beat.stack)]
    return "\n".join(lines)


def whereabouts(rank: int, beat: Beat, logs: str) -> str:
    """Where a rank is and what it is at, in a line."""
    samples = ", ".join(map(str, beat.samples)) or "none yet"
    return (
        f"rank {rank} on {beat.host} (process {beat.pid}): step {beat.step}, samples {samples}; "
        f"log {logs}/rank_{rank}.log"
    )


HEADINGS = {
    "stopped": "Watchdog: no answer for {seconds:.0f} s, from a process that is stopped or gone:",
    "lagging": "Watchdog: {waiting} rank(s) have waited {seconds:.0f} s for:",
    "deadlock": "Watchdog: for {seconds:.0f} s all ranks have waited for each other, and not in "
    "calls that go together:",
}
