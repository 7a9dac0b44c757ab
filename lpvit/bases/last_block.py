"""What nobody reads: the last transformer block gives only the tokens that the head looks at.

With class-token pooling the last block computes queries, output layer and MLP for all tokens, of which the head reads
one (two of a distilled DeiT). Keys and values are needed of all. Of a model of twelve blocks that is some 7 % of the
multiply-adds, in every engine, and exact.

N = images; T = tokens; P = tokens that are read, the first; D = width; H = heads; d = features of a head.
"""

import logging
from collections.abc import Mapping
from copy import deepcopy

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from lpvit.bases.proof import Proof
from lpvit.models.analysis.layers import transformer_blocks
from lpvit.models.analysis.passes import evaluation_mode
from lpvit.models.analysis.trace import IMAGES, hooks, random_images
from lpvit.models.sources.families import call_modules

_logger = logging.getLogger(__name__)


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
    """timm's `Block` that gives its first tokens; made of one by `give_few_tokens`."""

    attn: FewQueries

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(N, T, D) -> (N, P, D)."""
        assert attn_mask is None, "a mask of all tokens does not fit the few that are read"
        assert not is_causal, "the tokens that are read are the first"
        read: Tensor = x[:, : self.attn.tokens] + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return read + self.drop_path2(self.ls2(self.mlp(self.norm2(read))))  # type: ignore[no-any-return]


def drop_unread_tokens(model: nn.Module) -> tuple[nn.Module, dict[str, int | str]]:
    """Lets the last transformer block of a model compute what its head reads, if that is proved to change nothing.

    Args:
        model: A transformer of timm; left as it is.

    Returns:
        The model, and plain settings for `give_few_tokens` to build one like it; empty where it stays as it is, which
        one line in the log explains.
    """
    block = transformer_blocks(model)[-1]
    narrower = call_modules(deepcopy(model)).eval()
    tokens, of = tokens_read(narrower, block)
    reason = _obstacle(narrower.get_submodule(block), tokens, of)
    if not reason:
        settings: dict[str, int | str] = {"block": block, "tokens": tokens}
        dtype = next(model.parameters()).dtype
        proof = Proof.of(narrower.double(), dtype)
        if proof.error(give_few_tokens(narrower, settings)) <= 1:
            return narrower.to(dtype), settings
        reason = "the model is not the same function afterwards"
    _logger.info("'%s' computes all its tokens: %s", block, reason)
    return call_modules(deepcopy(model)).eval(), {}


def tokens_read(model: nn.Module, block: str) -> tuple[int, int]:
    """How many of a block's tokens, up to the last one that the logits depend on, are read, and how many there are.

    Args:
        model: With logits that are differentiable in the block's output.
        block: Name of a module that gives (N, T, D); of anything else all is read.
    """
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[0]

    with evaluation_mode(model), torch.enable_grad(), hooks([model.get_submodule(block).register_forward_hook(keep)]):
        logits = model(random_images(model, IMAGES))
        (gradient,) = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), outputs[:1])
    if gradient.dim() != 3:
        return 1, 1
    read = gradient.abs().sum(dim=(0, 2)).nonzero()
    return int(read.max()) + 1, gradient.shape[1]


def give_few_tokens(model: nn.Module, settings: Mapping[str, int | str]) -> nn.Module:
    """Lets a block give its first tokens alone, in place; its weights stay.

    Args:
        model: With the block in timm's form.
        settings: ``block``, its name, and ``tokens``, how many.
    """
    block = model.get_submodule(str(settings["block"]))
    block.attn = FewQueries(block.attn, int(settings["tokens"]))
    block.__class__ = LastBlock
    return model


def _obstacle(block: nn.Module, tokens: int, of: int) -> str:
    """Why a block cannot give fewer tokens; empty where it can."""
    if 2 * tokens > of:
        return "the head reads all of them" if tokens == of else f"the head reads {tokens} of {of}"
    if type(block) is not Block or type(block.attn) is not Attention:
        return f"it is a {type(block).__name__}, and only a plain Block of timm is known"
    if getattr(block.attn, "gate", None) is not None:
        return "its attention has a gate"
    return ""


def _rows(layer: nn.Linear, rows: slice) -> nn.Linear:
    """Some outputs of a layer as a layer."""
    weight = layer.weight.detach()[rows].clone()
    part = nn.Linear(layer.in_features, len(weight), bias=layer.bias is not None, device="meta")
    part.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        part.bias = nn.Parameter(layer.bias.detach()[rows].clone(), requires_grad=layer.bias.requires_grad)
    return part
