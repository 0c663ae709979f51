"""The processes of a run: what each of them is for, and what they tell each other.

What is told is plain numbers and JSON, over gloo, so that a GPU is never waited for and nothing is
unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from automodel_core.config.schema import DistEnv
from automodel_core.errors import UserError
from automodel_core.protocols import ParallelManager, Sizes
from automodel_core.train.one_process import OneProcess

ALONE = Sizes(1, 1, 1, 1)


@attrs.define
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        manager: Spreads the model over them.
        sizes: How many ranks share what.
        rank: This process's, from 0 on.
        mesh: All ranks by what they share, once the world is formed; None in one process.
    """

    manager: ParallelManager = attrs.field(factory=OneProcess)
    sizes: Sizes = ALONE
    rank: int = 0
    mesh: DeviceMesh | None = None
    _told: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        """Processes."""
        return self.sizes.dp_replicate * self.sizes.dp_shard * self._sharing

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def is_main(self) -> bool:
        """Whether this process keeps the run folder."""
        return self.rank == 0

    @property
    def data_ranks(self) -> int:
        """Ranks that are given other samples."""
        return self.sizes.dp_replicate * self.sizes.dp_shard

    @property
    def data_rank(self) -> int:
        """This process's among them: `tp` varies fastest, then `cp`."""
        return self.rank // self._sharing

    @property
    def speaks_for_its_data(self) -> bool:
        """Whether this is the first of the ranks that are given the same samples."""
        return self.rank % self._sharing == 0

    @property
    def gradient_divisor(self) -> int:
        """What the loss is multiplied by, for a manager that averages gradients."""
        return 1 if self.alone else self.manager.gradient_divisor(self.mesh)

    @property
    def _sharing(self) -> int:
        """Ranks that are given the same samples."""
        return self.sizes.cp * self.sizes.tp

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums of every number over the ranks with other samples."""
        if self.alone:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(told, group=self._told)
        return (told / self._sharing).tolist()

    def loss_on_device(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of the losses of all ranks; nobody waits for it.

        Ranks that share a sequence have each a part of its loss, and those that share layers have
        the same.

        Returns:
            `[1]` in one process. `[3]` in several: the sum, on how many ranks the loss isn't
            finite, and the sum of their numbers.
        """
        if self.alone:
            return value[None]
        bad = (~torch.isfinite(value)).to(value.dtype)
        told = torch.stack([value, bad, bad * self.rank])
        dist.all_reduce(told)
        told[0] /= self.sizes.tp
        return told

    def from_main(self, value: Any) -> Any:
        """What rank 0 has for `value`, on every rank; plain JSON."""
        return value if self.alone else self.from_all(value if self.is_main else None)[0]

    def from_all(self, value: Any) -> list[Any]:
        """What every rank has for `value`, in their order; plain JSON."""
        if self.alone:
            return [value]
        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(said)]), group=self._told)
        longest = int(max(lengths))
        rows = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        padded = torch.nn.functional.pad(said, (0, longest - len(said)))
        dist.all_gather(rows, padded, group=self._told)
        return [
            json.loads(bytes(row[: int(length)].tolist()))
            for row, length in zip(rows, lengths, strict=True)
        ]

    @contextmanager
    def formed(self, device: torch.device, settings: DistEnv) -> Iterator[None]:
        """Within it the processes are connected: everything before it is done by each alone, so no
        timeout runs while one of them still prepares its data.

        Raises:
            UserError: The backend can't work on this device.
        """
        if self.alone:
            yield
            return
        timeout = timedelta(minutes=settings.timeout_minutes)
        dist.init_process_group(
            chosen_backend(settings.backend, device, self.size),
            store=meeting_place(timeout),
            rank=self.rank,
            world_size=self.size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
        self._told = dist.new_group(backend="gloo", timeout=timeout)
        self.mesh = init_device_mesh(device.type, tuple(self.sizes), mesh_dim_names=Sizes._fields)
        self.mesh["dp_shard", "cp"]._flatten("dp_shard_cp")
        yield
        # Not after an error: another rank may be in a collective that will never end.
        dist.destroy_process_group()


def meeting_place(timeout: timedelta) -> dist.Store:
    """Where the ranks learn each other's addresses: the launcher's store. It outlives an elastic
    restart of the ranks and still holds the addresses of those that are gone, so every start has a
    part of its own."""
    store, _, size = next(dist.rendezvous("env://", timeout=timeout))
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"restart-{restarts}-of-{size}", store)


def chosen_backend(asked: str | None, device: torch.device, size: int) -> str:
    """The YAML's, else nccl on CUDA and gloo on the CPU; one process has no use for either.

    Beside nccl there is gloo for what is kept in the host's memory.

    Raises:
        UserError: Several processes are asked to use nccl without CUDA.
    """
    if size > 1 and asked == "nccl" and device.type != "cuda":
        raise UserError(
            "dist_env.backend nccl connects NVIDIA GPUs, and PyTorch sees none.",
            fix="add dist_env.backend=gloo to the command, or leave the key out",
            path=("dist_env", "backend"),
        )
    on_gpus = asked == "nccl" or (asked is None and device.type == "cuda")
    return "cpu:gloo,cuda:nccl" if on_gpus else "gloo"


def check_alike(world: World, facts: dict[str, str]) -> None:
    """Refuse to train where ranks differ in what must be equal, such as library versions.

    Raises:
        UserError: names what differs, on which ranks.
    """
    everybody = world.from_all(facts)
    for name, value in everybody[0].items():
        others = {rank: each[name] for rank, each in enumerate(everybody) if each[name] != value}
        if others:
            rank, other = next(iter(others.items()))
            raise UserError(
                f"The ranks differ in {name}: {value} on rank 0, {other} on rank {rank}"
                + (f" and {len(others) - 1} more." if len(others) > 1 else "."),
                fix="install the same versions on every node, and give all ranks the same command",
            )
