"""What the libraries below us print that tells a user nothing."""

from __future__ import annotations

import logging
import warnings

from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Silence, for this process, progress bars of single files and warnings meant for us."""
    transformers_logging.disable_progress_bar()
    # Says of each selectively recomputed layer that is compiled what it may not contain.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    # torchdata calls it on every new iterator; nothing that a user could change.
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
