"""Options of several structures for a layer as one chain, in which allocators remove unit by unit.

An option that removes no more weights than another and loses no less is left out. The others, by rising number of
removed weights, make the chain; a *unit* is the step from one to the next, as in `lpvit.structures.factors.ranks`.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lpvit.allocation.ranking import in_pruning_order
from lpvit.structures.mixed.refitted_curves import Curve
from lpvit.structures.structure import Options


def union_of(curves: Mapping[str, Mapping[str, Curve]]) -> Options:
    """Units and curves of all layers.

    Args:
        curves: Structure -> layer -> curve; the same layers in all, in order of execution.

    Returns:
        Tables for the allocators. A unit is named by the option that it leads to: its ``structure``, and as ``column``
        the number of pieces that are removed there.
    """
    layers = next(iter(curves.values()))
    tables = [_layer_tables(layer, {name: of_layer[layer] for name, of_layer in curves.items()}) for layer in layers]
    units, points = (pd.concat(frames, ignore_index=True) for frames in zip(*tables, strict=True))
    return Options(units, points)


def chosen_of(units: pd.DataFrame, allocation: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Structure -> layer -> pieces that are removed; a layer that stays dense is in none.

    Args:
        units: From `union_of`.
        allocation: Schema ``ALLOCATION``.
    """
    chosen: dict[str, dict[str, int]] = {}
    units_of = {str(layer): in_pruning_order(of_layer) for layer, of_layer in units.groupby("layer", sort=False)}
    for layer, count, kept in allocation[["layer", "blocks", "blocks_kept"]].itertuples(index=False, name=None):
        if kept < count:
            last = units_of[layer].iloc[count - kept - 1]
            chosen.setdefault(str(last["structure"]), {})[layer] = int(last["column"])
    return chosen


def _layer_tables(layer: str, curves: Mapping[str, Curve]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Units and curve of a layer, from its curve in every structure."""
    offered = pd.concat(
        [
            pd.DataFrame(
                {
                    "structure": name,
                    "pieces": np.arange(len(curve.removed)),
                    "removed": curve.removed,
                    "bytes": curve.bytes,
                    "squared_norm": curve.squared_norm,
                    "distortion": curve.distortion,
                }
            )
            for name, curve in curves.items()
        ]
    )
    is_last = offered["removed"] == offered["removed"].max()
    nothing_left = offered[is_last].nsmallest(1, "distortion")  # which is never chosen, but ends the chain
    chain = pd.concat([_efficient(offered[(offered["pieces"] > 0) & ~is_last]), nothing_left])
    distortion, count = np.maximum.accumulate(chain["distortion"].to_numpy()), len(chain)
    units = pd.DataFrame(
        {
            "layer": layer,
            "structure": chain["structure"],
            "row": np.zeros(count, dtype=np.int32),
            "column": chain["pieces"].astype(np.int32),
            "weights": np.diff(chain["removed"], prepend=0).astype(np.int32),
            "bytes": np.diff(chain["bytes"], prepend=0),
            "saliency": distortion,
            "squared_norm": np.maximum(np.diff(chain["squared_norm"], prepend=0.0), 0.0),
        }
    )
    curve = pd.DataFrame(
        {
            "layer": layer,
            "sparsity": np.linspace(0, 1, count + 1),
            "blocks_pruned": np.arange(count + 1),
            "weights_pruned": np.append(0, chain["removed"]),
            "distortion": np.append(0.0, distortion),
        }
    )
    return units, curve


def _efficient(options: pd.DataFrame) -> pd.DataFrame:
    """Those that no other beats, by rising number of removed weights, with rising distortion."""
    ordered = options.sort_values(["removed", "distortion"], ascending=[True, False], kind="stable")
    distortion = ordered["distortion"].to_numpy()
    best_behind = np.minimum.accumulate(np.append(distortion[1:], np.inf)[::-1])[::-1]
    return ordered[distortion < best_behind]
