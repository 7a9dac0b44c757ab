"""Options of several structures for a layer as one chain, in which allocators remove unit by unit.

An option that removes no more weights than another and loses no less is left out. The others, by rising number of
removed weights, make the chain; a *unit* is the step from one to the next, as in `lpvit.structures.factors.ranks`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lpvit.allocation.ranking import in_pruning_order
from lpvit.structures.mixed.refitted_curves import Curve
from lpvit.structures.structure import Options


def union_of(curves: Sequence[Mapping[str, Curve]]) -> Options:
    """Units and curves of all layers.

    Args:
        curves: Of every structure, layer -> curve; the same layers, in order of execution.

    Returns:
        Tables for the allocators. A unit is named by the option that it leads to: ``row`` is the number of its
        structure, ``column`` the number of pieces that are removed there.
    """
    tables = [_layer_tables(layer, [of_structure[layer] for of_structure in curves]) for layer in curves[0]]
    units, points = (pd.concat(frames, ignore_index=True) for frames in zip(*tables, strict=True))
    return Options(units, points)


def chosen_of(units: pd.DataFrame, allocation: pd.DataFrame, structures: Sequence[str]) -> dict[str, dict[str, int]]:
    """Structure -> layer -> pieces that are removed; a layer that stays dense is in none.

    Args:
        units: From `union_of`.
        allocation: Schema ``ALLOCATION``.
        structures: Names, in the order of the curves.
    """
    chosen: dict[str, dict[str, int]] = {name: {} for name in structures}
    units_of = {str(layer): in_pruning_order(of_layer) for layer, of_layer in units.groupby("layer", sort=False)}
    for layer, count, kept in allocation[["layer", "blocks", "blocks_kept"]].itertuples(index=False, name=None):
        if kept < count:
            last = units_of[layer].iloc[count - kept - 1]
            chosen[structures[last["row"]]][layer] = int(last["column"])
    return chosen


def _layer_tables(layer: str, curves: Sequence[Curve]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Units and curve of a layer, from its curve in every structure."""
    offered = pd.concat(
        [
            pd.DataFrame(
                {
                    "structure": number,
                    "pieces": np.arange(len(curve.removed)),
                    "removed": curve.removed,
                    "squared_norm": curve.squared_norm,
                    "distortion": curve.distortion,
                }
            )
            for number, curve in enumerate(curves)
        ]
    )
    is_last = offered["removed"] == curves[0].removed[-1]
    nothing_left = offered[is_last].nsmallest(1, "distortion")  # which is never chosen, but ends the chain
    chain = pd.concat([_efficient(offered[(offered["pieces"] > 0) & ~is_last]), nothing_left])
    distortion, count = np.maximum.accumulate(chain["distortion"].to_numpy()), len(chain)
    units = pd.DataFrame(
        {
            "layer": layer,
            "row": chain["structure"].astype(np.int32),
            "column": chain["pieces"].astype(np.int32),
            "weights": np.diff(chain["removed"], prepend=0).astype(np.int32),
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
