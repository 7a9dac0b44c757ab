r"""Queries and keys of every head in the axes in which their products vary most.

Attention sees q^T k alone, so that any invertible map of the queries of a head may be undone in its keys. With the
second moment C_q of the queries and that of the keys, C_k, centred over the tokens of an image (softmax does not see
what all keys share; for the same reason a bias of keys does nothing, and is set to zero),

.. math:: C_q^{1/2} C_k^{1/2} = U S V^T, \qquad q' = S^{1/2} U^T C_q^{-1/2} q, \qquad k' = S^{1/2} V^T C_k^{-1/2} k.

Where only the directions of queries and keys count (SwinV2) the maps are orthogonal: the axes of C_q and C_k together,
each of unit trace.

d = features of a head.
"""

from functools import partial

import torch
from torch import Tensor, nn

from lpvit.bases.folding import linear
from lpvit.bases.maps import as_they_stand, roots, sorted_axes
from lpvit.bases.moments import Moments
from lpvit.bases.proof import Change
from lpvit.bases.wiring import Heads, Rows, Wiring


def changes(model: nn.Module, wiring: Wiring, moments: Moments) -> list[Change]:
    """One for every attention that multiplies queries and keys as they are."""
    return [
        Change(
            heads.name,
            partial(
                _map_queries,
                heads=heads,
                queries=moments.queries[heads.name].second_moment,
                keys=moments.keys[heads.name].second_moment,
            ),
        )
        for heads in wiring.heads
        if not heads.between_queries
    ]


def obstacles(model: nn.Module, wiring: Wiring) -> dict[str, str]:
    """Attention -> what stands between its queries and keys and their product."""
    return {heads.name: heads.between_queries for heads in wiring.heads if heads.between_queries}


@torch.no_grad()
def _map_queries(model: nn.Module, heads: Heads, queries: Tensor, keys: Tensor) -> None:
    """Maps by second moments (H, d, d) of queries and keys."""
    weight = linear(model, heads.queries.layer).weight
    for_queries, for_keys = (_orthogonal if heads.cosine else _balanced)(queries.to(weight), keys.to(weight))
    _map_rows(model, heads.queries, for_queries)
    _map_rows(model, heads.keys, for_keys)
    bias = linear(model, heads.keys.layer).bias
    if bias is not None and not heads.cosine:
        bias[heads.keys.slice] = 0.0


def _balanced(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    root, inverse = roots(queries)
    left, strengths, _ = torch.linalg.svd(root @ roots(keys)[0])
    balance = strengths.clamp_min(strengths[:, :1] * 1e-6).sqrt()[:, :, None]
    forth = balance * as_they_stand(left.mT) * (left.mT @ inverse)
    return forth, torch.linalg.inv(forth).mT


def _orthogonal(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    shares = [moment / moment.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] for moment in (queries, keys)]
    axes = sorted_axes(shares[0] + shares[1])
    return axes, axes


def _map_rows(model: nn.Module, rows: Rows, maps: Tensor) -> None:
    """Multiplies the outputs of every head by its map (H, d, d)."""
    layer = linear(model, rows.layer)
    apart = layer.weight[rows.slice].view(*maps.shape[:2], -1)
    layer.weight[rows.slice] = (maps @ apart).flatten(0, 1)
    if layer.bias is not None:
        layer.bias[rows.slice] = (maps @ layer.bias[rows.slice].view(len(maps), -1, 1)).flatten()
