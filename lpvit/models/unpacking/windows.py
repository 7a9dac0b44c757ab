"""Attention in windows, of torchvision's Swin, that calls its layers.

N = images; h, w = rows and columns of tokens; W = windows of an image; M = tokens of a window; H = heads; E = features.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class CalledWindowAttention(nn.Module):
    """torchvision's ``ShiftedWindowAttention`` (Swin) or ``ShiftedWindowAttentionV2``, with ``qkv`` and ``proj`` called.

    torchvision passes their weights to a function, which in Swin V2 takes no bias for the keys: here that bias is zero.
    """

    def __init__(self, original: nn.Module) -> None:
        """Takes over modules, parameters and buffers.

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
        if any(shift):
            padded = padded.roll([-by for by in shift], (1, 2))
        windows = padded.unflatten(2, (across, columns)).unflatten(1, (down, rows)).transpose(2, 3)
        attended = self._attention(windows.flatten(3, 4).flatten(0, 2), self._mask(padded, shift))
        windows = attended.unflatten(1, (rows, columns)).unflatten(0, (-1, down, across)).transpose(2, 3)
        padded = windows.flatten(3, 4).flatten(1, 2)
        if any(shift):
            padded = padded.roll(shift, (1, 2))
        return padded[:, :height, :width].contiguous()

    def _attention(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens of windows, (N * W, M, E), to the same."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.cosine:
            scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
            scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT * scale
        else:
            scores = q * q.shape[-1] ** -0.5 @ k.mT
        scores = scores + self._position_bias()
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
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
            places.append(
                (place >= size - window).int() + (place >= size - by).int() if by else torch.zeros_like(place)
            )
        (rows, columns), numbers = self.window_size, 3 * places[0][:, None] + places[1]
        of_window = (
            numbers.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2).flatten(2).flatten(0, 1)
        )
        apart = of_window[:, None] != of_window[:, :, None]
        return padded.new_zeros(()).expand(apart.shape).masked_fill(apart, -100.0)


def _copied(layer: nn.Linear) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    for name, parameter in layer.named_parameters():
        copy.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    return copy
