"""Reads checkpoints of trainers into models, and gives weights back under the names of a library."""

from pathlib import Path

from torch import Tensor, nn

from lpvit.api.arguments import require_path, require_type
from lpvit.api.pruned import Pruned, require_pruned
from lpvit.errors import LpvitError
from lpvit.models.analysis.network import require_weights
from lpvit.models.edits import edits_of
from lpvit.models.sources.checkpoints import load_weights as load_state
from lpvit.models.sources.checkpoints import read_checkpoint
from lpvit.models.unpacking.edit import packed_names

_SAME_SHAPES = ("blocks", "unpacking")  # edits after which a library's model still takes the weights


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Loads a checkpoint, as trainers write them, without running code of the file.

    Reads what timm, DeiT, Swin, MAE, DINO, Lightning and transformers save: settings beside the weights, averaged
    weights, which are preferred, prefixes of wrappers, shards. timm's filters of the model convert official files.

    Args:
        model: Changed in place, and returned.
        path: ``.safetensors``, ``.pt``, ``.pth``, ``.bin``, an index of shards, or a folder with one of these.

    Raises:
        LpvitError: The file cannot be read, or holds weights of another architecture, or the model is on the meta
            device.
    """
    require_type("model", model, nn.Module, "a model: an nn.Module")
    require_weights(model)
    path = require_path(path, folder=True)
    load_state(model, read_checkpoint(path, model), path)
    return model


def original_state_dict(pruned: Pruned) -> dict[str, Tensor]:
    """The weights under the names of the model as its library builds it, pruned ones as zeros.

    For models of which blocks are pruned. A model of transformers without ``nn.MultiheadAttention`` can as well be
    written by ``pruned.model.save_pretrained(folder)``.

    Raises:
        LpvitError: As `lpvit.api.pruned.require_pruned`, or the model has layers that the library's does not have, such
            as factors.
    """
    others = [edit.kind for edit in edits_of(require_pruned(pruned).model) if edit.kind not in _SAME_SHAPES]
    if others:
        raise LpvitError(
            f"model: was changed by {', '.join(others)}, so that its library cannot build it; use lpvit.save"
        )
    return packed_names(pruned.model)
