"""The learned scorer of token selection; see `lpvit.schemes.kinds.token_selection`.

N = images; T = tokens; P = patch tokens; K = those kept; C = features.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lpvit.schemes.scheme import keep_rows


class TokenScorer(nn.Module):
    """Rates patch tokens by a linear function of their normalised features.

    Args:
        features: C.
        prefix: Tokens before the patches, which are always kept.
        keep_tokens: Share of the patch tokens kept, rounded up.
        temperatures: Of the relaxed choice, at the start and the end of a training.
    """

    def __init__(self, features: int, prefix: int, keep_tokens: float, temperatures: tuple[float, float]) -> None:
        super().__init__()
        self.prefix, self.keep_tokens, self.temperatures = prefix, keep_tokens, temperatures
        self.norm = nn.LayerNorm(features)
        self.score = nn.Linear(features, 1)
        self.temperature = temperatures[0]

    def anneal(self, progress: float) -> None:
        """Lowers the temperature geometrically, t0 (t1 / t0)^progress."""
        first, last = self.temperatures
        self.temperature = first * math.pow(last / first, progress)

    def drop_tokens(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook before a transformer block: (N, T, C) -> (N, prefix + K, C)."""
        tokens, *others = arguments
        return (self(tokens), *others)

    def forward(self, tokens: Tensor) -> Tensor:
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        scores = self.score(self.norm(patches)).squeeze(-1)
        count = math.ceil(self.keep_tokens * patches.shape[1])
        if self.training:
            scores = scores - torch.empty_like(scores).exponential_().log()  # Gumbel noise
        best = scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values
        kept = keep_rows(patches, best)
        if self.training:
            share = count * (scores / self.temperature).softmax(dim=1).gather(1, best)
            kept = kept * (1 + share - share.detach()).unsqueeze(-1)
        return torch.cat([prefix, kept], dim=1)
