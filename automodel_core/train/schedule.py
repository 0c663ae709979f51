"""How many optimizer steps a run has, and the learning rate of each."""

from __future__ import annotations

import math

import attrs

from automodel_core.config.schema import LRScheduler, StepScheduler
from automodel_core.errors import UserError


@attrs.frozen
class Horizon:
    """The planned length of a run.

    Attributes:
        steps_per_epoch: Optimizer steps in one pass over the data, a short last one included; None
            for a stream.
        total_steps: Optimizer steps of the whole run, at most; None if only a stream's end ends it.
    """

    steps_per_epoch: int | None
    total_steps: int | None


def plan_horizon(scheduler: StepScheduler, steps_per_epoch: int | None) -> Horizon:
    """Whichever of max_steps and num_epochs ends first; neither means one epoch."""
    if steps_per_epoch is None:
        return Horizon(None, scheduler.max_steps)
    limits = [
        limit
        for limit in (
            scheduler.max_steps,
            scheduler.num_epochs and scheduler.num_epochs * steps_per_epoch,
        )
        if limit is not None
    ]
    return Horizon(steps_per_epoch, min(limits, default=steps_per_epoch))


def check_schedule(schedule: LRScheduler, horizon: Horizon) -> None:
    """Refuse a schedule that cannot be meant: warm-up or decay as long as the run.

    Raises:
        UserError: with the path of the key at fault.
    """
    total = math.inf if horizon.total_steps is None else horizon.total_steps
    if schedule.warmup_steps and schedule.warmup_steps >= total:
        raise UserError(
            f"warmup_steps is {schedule.warmup_steps}, but the run has only "
            f"{horizon.total_steps} optimizer steps: the learning rate would never be reached.",
            fix=f"write a number below {horizon.total_steps}, or train longer",
            path=("lr_scheduler", "warmup_steps"),
        )
    if schedule.decay_steps is not None and schedule.lr_decay_style != "WSD":
        raise UserError(
            f"decay_steps belongs to lr_decay_style WSD; {schedule.lr_decay_style} ignores it.",
            fix="remove decay_steps, or write lr_decay_style: WSD",
            path=("lr_scheduler", "decay_steps"),
        )
    if schedule.decay_steps and schedule.decay_steps > total - schedule.warmup_steps:
        raise UserError(
            f"decay_steps is {schedule.decay_steps}, longer than the {horizon.total_steps} steps "
            "of the run less its warm-up.",
            path=("lr_scheduler", "decay_steps"),
        )


def learning_rate(step: int, peak: float, schedule: LRScheduler, total_steps: int | None) -> float:
    """The learning rate of optimizer step `step` (1 is the first).

    Where nobody knows the number of steps, only what doesn't go by it is allowed.

    Warm-up is linear from peak / warmup_steps. After it, with p the share of the remaining steps
    already done (0 at the first, towards 1 at the end of the run):

        cosine               min + (peak - min) (1 + cos(pi p)) / 2      (Loshchilov & Hutter 2017,
                                                                          arXiv:1608.03983)
        linear               peak + (min - peak) p
        constant             peak
        inverse-square-root  peak sqrt(w / step), w = max(warmup_steps, 1), not below min
        WSD                  peak, then linear to min over the last decay_steps
                             (Hu et al. 2024, arXiv:2404.06395)
    """
    warmup, floor = schedule.warmup_steps, schedule.min_lr
    if step <= warmup:
        return peak * step / warmup
    done, remaining = step - warmup - 1, max((total_steps or step) - warmup, 1)
    match schedule.lr_decay_style:
        case "constant":
            return peak
        case "linear":
            return peak + (floor - peak) * done / remaining
        case "cosine":
            return floor + (peak - floor) * (1 + math.cos(math.pi * done / remaining)) / 2
        case "inverse-square-root":
            return max(peak * math.sqrt(max(warmup, 1) / step), floor)
        case "WSD":
            decay = schedule.decay_steps or max(total_steps // 10, 1)
            into_decay = max(step - (total_steps - decay) - 1, 0)
            return peak + (floor - peak) * min(into_decay / decay, 1.0)
