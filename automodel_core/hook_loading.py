"""Loads the hook modules of installed packages and keeps a run safe from them."""

from __future__ import annotations

import copy
import functools
import importlib
import logging
from collections.abc import Callable, Collection
from types import ModuleType, SimpleNamespace
from typing import Any

import pluggy

from automodel_core import hooks
from automodel_core.config.schema import RunConfig
from automodel_core.randomness import untouched_randomness
from automodel_core.records import HOOKS, Record
from automodel_core.registry import Registry
from automodel_core.wording import did_you_mean

LOG = logging.getLogger("automodel.hooks")

CONFIGURE, LAUNCH = "automodel_configure", "automodel_launch"
SPECIFIED = [name for name in vars(hooks) if name.startswith("automodel_")]

# The attribute in which pluggy's marker leaves its options.
MARK = f"{hooks.PROJECT}_impl"


def load_hooks(
    registry: Registry, *, rank: int = 0, launchers: Collection[str] = ()
) -> pluggy.HookRelay:
    """Import every usable hook module; call hooks as `relay.automodel_step_end(step=1, ...)`.

    pluggy's own entry-point loading is not used: it takes them in any order, and the first module
    that fails to import would end the program.

    Args:
        registry: The installed plugins.
        rank: This process's; all but rank 0 only get the observers marked for all ranks.
        launchers: The launchers that the YAML or the command line names.
    """
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    records = [each for each in registry.records if each.kind == HOOKS and each.state == "ok"]
    for record in reversed(records):  # pluggy calls the last registered first
        owner = f"{record.distribution}/{record.name}"
        try:
            module = importlib.import_module(record.module)
            functions = _implementations(module, record, rank, launchers)
            manager.register(SimpleNamespace(**_guarded(functions, owner)), name=owner)
        except Exception as error:  # no run asked for it, so it may not harm any
            LOG.warning("Hooks of %s are left out: %s: %s", owner, type(error).__name__, error)
    return manager.hook


def _implementations(
    module: ModuleType, record: Record, rank: int, launchers: Collection[str]
) -> dict[str, Callable[..., Any]]:
    """The hook functions of a module that this process should call."""
    marked = {name: each for name, each in vars(module).items() if hasattr(each, MARK)}
    for name, function in marked.items():
        if name not in SPECIFIED:
            hint = did_you_mean(name, SPECIFIED)
            raise ValueError(f"there is no hook {name}{hint and f'; {hint}'}")
        options = getattr(function, MARK)
        if options["wrapper"] or options["hookwrapper"]:
            raise ValueError(f"{name} is a wrapper, and hooks only observe")
    return {
        name: function
        for name, function in marked.items()
        if (name != LAUNCH or record.name in launchers)
        and (name == LAUNCH or rank == 0 or hasattr(function, "automodel_all_ranks"))
    }


def _guarded(functions: dict[str, Callable[..., Any]], owner: str) -> dict[str, Callable[..., Any]]:
    guard = _Guard(owner)
    # A launcher was asked for by name: its errors are the user's to see.
    return {
        name: each if name == LAUNCH else guard.wrap(name, each) for name, each in functions.items()
    }


class _Guard:
    """Stands around the hook functions of one module.

    Each gets its own copy of the configuration and gives random state back as it found it. The
    first that raises is the module's last call.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.dropped = False

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is registered with pluggy, which reads its arguments' names."""

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            if self.dropped:
                return None
            try:
                with untouched_randomness():
                    result = function(*map(_own_copy, arguments))
                    return list(result or ()) if name == CONFIGURE else None
            except (Exception, SystemExit) as error:  # one rank leaving would hang the others
                self.dropped = True
                what = f"{name} raised {type(error).__name__}: {error}"
                LOG.warning("Hooks of %s are dropped: %s", self.owner, what)
                return None

        return call


def _own_copy(argument: Any) -> Any:
    return copy.deepcopy(argument) if isinstance(argument, RunConfig | dict) else argument
