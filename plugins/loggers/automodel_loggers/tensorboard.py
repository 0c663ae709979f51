"""Event files for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_core.errors import UserError
from automodel_loggers.figures import grouped
from automodel_loggers.folders import make_folder


class TensorBoardLogger:
    """Curves to look at with `tensorboard --logdir FOLDER`.

    A resumed run takes back what it had logged after the step that it goes on from.

    Args:
        save_dir: Folder for the event files of several runs, each in a folder of its run's name.
            By default `tensorboard` in the run folder.

    Raises:
        UserError: TensorBoard isn't installed, or `save_dir` cannot be made.
    """

    def __init__(self, save_dir: str | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "TensorBoard isn't installed here.", fix="pip install tensorboard"
            ) from None
        self.make_writer = SummaryWriter
        self.save_dir = make_folder(save_dir) if save_dir else None

    def start(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        events = self.save_dir / folder.name if self.save_dir else folder / "tensorboard"
        self.writer = self.make_writer(str(events), purge_step=step + 1 if step else None)
        text = json.dumps(config, indent=2)
        self.writer.add_text("config", f"```json\n{text}\n```", step)

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._add("train", step, metrics)

    def log_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._add("validation", step, metrics)

    def finish(self, state: str) -> None:
        self.writer.close()

    def _add(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in grouped(group, metrics).items():
            self.writer.add_scalar(name, value, step)
