"""The managers of the `distributed:` section. Today every one of them means one process.

A file written for many devices runs on one as it stands, if its sizes are 1 or left to be found.
"""

from __future__ import annotations

import attrs

from automodel_core.errors import UserError

SIZES = ("dp_size", "dp_replicate_size", "tp_size", "cp_size")


@attrs.frozen
class FSDP2Manager:
    """Fully sharded data parallelism, with tensor and context parallelism inside it.

    Args:
        dp_size: Data-parallel ranks; none takes all that the other sizes leave.
        dp_replicate_size: Groups of ranks that each hold the whole model.
        tp_size: Ranks that share every layer (tensor parallelism).
        cp_size: Ranks that share every sequence (context parallelism).
        sequence_parallel: Also share norms and dropout over the tensor-parallel ranks.

    Raises:
        UserError: A size below 1, or one that needs more than this one process.
    """

    dp_size: int | None = None
    dp_replicate_size: int = 1
    tp_size: int = 1
    cp_size: int = 1
    sequence_parallel: bool = False

    def __attrs_post_init__(self) -> None:
        for name in SIZES:
            _check_size(name, getattr(self, name))
        if self.sequence_parallel:
            raise UserError(
                "sequence_parallel needs tensor parallelism, which isn't available yet.",
                fix="write sequence_parallel: false",
                argument="sequence_parallel",
            )


class DDPManager:
    """The whole model on every rank, the gradients averaged over all of them."""


def _check_size(name: str, size: int | None) -> None:
    """None is found out from the launch, and 1 is this process; more has to wait."""
    if size is None or size == 1:
        return
    if size < 1:
        raise UserError(
            f"{name} counts ranks, so it can't be {size}.", fix=f"write {name}: 1", argument=name
        )
    raise UserError(
        f"{name}: {size} isn't available yet: a run is one process.",
        fix=f"write {name}: 1 or leave it out",
        argument=name,
    )
