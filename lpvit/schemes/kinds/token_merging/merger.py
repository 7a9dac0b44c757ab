"""Token merging between transformer blocks; see `lpvit.schemes.kinds.token_merging`.

N = images; H = heads; T = tokens; C = features; d = features of a head; M = tokens that merge.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lpvit.schemes.scheme import keep_rows


class TokenMerger(nn.Module):
    """State of a pass: the number of patches that every token represents, and its keys in the last transformer block.

    Args:
        prefix: Tokens before the patches, which never merge.
        merged_tokens: M.
    """

    def __init__(self, prefix: int, merged_tokens: int) -> None:
        super().__init__()
        self.prefix, self.merged_tokens = prefix, merged_tokens
        self._sizes: Tensor | None = None  # (N, T); None while every token is one patch
        self._keys: Tensor | None = None  # (N, T, d)

    def __getstate__(self) -> dict[str, Any]:
        """Excludes the state of a pass from copies."""
        return {**self.__dict__, "_sizes": None, "_keys": None}

    def begin(self, *_: Any) -> None:
        """Hook before the first transformer block."""
        self._sizes = self._keys = None

    def attention(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attention in which a token has the weight of the patches that it represents."""
        self._keys = keys.mean(dim=1)
        if self._sizes is not None:
            counts = self._sizes.log()[:, None, None, :]
            bias = counts if bias is None else bias + counts
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)

    def merge_tokens(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook before a transformer block: (N, T, C) -> (N, T - M, C)."""
        tokens, *others = arguments
        if self._keys is None or self._keys.shape[1] != tokens.shape[1]:
            self._sizes = None  # a single block or a resumed pass, which gives other results; the analysis detects this
            return arguments
        sizes = torch.ones_like(tokens[..., 0]) if self._sizes is None else self._sizes
        count = min(self.merged_tokens, (tokens.shape[1] - self.prefix) // 2)
        source, target, stays = _pairs(self._keys.detach()[:, self.prefix :], count)
        source, target, stays = (rows + self.prefix for rows in (source, target, stays))
        prefix = torch.arange(self.prefix, device=tokens.device).expand(tokens.shape[0], -1)
        weighted = tokens * sizes[..., None]
        weighted = _added(weighted, source, target)
        sizes = _added(sizes[..., None], source, target)
        rows = torch.cat([prefix, stays], dim=1)
        merged, sizes = keep_rows(weighted, rows), keep_rows(sizes, rows)
        self._sizes = sizes[..., 0]
        return (merged / sizes, *others)


def _pairs(keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite soft matching.

    Args:
        keys: Of the patches, (N, P, d).
        count: M, pairs to merge.

    Returns:
        Merged patches (N, M), the patch that each is merged into (N, M), and the remaining patches (N, P - M), in
        order.
    """
    keys = functional.normalize(keys, dim=-1)
    first, second = keys[:, ::2], keys[:, 1::2]
    similarity, nearest = (first @ second.transpose(1, 2)).max(dim=2)
    order = similarity.topk(similarity.shape[1], dim=1).indices  # a sort that ONNX supports
    going, staying = order[:, :count], order[:, count:]
    seconds = torch.arange(1, keys.shape[1], 2, device=keys.device).expand(keys.shape[0], -1)
    stays = torch.cat([2 * staying, seconds], dim=1).sort(dim=1).values
    return 2 * going, 2 * nearest.gather(1, going) + 1, stays


def _added(tokens: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The tokens, with each of ``source`` added to its ``target``: (N, T, C) and (N, M) twice -> (N, T, C)."""
    return tokens.scatter_add(1, target[..., None].expand(-1, -1, tokens.shape[-1]), keep_rows(tokens, source))
