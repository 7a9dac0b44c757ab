"""Multi-head attention made of linear layers.

N = images; L = queries; S = keys; H = heads; E = features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class UnpackedAttention(nn.Module):
    """`nn.MultiheadAttention` with its packed weights as linear layers, and with its arguments.

    Attributes:
        qkv: Where query, key and value are the same tensor: their layers as one; otherwise there are ``q``, ``k`` and
            ``v``.
        proj: The output projection.
    """

    qkv: nn.Linear
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear

    in_proj_weight = None  # `nn.TransformerEncoderLayer` asks for these before it computes a layer in one function
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, packed: nn.MultiheadAttention, joint: bool) -> None:
        """Has the weights of another module.

        Args:
            packed: Without ``bias_k`` and ``add_zero_attn``; stays as it is.
            joint: Whether query, key and value are the same tensor.
        """
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout = packed.embed_dim, packed.num_heads, packed.dropout
        self.batch_first, self.joint = packed.batch_first, joint
        if packed._qkv_same_embed_dim:
            weights = packed.in_proj_weight.chunk(1 if joint else 3)
        else:
            weights = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        biases = (None,) * 3 if packed.in_proj_bias is None else packed.in_proj_bias.chunk(len(weights))
        for name, weight, bias in zip(("qkv",) if joint else ("q", "k", "v"), weights, biases, strict=False):
            self.add_module(name, _linear(weight, bias))
        self.proj = _linear(packed.out_proj.weight, packed.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **options: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`: query (N, L, E), key and value (N, S, E), or as ``batch_first`` says.

        Of the ``options`` only ``average_attn_weights`` counts: ``is_causal`` repeats what the mask says.
        """
        swapped = not self.batch_first and query.dim() == 3
        if self.joint:
            parts = self.qkv(query.transpose(0, 1) if swapped else query).chunk(3, dim=-1)
        else:
            given = [each.transpose(0, 1) if swapped else each for each in (query, key, value)]
            parts = [layer(each) for layer, each in zip((self.q, self.k, self.v), given, strict=True)]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for part in parts)  # (N, H, L or S, E/H)
        mask = self._mask(q, attn_mask, key_padding_mask)
        weights = None
        if need_weights:
            scores = q @ k.mT / q.shape[-1] ** 0.5
            weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
            attended = functional.dropout(weights, self.dropout, self.training) @ v
        else:
            dropout = self.dropout if self.training else 0.0
            attended = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.proj(attended.transpose(-2, -3).flatten(-2))
        if weights is not None and options.get("average_attn_weights", True):
            weights = weights.mean(dim=-3)
        return output.transpose(0, 1) if swapped else output, weights

    def _mask(self, q: Tensor, attention: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores (N, H, L, S); forbidden are true values, as in `nn.MultiheadAttention`."""
        terms = []
        if attention is not None:
            of_heads = attention.dim() == 3 and q.dim() == 4
            terms.append(attention.view(-1, self.num_heads, *attention.shape[1:]) if of_heads else attention)
        if padding is not None:
            terms.append(padding[..., None, None, :])
        as_numbers = [
            q.new_zeros(()).expand(term.shape).masked_fill(term, -torch.inf) if term.dtype == torch.bool else term
            for term in terms
        ]
        return sum(as_numbers[1:], as_numbers[0]).to(q) if as_numbers else None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
