"""A layer as two thinner ones, W ~ B A: plain linear layers or convolutions, which every engine and tool supports.

O, I = output and input features of a layer (of a convolution: output channels, and channels * height * width of its
input); r = rank.
"""

from typing import Any, Self

import torch
from scipy.linalg import qr
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import MatrixLayer, weight_matrix
from lpvit.refitting.truncation import LowRank
from lpvit.structures.factors.settings import Form


class FactorisedLinear(nn.Module):
    """``y = B (A x) + b``: r (I + O) products per token. For a convolution, one to r channels and one of 1x1.

    Attributes:
        reduce: A, to r features, without bias.
        expand: B, to the outputs, with the bias.
    """

    def __init__(self, reduce: MatrixLayer, expand: MatrixLayer) -> None:
        super().__init__()
        self.reduce = reduce
        self.expand = expand

    @classmethod
    def like(cls, layer: MatrixLayer, rank: int) -> Self:
        """Creates the replacement of a layer, filled by `store` or a state dict.

        Raises:
            LpvitError: The rank is not from 1 to the smaller side of the weight matrix.
        """
        out_features = _checked_outputs(layer, rank)
        new = cls(_reduction(layer, rank, bias=False), _expansion(layer, rank, out_features))
        return new.train(layer.training)

    @torch.no_grad()
    def store(self, low: LowRank) -> None:
        """Stores weights of the same rank."""
        _fill(self.reduce, low.reduce, None)
        _fill(self.expand, low.expand, low.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) -> (..., O); of a convolution, channels first."""
        outputs: Tensor = self.expand(self.reduce(inputs))
        return outputs


class PivotedLinear(nn.Module):
    r"""Computes r outputs directly and the others from them: r (I + O - r) products per token for any weight of rank r.

    The map between the factors is free, so r rows of B A may be A itself; the other rows of B then combine these
    outputs (PIFA, arXiv 2501.19090): with p the pivots and q the other outputs,

    .. math:: y_p = (B_p A) x + b_p, \qquad y_q = (B_q B_p^{-1}) \, y_p + b_q - B_q B_p^{-1} b_p.

    Attributes:
        reduce: To the r pivots, with their bias.
        expand: From the pivots to the other outputs.
        order: Position of every output among the pivots followed by the others, (O,), int64.
    """

    order: Tensor

    def __init__(self, reduce: MatrixLayer, expand: MatrixLayer) -> None:
        super().__init__()
        self.reduce = reduce
        self.expand = expand
        outputs = weight_matrix(reduce).shape[0] + weight_matrix(expand).shape[0]
        self.register_buffer("order", torch.arange(outputs, device=reduce.weight.device))

    @classmethod
    def like(cls, layer: MatrixLayer, rank: int) -> Self:
        """Creates the replacement of a layer, filled by `store` or a state dict.

        Raises:
            LpvitError: The rank is not from 1 to less than the number of outputs, or above that of inputs.
        """
        others = _checked_outputs(layer, rank) - rank
        if not others:
            raise LpvitError(f"rank: found {rank}, which leaves a pivoted layer no other outputs")
        new = cls(_reduction(layer, rank, layer.bias is not None), _expansion(layer, rank, others))
        return new.train(layer.training)

    @torch.no_grad()
    def store(self, low: LowRank) -> None:
        """Stores weights of the same rank; pivots by QR with column pivoting, so that the coefficients are small."""
        pivots, others = _pivots(low)
        mixing = torch.linalg.solve(low.expand[pivots], low.expand[others], left=False)
        bias = low.bias
        of_pivots = None if bias is None else bias[pivots]
        of_others = None if bias is None or of_pivots is None else bias[others] - mixing @ of_pivots
        _fill(self.reduce, low.expand[pivots] @ low.reduce, of_pivots)
        _fill(self.expand, mixing, of_others)
        self.order.copy_(torch.cat([pivots, others]).argsort())

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) -> (..., O); of a convolution, channels first."""
        features = 1 if isinstance(self.reduce, nn.Conv2d) else -1
        pivots = self.reduce(inputs)
        return torch.cat([pivots, self.expand(pivots)], dim=features).index_select(features, self.order)


CLASSES: dict[Form, type[FactorisedLinear | PivotedLinear]] = {"plain": FactorisedLinear, "pivoted": PivotedLinear}


def _checked_outputs(layer: MatrixLayer, rank: int) -> int:
    out_features, in_features = weight_matrix(layer).shape
    if not 1 <= rank <= min(in_features, out_features):
        raise LpvitError(
            f"rank: found {rank}, expected 1 to {min(in_features, out_features)} for a layer of "
            f"{out_features}x{in_features}"
        )
    return out_features


def _reduction(layer: MatrixLayer, rank: int, bias: bool) -> MatrixLayer:
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias, **_tensor_options(layer))
    geometry: dict[str, Any] = {
        name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    return nn.Conv2d(layer.in_channels, rank, bias=bias, **geometry, **_tensor_options(layer))


def _expansion(layer: MatrixLayer, rank: int, outputs: int) -> MatrixLayer:
    bias, options = layer.bias is not None, _tensor_options(layer)
    if isinstance(layer, nn.Linear):
        return nn.Linear(rank, outputs, bias, **options)
    return nn.Conv2d(rank, outputs, 1, bias=bias, **options)


def _tensor_options(layer: MatrixLayer) -> dict[str, Any]:
    return {"device": layer.weight.device, "dtype": layer.weight.dtype}


def _fill(layer: MatrixLayer, matrix: Tensor, bias: Tensor | None) -> None:
    layer.weight.copy_(matrix.reshape(layer.weight.shape))
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)


def _pivots(low: LowRank) -> tuple[Tensor, Tensor]:
    """Outputs with well-conditioned rows of B A, (r,), and the others, (O - r,), both sorted.

    They are chosen among the rows of B times a root of A A^T, whose lengths and angles are those of the rows of B A.
    """
    gram = low.reduce @ low.reduce.T
    energy, vectors = torch.linalg.eigh(gram)
    rows = low.expand @ (vectors * energy.clamp_min(0).sqrt())
    _, _, by_importance = qr(rows.T.cpu().numpy(), mode="economic", pivoting=True)
    chosen = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    chosen[torch.from_numpy(by_importance[: low.rank].copy()).to(rows.device).long()] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()
