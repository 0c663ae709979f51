"""Steps that all processes of a run take at the same point, or fail together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from automodel_core.errors import FailedElsewhere


class Together:
    """Runs steps of which none may begin before all processes have finished the one before it.

    It has a process group of its own on gloo, so that a background thread may use it while the run
    talks on others. Every process makes one, at the same point, and takes the same steps.

    Attributes:
        rank: Of this process.
        size: How many there are.

    Args:
        timeout: How long a step waits for the slowest process; gloo's own limit if left out.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        if dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        else:
            self.rank, self.size = 0, 1

    def do(self, step: Callable[[], None]) -> None:
        """Take a step, and wait until every process has taken it.

        Raises:
            FailedElsewhere: It failed in another process, which says why.
            RuntimeError: Another process is gone.
            Exception: What the step raised here.
        """
        failed: Exception | None = None
        try:
            step()
        except Exception as error:
            failed = error
        if self.size > 1:
            # 1 + the rank of a process that failed, 0 if none did.
            told = torch.tensor(self.rank + 1 if failed else 0)
            dist.all_reduce(told, dist.ReduceOp.MAX, self._group)
            if failed is None and told:
                raise FailedElsewhere(f"rank {int(told) - 1} failed, and says there why")
        if failed is not None:
            raise failed
