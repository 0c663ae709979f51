"""The repeated layers of a model: what is compiled, sharded, gathered and recomputed one at a
time."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def layer_lists(model: PreTrainedModel) -> list[list[nn.Module]]:
    """The stacks of layers of a model, each in the order in which it runs.

    A stack is a ModuleList of the modules that the model says may not be split over devices
    (`_no_split_modules`); where it says nothing, any ModuleList that is in no other one.
    """
    unsplit = set(model._no_split_modules or ())

    def is_unsplit(module: nn.Module) -> bool:
        # By all its classes: FSDP2 gives a module one of its own, which inherits from what it was.
        return not unsplit.isdisjoint(each.__name__ for each in type(module).__mro__)

    found: list[list[nn.Module]] = []
    inside: set[int] = set()
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or id(module) in inside:
            continue
        layers = [each for each in module if not unsplit or is_unsplit(each)]
        if layers:
            found.append(layers)
            inside.update(id(part) for part in module.modules())
    return found
