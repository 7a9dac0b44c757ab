"""Linear layers that multiply in int8, emulated with torch's operators to measure the accuracy of int8.

T = tokens; I, O = input and output features of a layer.
"""

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from lpvit.models.additions import replace_module
from lpvit.quantisation.rounding import LARGEST, round_weight

LEVELS = 255  # of an input
SMALLEST_RANGE = 1e-30  # of a token's inputs; smaller ones count as zeros
_EXACT_SUMS = 2**24 // (LARGEST * LEVELS)  # products that float32 adds up without rounding


class QuantisedLinear(nn.Linear):
    """``y = s_t s_o ((q_t - z_t) . v_o) + b_o`` for token t and output o, with int8 weights v and sums in int32.

    Tokens are quantised at run time, each by its own scale and zero point (`quantise_tokens`), as the kernels of
    `lpvit.sparse` do; weights once, by one scale per row. Outputs are in the dtype of the inputs.

    Attributes:
        weight: Shape (O, I), int8, without a gradient.
        scales: Of the rows, shape (O,), float32 whatever the model is cast to.
        bias: Shape (O,), or None.
    """

    scales: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None) -> None:
        """Weights of 0, to be set by `store` or a state dict."""
        super().__init__(in_features, out_features, bias, device)
        values = torch.zeros(out_features, in_features, dtype=torch.int8, device=self.weight.device)
        self.weight = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scales", torch.ones(out_features, device=self.weight.device))

    @classmethod
    def like(cls, linear: nn.Linear) -> Self:
        """Of the same shape, bias, dtype and device, with weights of 0."""
        quantised = cls(linear.in_features, linear.out_features, linear.bias is not None, linear.weight.device)
        if linear.bias is not None:
            quantised.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
        return quantised.train(linear.training)

    @torch.no_grad()
    def store(self, values: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """Stores int8 values (O, I), scales (O,), and a bias (O,) where the layer has one."""
        self.weight.copy_(values)
        self.scales.copy_(scales)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def multiplied_inputs(self, inputs: Tensor) -> Tensor:
        """Quantised inputs (..., I), dequantised to their own dtype."""
        return rounded_tokens(inputs)

    def store_rounded(self, weight: Tensor, gram: Tensor, keep: Tensor, feedback: bool = True) -> None:
        """Stores a weight (O, J) rounded by `lpvit.quantisation.rounding.round_weight`."""
        rounded = round_weight(weight, gram, keep, feedback)
        self.store(rounded.values, rounded.scales, rounded.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        values, token_scales, zero_points = quantise_tokens(inputs)
        sums = integer_product((values - zero_points).reshape(-1, self.in_features), self.weight)
        outputs = sums.float() * token_scales.reshape(-1, 1) * self.scales
        if self.bias is not None:
            outputs = outputs + self.bias.float()
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)

    def dense(self) -> nn.Linear:
        """A plain layer with the dequantised weights, in the dtype of the bias or float32."""
        dtype = torch.float32 if self.bias is None else self.bias.dtype
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, self.weight.device, dtype)
        with torch.no_grad():
            linear.weight.copy_(self.weight * self.scales[:, None])
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype != scales.dtype:  # after a cast of the model: rounded scales would change the weights
            self.scales = scales.to(self.scales.device)
        return self


def quantise_tokens(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantises to eight bits with one scale and zero point per token; 0, minimum and maximum are represented.

    Args:
        inputs: Shape (..., I).

    Returns:
        q (..., I), integers from 0 to 255, scale s (..., 1) and zero point z (..., 1), all float32: an input is
        about s (q - z). Halves are rounded to even. s is NaN for a token with an input that is not finite.
    """
    inputs = inputs.float()
    low, high = inputs.amin(-1, keepdim=True).clamp(max=0), inputs.amax(-1, keepdim=True).clamp(min=0)
    extent = high - low
    levels = extent.new_full((), LEVELS)  # a Python number divided by a tensor would be rounded twice
    reciprocal = torch.where(extent > SMALLEST_RANGE, levels / extent, 0.0)
    zero_point = (-low * reciprocal).round()
    scale = extent / levels + (0 * inputs).sum(-1, keepdim=True)
    return ((inputs * reciprocal).round() + zero_point).clamp(max=LEVELS), scale, zero_point


def rounded_tokens(inputs: Tensor) -> Tensor:
    """Inputs quantised by `quantise_tokens`, dequantised to their own dtype."""
    values, scales, zero_points = quantise_tokens(inputs)
    return ((values - zero_points) * scales).to(inputs.dtype)


def integer_product(tokens: Tensor, weight: Tensor) -> Tensor:
    """Product of integers (T, I) up to 255 in float32 and int8 (O, I) -> (T, O), int32, exact on every device.

    Computed in float32, in parts so short that no sum is rounded, because torch's int8 products saturate on some CPUs.
    """
    sums = tokens.new_zeros(len(tokens), len(weight), dtype=torch.int32)
    for start in range(0, tokens.shape[1], _EXACT_SUMS):
        part = slice(start, start + _EXACT_SUMS)
        sums += (tokens[:, part] @ weight[:, part].float().T).int()
    return sums


def make_int8(model: nn.Module, layers: Iterable[str]) -> nn.Module:
    """Replaces linear layers by layers with int8 weights of 0.

    Args:
        model: Changed in place, and returned.
        layers: Names of linear layers; those already in int8 are kept.
    """
    for name in layers:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            raise TypeError(f"'{name}' is a {type(module).__name__}; only linear layers multiply in int8")
        if not isinstance(module, QuantisedLinear):
            replace_module(model, name, QuantisedLinear.like(module))
    return model


def int8_layers(model: nn.Module) -> list[str]:
    """Names of the layers that multiply in int8."""
    return [name for name, module in model.named_modules() if isinstance(module, QuantisedLinear)]
