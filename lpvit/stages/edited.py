"""Reads models edited by earlier stages.

Edits are found by their kind, without an import. A stage that imports this module depends on all of them
(`lpvit.store.provenance.FOUND_BY_NAME`).
"""

from pathlib import Path

from torch import Tensor

from lpvit.models.architecture import Architecture, load_model


def read_edited(path: str | Path, kind: str) -> tuple[Architecture, dict[str, Tensor]]:
    """Architecture and weights of a pruned, fine-tuned or quantised model.

    Raises:
        LpvitError: As `lpvit.models.architecture.load_model`.
    """
    return load_model(path, kind)
