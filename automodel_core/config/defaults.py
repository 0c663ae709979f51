"""The defaults that depend on other sections; all others stand in the schema."""

from __future__ import annotations

from typing import Any

from automodel_core.config.document import Document

DEFAULT_LR, DEFAULT_LR_WITH_ADAPTERS = 2e-5, 1e-4


def inherit_dataloader(document: Document) -> None:
    """Give `validation_dataloader` the keys of `dataloader` that it lacks, except the order.

    They keep their marks and names, so that a mistake in one is told once, where it was made.
    """
    loader, validation = document.get(("dataloader",)), document.get(("validation_dataloader",))
    if not isinstance(loader, dict) or not isinstance(validation, dict):
        return
    for name in [each for each in loader if each not in {*validation, "shuffle"}]:
        piece = document.part(("dataloader", name))
        piece.spellings.setdefault((), ("dataloader", name))
        document.graft(("validation_dataloader", name), piece)


def add_defaults(tree: dict[str, Any]) -> None:
    """A learning rate, which with adapters is larger, and no decay where no optimizer is named."""
    optimizer = tree.setdefault("optimizer", {})
    if isinstance(optimizer, str):
        optimizer = tree["optimizer"] = {"_target_": optimizer}
    if isinstance(optimizer, dict):
        if "_target_" not in optimizer:
            optimizer.setdefault("weight_decay", 0.0)
        optimizer.setdefault("lr", DEFAULT_LR_WITH_ADAPTERS if tree.get("peft") else DEFAULT_LR)
