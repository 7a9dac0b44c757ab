"""Attention in windows, of torchvision's Swin, that calls its layers.

N = images; h, w = rows and columns of tokens; W = windows of an image; M = tokens of a window; H = heads; E = features.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class CalledWindowAttention(nn.Module):
    """torchvision's ``ShiftedWindowAttention`` or ``ShiftedWindowAttentionV2``, with ``qkv`` and ``proj`` called.

    torchvision passes their weights to a function, which in Swin V2 takes no bias for the keys: here that bias is zero.
    """

    qkv: nn.Linear
    proj: nn.Linear
    cpb_mlp: nn.Module
    logit_scale: Tensor
    relative_position_bias_table: Tensor
    relative_position_index: Tensor
    relative_coords_table: Tensor

    def __init__(self, original: Any) -> None:
        """Has the modules, parameters and buffers of another module.

        Args:
            original: One of torchvision; stays as it is.
        """
        super().__init__()
        self.qkv, self.proj = _copied(original.qkv), original.proj
        self.window_size, self.shift_size = list(original.window_size), list(original.shift_size)
        self.num_heads, self.dropout = original.num_heads, original.dropout
        self.attention_dropout = original.attention_dropout
        self.register_buffer("relative_position_index", original.relative_position_index)
        self.cosine = hasattr(original, "logit_scale")
        if self.cosine:
            self.logit_scale, self.cpb_mlp = original.logit_scale, original.cpb_mlp
            self.register_buffer("relative_coords_table", original.relative_coords_table)
            if self.qkv.bias is not None:
                with torch.no_grad():
                    self.qkv.bias.chunk(3)[1].zero_()
        else:
            self.relative_position_bias_table = original.relative_position_bias_table

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, h, w, E) to the same."""
        (rows, columns), (height, width) = self.window_size, tokens.shape[1:3]
        padded = functional.pad(tokens, (0, 0, 0, -width % columns, 0, -height % rows))
        down, across = padded.shape[1] // rows, padded.shape[2] // columns
        shift = [0 if one else by for one, by in zip((down == 1, across == 1), self.shift_size, strict=True)]
        shifted = padded.roll([-by for by in shift], (1, 2)) if any(shift) else padded
        attended = self._attention(self._windows(shifted), self._mask(shifted, shift))
        joined = (
            attended.reshape(-1, down, across, rows, columns, padded.shape[3]).transpose(2, 3).reshape(padded.shape)
        )
        if any(shift):
            joined = joined.roll(shift, (1, 2))
        return joined[:, :height, :width].contiguous()

    def _windows(self, tokens: Tensor) -> Tensor:
        """(N, h, w, E) to (N * W, M, E)."""
        (rows, columns), (_, height, width, features) = self.window_size, tokens.shape
        parts = tokens.reshape(-1, height // rows, rows, width // columns, columns, features)
        return parts.transpose(2, 3).reshape(-1, rows * columns, features)

    def _attention(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens of windows, (N * W, M, E), to the same."""
        qkv: Tensor = self.qkv(tokens)
        q, k, v = qkv.reshape(*tokens.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.cosine:
            scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
            scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT * scale
        else:
            scores = q * q.shape[-1] ** -0.5 @ k.mT
        scores = scores + self._position_bias()
        if mask is not None:
            scores = (scores.reshape(-1, len(mask), *scores.shape[1:]) + mask[:, None]).reshape(scores.shape)
        weights = functional.dropout(functional.softmax(scores, dim=-1), self.attention_dropout, self.training)
        return functional.dropout(self.proj((weights @ v).transpose(1, 2).flatten(2)), self.dropout, self.training)

    def _position_bias(self) -> Tensor:
        """(1, H, M, M)."""
        if self.cosine:
            table = 16 * torch.sigmoid(self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads))
        else:
            table = self.relative_position_bias_table
        size = math.prod(self.window_size)
        return table[self.relative_position_index].view(size, size, -1).permute(2, 0, 1)[None]

    def _mask(self, padded: Tensor, shift: list[int]) -> Tensor | None:
        """Keeps tokens apart that only the shift has brought into one window, (W, M, M); None without a shift."""
        if not any(shift):
            return None
        places = []
        for size, window, by in zip(padded.shape[1:3], self.window_size, shift, strict=True):
            place = torch.arange(size, device=padded.device)
            in_last, crossed = (place >= size - window).int(), (place >= size - by).int()
            places.append(in_last + crossed if by else torch.zeros_like(place))
        numbers = self._windows((3 * places[0][:, None] + places[1])[None, ..., None])
        apart = numbers != numbers.mT
        return padded.new_zeros(()).expand(apart.shape).masked_fill(apart, -100.0)


def _copied(layer: nn.Linear) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    for name, parameter in layer.named_parameters():
        copy.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    return copy
