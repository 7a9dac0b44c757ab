"""History of a training as TensorBoard events, for `tensorboard --logdir`."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from lpvit.errors import LpvitError


class Events:
    """Writes a scalar for each column of ``HISTORY`` and epoch; without a folder, nothing.

    Args:
        folder: For this training only.
        first_epoch: Events that an interrupted run wrote from this epoch on are hidden.
    """

    def __init__(self, folder: Path | None, first_epoch: int) -> None:
        self._writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Adds an epoch and flushes the file."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, epoch)
            self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()


def require_tensorboard(folder: Path | None) -> None:
    """Checks that events can be written if they are requested.

    Raises:
        LpvitError: TensorBoard is not installed.
    """
    if folder is not None and importlib.util.find_spec("tensorboard") is None:
        raise LpvitError("compute: tensorboard: it is not installed; pip install 'lpvit[tensorboard]'")
