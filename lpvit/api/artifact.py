"""Reads models of the pipeline as results of `lpvit.prune`."""

from pathlib import Path

from lpvit.api.pruned import Pruned, require_pruned
from lpvit.errors import LpvitError
from lpvit.models.architecture import load_model
from lpvit.store.artifacts import header
from lpvit.structures.blocks.edit import kept_blocks_of
from lpvit.structures.blocks.masks import load_masks

KINDS = ("pruned", "finetuned", "quantised", "finetuned_quantised")


def read_artifact(path: str | Path) -> Pruned:
    """Reads ``pruned.pt``, ``finetuned.pt`` or a quantised model of a run.

    Masks are among the edits of the model. A file of format 1 has none: then they are read from ``masks.pt`` beside it.

    Raises:
        LpvitError: The file or its masks are missing or damaged, or have other content.
    """
    kind = header(path)["kind"]
    if kind not in KINDS:
        raise LpvitError(f"{path}: holds '{kind}', expected a pruned model: pruned.pt or finetuned.pt")
    architecture, state = load_model(path, kind)
    model, kept = architecture.build(state), kept_blocks_of(architecture.edits)
    if kept is not None:
        return require_pruned(Pruned(model, kept.unpacked(), kept.block_shape))
    if any(edit.removes for edit in architecture.edits):  # factors, or a narrower model
        return Pruned(model, {}, (1, 1))
    return require_pruned(Pruned(model, *load_masks(Path(path).parent / "masks.pt")))
