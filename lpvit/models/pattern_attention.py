"""Attention that computes a fixed pattern and no more; see `lpvit.models.schemes.sparse_attention`.

A pattern is a few parts. Each deals the queries out into groups that look at the same keys, so that its scores are one
batched product; the softmax goes over the parts together.

N = images or windows; H = heads; T = tokens; d = features of a head; G = groups of a part; L = queries of a group;
M = keys of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Pattern = Literal["strided", "fixed", "block"]


class PatternAttention(nn.Module):
    """Torch's attention product for a pattern of tokens.

    On a GPU, `FlexAttention` skips the tiles that the pattern leaves out, where there is no bias to add; else, and on
    the CPU, the parts of the pattern are multiplied one by one.

    Args:
        pattern: What a patch looks at beside its row.
        stride: Patches of a row.
        prefix: Tokens before the patches, which look at all and are looked at by all.
    """

    def __init__(self, pattern: Pattern, stride: int, prefix: int) -> None:
        super().__init__()
        self.pattern, self.stride, self.prefix = pattern, stride, prefix

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries, keys and values (N, H, T, d), and what is added to the scores, (N or 1, H or 1, T, T)."""
        if queries.is_cuda and bias is None:
            return _flex_attention(queries, keys, values, self.pattern, self.stride, self.prefix)
        patches = self._patches(queries[:, :, self.prefix :], keys, values, bias)
        if self.prefix == 0:
            return patches
        first = None if bias is None else bias[:, :, : self.prefix]
        prefix = functional.scaled_dot_product_attention(queries[:, :, : self.prefix], keys, values, attn_mask=first)
        return torch.cat([prefix, patches], dim=2)

    def _patches(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        tables = pattern_tables(self.pattern, self.stride, self.prefix, keys.shape[2])
        parts = [Part(*(torch.from_numpy(table).to(keys.device) for table in part)) for part in tables]
        queries = queries * queries.shape[-1] ** -0.5
        scores = [part.scores(queries, keys) for part in parts]
        added = [part.added(queries, bias, self.prefix) for part in parts]
        shares = torch.cat([score + add for score, add in zip(scores, added, strict=True)], dim=-1).softmax(dim=-1)
        of_parts = torch.split_with_sizes(shares, [score.shape[-1] for score in scores], dim=-1)
        outputs = [part.values(share, values) for part, share in zip(parts, of_parts, strict=True)]
        return torch.stack(outputs).sum(dim=0)


@dataclass(frozen=True)
class Part:
    """Groups of patches that look at the same tokens.

    Attributes:
        queries: Patches of every group, (G, L), counted from the first patch; ragged groups repeat their last one.
        keys: Tokens of every group, (G, M), likewise.
        place: Where each patch stands in ``queries`` flattened, (P,).
        open: Whether a patch looks at each key of its group: not at a repetition, nor at what another part has, (P, M).
    """

    queries: Tensor
    keys: Tensor
    place: Tensor
    open: Tensor

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(N, H, P, d) and (N, H, T, d) -> (N, H, P, M)."""
        grouped = queries[:, :, self.queries] @ keys[:, :, self.keys].transpose(-1, -2)
        return grouped.flatten(2, 3)[:, :, self.place]

    def values(self, shares: Tensor, values: Tensor) -> Tensor:
        """Attention (N, H, P, M) and values (N, H, T, d) -> (N, H, P, d)."""
        grouped = shares[:, :, self.queries] @ values[:, :, self.keys]
        return grouped.flatten(2, 3)[:, :, self.place]

    def added(self, like: Tensor, bias: Tensor | None, prefix: int) -> Tensor:
        """What is added to the scores: minus infinity where a key is closed, and the bias of the model."""
        closed = _as_bias(self.open, like.dtype)
        if bias is None:
            return closed
        rows = torch.arange(len(self.place), device=like.device)[:, None] + prefix
        found = bias[:, :, rows, self.keys[self.place // self.queries.shape[1]]]
        return closed + (_as_bias(found, like.dtype) if found.dtype == torch.bool else found)


def _as_bias(may_look: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(may_look, dtype=dtype).masked_fill(~may_look, -torch.inf)


Tables = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]  # of a `Part`


@lru_cache(maxsize=64)  # of NumPy: a tensor that is made while torch traces the model belongs to the trace
def pattern_tables(pattern: Pattern, stride: int, prefix: int, tokens: int) -> tuple[Tables, ...]:
    """The parts of a pattern, for a number of tokens."""
    patches = np.arange(tokens - prefix)
    row = patches // stride
    looks = [_part(row, row, prefix)]
    if pattern == "strided":
        looks.append(_part(patches % stride, patches % stride, prefix, has=row[:, None] == row))
    if pattern == "fixed":
        summaries = np.where(patches % stride == stride - 1, 0, 1)
        looks.append(_part(np.zeros_like(patches), summaries, prefix, has=row[:, None] == row))
    if prefix:
        opened = np.ones((len(patches), prefix), dtype=bool)
        looks.append((patches[None], np.arange(prefix)[None], patches, opened))
    return tuple(looks)


def _part(
    query_group: NDArray[np.int64], key_group: NDArray[np.int64], prefix: int, has: NDArray[np.bool_] | None = None
) -> Tables:
    """Every patch looks at the patches of its group, but for those that another part has.

    Args:
        query_group: Group of every patch as a query, (P,).
        key_group: Group of every patch as a key, (P,).
        prefix: Tokens before the patches.
        has: Pairs of patches that another part has, (P, P).
    """
    groups = np.unique(query_group)
    queries = [np.flatnonzero(query_group == group) for group in groups]
    keys = [np.flatnonzero(key_group == group) for group in groups]
    padded_queries, padded_keys = _padded(queries), _padded(keys)
    place = np.empty(len(query_group), dtype=np.int64)
    opened = np.zeros((len(query_group), padded_keys.shape[1]), dtype=bool)
    for number, (asking, asked) in enumerate(zip(queries, keys, strict=True)):
        place[asking] = number * padded_queries.shape[1] + np.arange(len(asking))
        opened[asking, : len(asked)] = True if has is None else ~has[asking][:, asked]
    return padded_queries, padded_keys + prefix, place, opened


def _padded(groups: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    longest = max(map(len, groups))
    return np.stack([np.pad(group, (0, longest - len(group)), mode="edge") for group in groups])


def pattern_mask(pattern: Pattern, stride: int, prefix: int, tokens: int) -> Tensor:
    """Whether a token looks at another, (T, T): the pattern as a table."""
    mask = np.zeros((tokens, tokens), dtype=bool)
    mask[:prefix] = True
    for queries, keys, place, opened in pattern_tables(pattern, stride, prefix, tokens):
        of_query = keys[place // queries.shape[1]]
        rows = np.broadcast_to(np.arange(len(of_query))[:, None] + prefix, of_query.shape)
        mask[rows[opened], of_query[opened]] = True
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
