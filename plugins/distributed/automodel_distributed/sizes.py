"""From the sizes in a YAML file to the shape of the mesh."""

from __future__ import annotations

from collections.abc import Mapping

from automodel_core.errors import UserError
from automodel_core.protocols import Sizes


def check_size(name: str, size: int | None) -> None:
    """Refuse a number of ranks that can't be one; None is found out from the launch.

    Raises:
        UserError: It is below 1.
    """
    if size is not None and size < 1:
        raise UserError(
            f"{name} counts ranks, so it can't be {size}.", fix=f"write {name}: 1", argument=name
        )


def mesh_sizes(
    world_size: int, *, dp_size: int | None, dp_replicate_size: int, tp_size: int, cp_size: int
) -> Sizes:
    """The shape of the mesh.

    Args:
        world_size: Processes of the run.
        dp_size: Data-parallel ranks, copies of the model times shards of a copy; None for all that
            `tp_size` and `cp_size` leave.
        dp_replicate_size: Copies of the model.
        tp_size: Ranks that share every layer.
        cp_size: Ranks that share every sequence.

    Raises:
        UserError: The sizes don't multiply to `world_size`, or the copies don't divide `dp_size`.
    """
    inner = {"tp_size": tp_size, "cp_size": cp_size}
    if dp_size is None:
        if world_size % (tp_size * cp_size):
            raise _does_not_fit(inner, world_size, "which don't divide")
        dp_size = world_size // (tp_size * cp_size)
    elif dp_size * tp_size * cp_size != world_size:
        raise _does_not_fit({"dp_size": dp_size, **inner}, world_size, "which isn't")
    if dp_size % dp_replicate_size:
        raise UserError(
            f"{dp_size} data-parallel ranks can't be {dp_replicate_size} equal groups "
            f"(dp_replicate_size): {dp_size} / {dp_replicate_size} leaves a rest of "
            f"{dp_size % dp_replicate_size}.",
            fix=f"write a dp_replicate_size that divides {dp_size}, such as 1",
            argument="dp_replicate_size",
        )
    return Sizes(dp_replicate_size, dp_size // dp_replicate_size, cp_size, tp_size)


def _does_not_fit(sizes: Mapping[str, int], world_size: int, relation: str) -> UserError:
    product = 1
    for size in sizes.values():
        product *= size
    written = " x ".join(f"{name} {size}" for name, size in sizes.items())
    processes = "1 process" if world_size == 1 else f"{world_size} processes"
    argument = next((name for name, size in sizes.items() if size > 1), "dp_size")
    return UserError(
        f"{written} = {product} ranks, {relation} the {processes} of this run.",
        fix=f"start {product} processes (--nproc-per-node {product}), or change the sizes; "
        "dp_size: none takes what the others leave",
        argument=argument,
    )
