"""What nobody reads: the last transformer block gives only the tokens that the head looks at.

With class-token pooling the last block computes queries, output layer and MLP for all tokens, of which the head reads
one (two of a distilled DeiT). Keys and values are needed of all. Of a model of twelve blocks that is some 7 % of the
multiply-adds, in every engine, and exact.

N = images; T = tokens; P = tokens that are read, the first; D = width; H = heads; d = features of a head.
"""

from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional


class FewQueries(nn.Module):
    """Attention of all tokens' keys and values for the queries of the first tokens."""

    def __init__(self, attention: Attention, tokens: int) -> None:
        super().__init__()
        qkv, width = attention.qkv, attention.attn_dim
        self.tokens, self.num_heads, self.head_dim = tokens, attention.num_heads, attention.head_dim
        self.q = _rows(qkv, slice(0, width))
        self.kv = _rows(qkv, slice(width, 3 * width))
        self.q_norm, self.k_norm, self.attn_drop = attention.q_norm, attention.k_norm, attention.attn_drop
        self.norm, self.proj, self.proj_drop = attention.norm, attention.proj, attention.proj_drop

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, D) -> (N, P, D)."""
        queries = self.q(tokens[:, : self.tokens]).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        keys, values = (
            self.kv(tokens).unflatten(-1, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            self.q_norm(queries), self.k_norm(keys), values, dropout_p=dropout
        )
        outputs: Tensor = self.proj_drop(self.proj(self.norm(mixed.transpose(1, 2).flatten(2))))
        return outputs


class LastBlock(Block):  # type: ignore[misc]  # timm says no types
    """timm's `Block` that gives its first tokens; made of one by `lpvit.bases.last_block.edit`."""

    attn: FewQueries

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(N, T, D) -> (N, P, D)."""
        assert attn_mask is None, "a mask of all tokens does not fit the few that are read"
        assert not is_causal, "the tokens that are read are the first"
        read: Tensor = x[:, : self.attn.tokens] + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return read + self.drop_path2(self.ls2(self.mlp(self.norm2(read))))  # type: ignore[no-any-return]


def _rows(layer: nn.Linear, rows: slice) -> nn.Linear:
    """Some outputs of a layer as a layer."""
    weight = layer.weight.detach()[rows].clone()
    part = nn.Linear(layer.in_features, len(weight), bias=layer.bias is not None, device="meta")
    part.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        part.bias = nn.Parameter(layer.bias.detach()[rows].clone(), requires_grad=layer.bias.requires_grad)
    return part


def obstacle(block: nn.Module) -> str:
    """Why a block cannot give fewer tokens; empty where it can."""
    if type(block) is not Block or type(block.attn) is not Attention:
        return f"it is a {type(block).__name__}, and only a plain Block of timm is known"
    return "its attention has a gate" if getattr(block.attn, "gate", None) is not None else ""
