"""Attention that computes only a fixed pattern; see `lpvit.schemes.kinds.sparse_attention`.

The patches form a grid of rows, so the patches of a row or column are a view and their scores one batched product. The
softmax runs over all tokens that a patch attends to.

N = images or windows; H = heads; T = tokens; d = features of a head; R, S = rows and columns of the grid, of which the
last row may be ragged; M = tokens that a patch attends to: its row, then its column or the summaries, then the prefix.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

FLEX_FEATURES = 16  # minimum per head for FlexAttention

Pattern = Literal["strided", "fixed", "block"]


class PatternAttention(nn.Module):
    """Torch's attention product for a pattern of tokens.

    On a GPU, `FlexAttention` skips the tiles outside the pattern, if there is no bias and heads are not tiny; else, and
    on the CPU, the parts of the pattern are multiplied one by one.

    Args:
        pattern: What a patch attends to besides its row.
        stride: Patches of a row, S.
        prefix: Tokens before the patches, which attend to all and are attended by all.
    """

    def __init__(self, pattern: Pattern, stride: int, prefix: int) -> None:
        super().__init__()
        self.pattern, self.stride, self.prefix = pattern, stride, prefix
        self._tokens: int | None = None  # of this pass before any is dropped; None where none can be

    def begin(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Hook before the first transformer block, on all tokens (N, T, C)."""
        self._tokens = arguments[0].shape[1]

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries, keys and values (N, H, T, d), and the bias of the scores, (N or 1, H or 1, T, T).

        Where tokens were dropped, the rows are incomplete, and all attend to all.
        """
        if self._tokens not in (None, keys.shape[2]):
            return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        if queries.is_cuda and bias is None and queries.shape[-1] >= FLEX_FEATURES:
            return _flex_attention(queries, keys, values, self.pattern, self.stride, self.prefix)
        patches = self._patches(queries, keys, values, bias)
        if self.prefix == 0:
            return patches
        first = None if bias is None else bias[:, :, : self.prefix]
        prefix = functional.scaled_dot_product_attention(queries[:, :, : self.prefix], keys, values, attn_mask=first)
        return torch.cat([prefix, patches], dim=2)

    def _patches(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        prefix, tokens = self.prefix, keys.shape[2]
        scores = self._scores(self._grid(queries * queries.shape[-1] ** -0.5), self._grid(keys), keys[:, :, :prefix])
        scores += self._added(tokens, bias, scores)
        mixed = self._mixed(scores.softmax(dim=-1), self._grid(values), values[:, :, :prefix])
        return mixed.flatten(2, 3)[:, :, : tokens - prefix]

    def _grid(self, tokens: Tensor) -> Tensor:
        """The patches among (N, H, T, d) as (N, H, R, S, d)."""
        patches = tokens[:, :, self.prefix :]
        missing = -patches.shape[2] % self.stride
        if missing:
            patches = functional.pad(patches, (0, 0, 0, missing))
        return patches.reshape(*patches.shape[:2], -1, self.stride, patches.shape[-1])

    def _scores(self, asking: Tensor, keys: Tensor, prefix: Tensor) -> Tensor:
        """Scores with the tokens that each patch attends to, (N, H, R, S, M)."""
        scores = [_product(asking, keys.mT)]
        if self.pattern == "strided":
            scores.append(_product(asking.transpose(2, 3), keys.transpose(2, 3).mT).transpose(2, 3))
        if self.pattern == "fixed":
            scores.append(_product(asking.flatten(2, 3), keys[:, :, :, -1].mT).view(*asking.shape[:4], -1))
        if self.prefix:
            scores.append(_product(asking.flatten(2, 3), prefix.mT).view(*asking.shape[:4], -1))
        return torch.cat(scores, dim=-1)

    def _mixed(self, shares: Tensor, values: Tensor, prefix: Tensor) -> Tensor:
        """Weighted sum of the values that each patch attends to, (N, H, R, S, d)."""
        others = shares.shape[-1] - self.stride - self.prefix
        of_row, of_others, of_prefix = shares.split_with_sizes([self.stride, others, self.prefix], dim=-1)
        mixed = _product(of_row, values)
        if self.pattern == "strided":
            mixed += _product(of_others.transpose(2, 3), values.transpose(2, 3)).transpose(2, 3)
        if self.pattern == "fixed":
            mixed += _product(of_others.flatten(2, 3), values[:, :, :, -1]).view_as(mixed)
        if self.prefix:
            mixed += _product(of_prefix.flatten(2, 3), prefix).view_as(mixed)
        return mixed

    def _added(self, tokens: int, bias: Tensor | None, like: Tensor) -> Tensor:
        """The bias of the scores: minus infinity outside the pattern, plus the bias of the model."""
        seen, opened = (torch.from_numpy(table) for table in pattern_tables(*self._shape(), tokens))
        closed = _as_bias(opened.to(like.device), like.dtype).view(like.shape[2:])
        if bias is None:
            return closed
        rows = torch.arange(len(seen)).clamp(max=tokens - self.prefix - 1)[:, None] + self.prefix
        found = bias[:, :, rows.to(like.device), seen.to(like.device)]
        found = found.view(*bias.shape[:2], *like.shape[2:])
        return closed + (_as_bias(found, like.dtype) if found.dtype == torch.bool else found)

    def _shape(self) -> tuple[Pattern, int, int]:
        return self.pattern, self.stride, self.prefix


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A batched product; torch multiplies strided matrices of this size one by one, five times slower."""
    return left.contiguous() @ right.contiguous()


def _as_bias(may_look: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(may_look, dtype=dtype).masked_fill(~may_look, -torch.inf)


@lru_cache(maxsize=64)  # in NumPy, because a tensor created while torch traces the model belongs to the trace
def pattern_tables(
    pattern: Pattern, stride: int, prefix: int, tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens that every grid position attends to, (R S, M), and a mask without duplicates between the parts."""
    patches = tokens - prefix
    rows = -(-patches // stride)
    place = np.arange(rows * stride)[:, None]
    row, column = place // stride, place % stride
    everyone = np.arange(rows)[None]
    seen = [row * stride + np.arange(stride)]
    opened = [seen[0] < patches]
    if pattern != "block":
        seen.append(everyone * stride + (column if pattern == "strided" else np.full_like(column, stride - 1)))
        opened.append((seen[1] < patches) & (everyone != row))
    seen = [np.minimum(part, patches - 1) + prefix for part in seen] + [np.arange(prefix)[None].repeat(len(place), 0)]
    opened.append(np.ones((len(place), prefix), dtype=bool))
    missing = place >= patches  # positions after the end of the last row are ignored
    return np.concatenate(seen, axis=1), np.concatenate(opened, axis=1) | missing


def pattern_mask(pattern: Pattern, stride: int, prefix: int, tokens: int) -> Tensor:
    """Whether a token attends to another, (T, T): the pattern as a table."""
    seen, opened = (table[: tokens - prefix] for table in pattern_tables(pattern, stride, prefix, tokens))
    mask = np.zeros((tokens, tokens), dtype=bool)
    mask[:prefix] = True
    asking = np.broadcast_to(np.arange(prefix, tokens)[:, None], seen.shape)
    mask[asking[opened], seen[opened]] = True
    return torch.from_numpy(mask)


@lru_cache(maxsize=8)
def _block_mask(pattern: Pattern, stride: int, prefix: int, tokens: int, device: torch.device) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    mask = pattern_mask(pattern, stride, prefix, tokens).to(device)
    return create_block_mask(lambda _, __, query, key: mask[query, key], None, None, tokens, tokens, device=device)


def _flex_attention(
    queries: Tensor, keys: Tensor, values: Tensor, pattern: Pattern, stride: int, prefix: int
) -> Tensor:
    mask = _block_mask(pattern, stride, prefix, keys.shape[2], keys.device)
    return _compiled_flex_attention()(queries, keys, values, block_mask=mask)


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
