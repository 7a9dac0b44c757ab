"""A model in aligned bases: the same function in other weights, of which blocks can be pruned at a smaller loss."""

import logging
from collections.abc import Iterable, Mapping
from copy import deepcopy
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from torch import nn

from lpvit.bases import centre, hidden, queries, residual, values
from lpvit.bases.edit import AlignedBases
from lpvit.bases.folding import drop_idle_biases, folding, give_biases, has_bias, layers_to_bias, linear
from lpvit.bases.moments import Moments, moments_of
from lpvit.bases.proof import Change, Proof, make_proved
from lpvit.bases.wiring import Wiring, wiring_of
from lpvit.errors import LpvitError
from lpvit.models.analysis.network import require_plain_module
from lpvit.models.analysis.passes import Batches
from lpvit.models.edits import record_edit
from lpvit.models.sources.families import call_modules

FREEDOMS: Mapping[str, ModuleType] = {  # in the order in which they are used: moments are those of the folded model
    "centre": centre,
    "residual": residual,
    "values": values,
    "queries": queries,
    "hidden": hidden,
}

COLUMNS = ["freedom", "used", "places", "candidates", "reason"]

_logger = logging.getLogger(__name__)


def align(
    model: nn.Module,
    loader: Batches,
    freedoms: Iterable[str] = tuple(FREEDOMS),
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, pd.DataFrame]:
    """Writes a model down in other bases, as far as that is proved to leave it the same function.

    Affine parts of norms and LayerScale are folded into the layers beside them first. Every freedom is tried in float64
    on random images, at all places at once and, where logits change by more than 1e-10 of the largest, at halves of
    them; in the model's own dtype they may change by 5e-5 (`lpvit.bases.proof`).

    Args:
        model: A transformer of timm; left as it is.
        loader: Calibration images, read once.
        freedoms: Which of `FREEDOMS` to use.
        device: Where to compute; the result stays there.

    Returns:
        A model of the same class, in the dtype of the given one and in evaluation mode, with its edit recorded
        (`lpvit.bases.edit`); and a row for every freedom that was asked for: ``freedom``, ``used`` (whether anywhere),
        the number of ``places`` where it is used and of ``candidates`` where it might have been, and the ``reason`` for
        the others.

    Raises:
        LpvitError: There is no such freedom, or something is not finite.
    """
    freedoms = list(freedoms)
    if unknown := [freedom for freedom in freedoms if freedom not in FREEDOMS]:
        raise LpvitError(f"basis: there is no freedom '{unknown[0]}'; there are {', '.join(FREEDOMS)}")
    require_plain_module(model)
    aligned = call_modules(deepcopy(model)).to(device).eval()
    dtype = next(model.parameters()).dtype
    wiring = wiring_of(aligned)
    proof = Proof.of(aligned.double(), dtype)
    bare = [name for name in layers_to_bias(wiring) if not has_bias(linear(aligned, name))]
    give_biases(aligned, bare)
    unfolded = make_proved(aligned, folding(aligned, wiring), proof)
    for place in unfolded:
        _logger.info("aligned bases: '%s' cannot be folded into a layer", place)
    wiring = wiring.without(unfolded)
    moments = moments_of(deepcopy(aligned).to(dtype), wiring, loader, device)
    used = {name: _use(name, aligned, wiring, moments, proof) for name in FREEDOMS if name in freedoms}
    biases = drop_idle_biases(aligned, bare)
    report = pd.DataFrame([used[name] for name in freedoms], columns=COLUMNS)
    record_edit(
        aligned, AlignedBases(freedoms=tuple(name for name in freedoms if used[name]["used"]), biases=tuple(biases))
    )
    return aligned.to(dtype), report


def _use(name: str, model: nn.Module, wiring: Wiring, moments: Moments, proof: Proof) -> dict[str, Any]:
    """Makes what is proved of a freedom, and says what is not."""
    freedom = FREEDOMS[name]
    reasons: dict[str, str] = freedom.obstacles(model, wiring)
    changes: list[Change] = freedom.changes(model, wiring, moments)
    reasons |= dict.fromkeys(make_proved(model, changes, proof), "the logits would change")
    candidates = {change.place for change in changes} | reasons.keys()
    places = len(candidates - reasons.keys())
    reason = _grouped(reasons)
    if reasons:
        _logger.info("aligned bases: %s left out at %d of %d places: %s", name, len(reasons), len(candidates), reason)
    return {"freedom": name, "used": places > 0, "places": places, "candidates": len(candidates), "reason": reason}


def _grouped(reasons: Mapping[str, str]) -> str:
    """Every reason once, behind the first place that it holds for."""
    first: dict[str, str] = {}
    for place, why in reasons.items():
        first.setdefault(why.replace(place, "*"), f"{place}: {why}")
    return "; ".join(first.values())
