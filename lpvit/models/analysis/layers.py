"""The layers of a model that multiply tokens by a weight matrix, found by tracing a forward pass.

Roles follow from the trace before names: layers before the first transformer block embed patches, layers after the last
one are the head, and within a transformer block the role depends on the position before or after the attention. O, I =
output and input features of a layer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.trace import Span, Trace, trace

MatrixLayer = nn.Linear | nn.Conv2d

_PARTS = ("reduce", "expand")  # of a layer with low-rank factors
_ROLES_BY_NAME = ("qkv", "proj", "fc1", "fc2")  # timm's names in a transformer block; for others the structure decides


@dataclass(frozen=True)
class LayerSpec:
    """A layer that multiplies every token by a weight matrix.

    Attributes:
        name: Name of the module in the model.
        role: ``qkv``, ``proj``, ``fc1`` or ``fc2`` in a transformer block, ``patch_embed`` before the first, ``head``
            after the last; otherwise the last part of the name.
        out_features: O.
        in_features: I; channels * height * width of the patch for a patch embedding.
        tokens: Vectors that it multiplies per image.
        bias: Whether it adds a bias.
        obstacle: Why its weight cannot be pruned; empty if it can.
    """

    name: str
    role: str
    out_features: int
    in_features: int
    tokens: int
    bias: bool
    obstacle: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.tokens * self.out_features * self.in_features

    @property
    def parameters(self) -> int:
        return self.out_features * (self.in_features + self.bias)


def matrix_layers(model: nn.Module) -> list[LayerSpec]:
    """Every linear layer and convolution that multiplies tokens of images, in order of execution.

    Layers whose work does not depend on the number of images, such as the MLP of a relative position bias, are
    excluded.

    Args:
        model: On any device; on the meta device nothing is computed.
    """
    return traced_layers(model, trace(model))


def traced_layers(model: nn.Module, traced: Trace) -> list[LayerSpec]:
    """The same from an existing trace."""
    modules = {name: module for name, module in model.named_modules() if isinstance(module, MatrixLayer)}
    sharing = _names_by_weight(modules)
    body = Body.of(model, traced)
    layers = []
    for name, span in sorted(traced.spans.items(), key=lambda item: item[1].start):
        module = modules.get(name)
        if module is None or not span.grows:
            continue
        out_features, in_features = weight_matrix(module).shape
        tokens = span.numbers // (out_features * traced.images)
        role = body.role(name, span, module)
        obstacle = _obstacle(module, span, [other for other in sharing[id(module.weight)] if other != name])
        layers.append(LayerSpec(name, role, out_features, in_features, tokens, module.bias is not None, obstacle))
    return layers


def prunable_layers(layers: Iterable[LayerSpec], roles: Iterable[str]) -> list[LayerSpec]:
    """The layers with one of the given roles, in order of execution.

    Raises:
        LpvitError: No layer has one of the roles (those of the model are named), or one of them cannot be pruned.
    """
    layers, roles = list(layers), set(roles)
    known = dict.fromkeys(layer.role for layer in layers)
    if missing := sorted(roles - known.keys()):
        if not known.keys() & {"qkv", "proj"}:
            some = ", ".join(list(known)[:5])
            raise LpvitError(f"model: no repeated module with attention is found, only layers such as {some}")
        raise LpvitError(f"layers: the model has no layer '{missing[0]}'; it has {', '.join(known)}")
    chosen = [layer for layer in layers if layer.role in roles]
    for layer in chosen:
        if layer.obstacle:
            raise LpvitError(f"layers: '{layer.name}' cannot be pruned: {layer.obstacle}")
    return chosen


def weight_matrix(module: nn.Module) -> Tensor:
    """The weight of a linear layer or patch embedding as an (O, I) view."""
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise TypeError(f"{type(module).__name__} has no weight matrix")
    return module.weight.flatten(1)


def transformer_blocks(model: nn.Module) -> list[str]:
    """Names of the transformer blocks in order of execution, see `Body`."""
    traced = trace(model)
    return sorted(Body.of(model, traced).blocks, key=lambda name: traced.spans[name].start)


@dataclass(frozen=True)
class Body:
    """The repeated part of a model: members of module lists that contain attention.

    Attributes:
        spans: Outermost members -> when they ran: the transformer blocks of a ViT, the stages of a Swin.
        blocks: Innermost members -> when they ran: the transformer blocks.
        attention: Times at which a softmax or attention product ran, each with its enclosing module.
        projections: Linear layers that take the output of the attention of their block.
    """

    spans: dict[str, Span]
    blocks: dict[str, Span]
    attention: tuple[tuple[int, str], ...]
    projections: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module, traced: Trace) -> "Body":
        members = _repeated_members(model, {name for _, stack in traced.attention for name in stack})
        outermost = [name for name in members if not any(_is_inside(name, other) for other in members)]
        innermost = [name for name in members if not any(_is_inside(other, name) for other in members)]
        attention = tuple((moment, stack[-1] if stack else "") for moment, stack in traced.attention)
        blocks = {name: traced.spans[name] for name in innermost}
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        found = (_projection(block, traced.spans, linear, attention) for block in blocks)
        projections = frozenset(name for name in found if name is not None)
        return cls({name: traced.spans[name] for name in outermost}, blocks, attention, projections)

    def role(self, name: str, span: Span, module: MatrixLayer) -> str:
        """The role of a layer."""
        around, _, last = name.rpartition(".")
        if last in _PARTS and around.rpartition(".")[2] in _ROLES_BY_NAME:
            last = around.rpartition(".")[2]
        if not self.spans:  # no transformer: only names remain
            first = name.partition(".")[0]
            return "head" if first in ("head", "head_dist") else "patch_embed" if first == "patch_embed" else last
        if span.end < min(part.start for part in self.spans.values()):
            return "patch_embed"
        if span.start > max(part.end for part in self.spans.values()):
            return "head"
        block = next((block for block in self.blocks if _is_inside(name, block)), None)
        if not isinstance(module, nn.Linear):  # in a convolution such as 'se.fc1' the name means something else
            return ".".join(name.split(".")[-2:]) if last in _ROLES_BY_NAME else last
        if block is None or last in _ROLES_BY_NAME:
            return last
        return self._role_by_structure(name, span, self.blocks[block], module) or last

    def _role_by_structure(self, name: str, span: Span, block: Span, module: nn.Linear) -> str | None:
        """Role by position: before, at and after the attention; None between heads, and for a score."""
        if block.width not in (module.in_features, module.out_features) or module.out_features == 1:
            return None
        if name in self.projections:
            return "proj"
        moment, place = _last_attention(block, self.attention)
        if span.start < moment or (_is_inside(name, place) and place not in self.blocks):
            return "qkv"  # within the attention module also after the softmax, such as ConViT's values
        return "fc2" if module.out_features == block.width else "fc1"


def _last_attention(block: Span, attention: Iterable[tuple[int, str]]) -> tuple[int, str]:
    return [(moment, place) for moment, place in attention if block.start < moment < block.end][-1]


def _projection(
    block: str, spans: Mapping[str, Span], linear: Iterable[str], attention: Iterable[tuple[int, str]]
) -> str | None:
    """The layer that takes the attention's output: the last within its module, or the first after it."""
    moment, place = _last_attention(spans[block], attention)
    after = sorted(
        (name for name in linear if _is_inside(name, block) and name in spans and spans[name].start > moment),
        key=lambda name: spans[name].start,
    )
    if place != block and (within := [name for name in after if _is_inside(name, place)]):
        after = within[-1:]
    return next((name for name in after[:1] if spans[name].width == spans[block].width), None)


def _repeated_members(model: nn.Module, with_attention: set[str]) -> list[str]:
    """Members of lists whose members with attention are of one's class; a single member must contain no such list."""
    members = [name for name in with_attention if name[-1].isdigit()]  # 'blocks.0', 'layers.encoder_layer_0'
    repeated = []
    for name in members:
        folder, _, _ = name.rpartition(".")
        fellows = [other for other in members if other.rpartition(".")[0] == folder]
        classes = {type(model.get_submodule(other)) for other in fellows}
        lone_wrapper = len(fellows) == 1 and any(_is_inside(other, name) for other in members)
        alike = any(all(issubclass(other, one) for other in classes) for one in classes)
        if alike and not lone_wrapper:
            repeated.append(name)
    return repeated


def _is_inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def _names_by_weight(modules: dict[str, MatrixLayer]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, module in modules.items():
        names.setdefault(id(module.weight), []).append(name)
    return names


def _obstacle(module: MatrixLayer, span: Span, sharing: list[str]) -> str:
    if span.calls > 1:
        return "it runs more than once in a pass (a shared module)"
    if sharing:
        return f"its weight is also that of '{sharing[0]}' (tied weights)"
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            return "a convolution in groups has no single weight matrix"
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            return f"a convolution with padding '{module.padding}' ({module.padding_mode})"
    return span.mismatch
