"""Structural analysis of a model: linear layers, modules a forward pass can resume after, residual branches.

Raises if an assumption fails.

N = images; O = output features of a layer.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.additions import require_bound_forwards
from lpvit.models.analysis.layers import Body, LayerSpec, traced_layers
from lpvit.models.analysis.passes import constant, recorded_outputs, replaced_forwards
from lpvit.models.analysis.trace import IMAGES, Trace, quiet, random_images, trace
from lpvit.models.outputs import read

_logger = logging.getLogger(__name__)

MOST_OTHERS = 0.01  # of the linear products may be made by functions, such as the projection of a CLIP tower
_OTHER_RESUME_POINTS = ("patch_embed", "downsample")  # in addition to transformer blocks and stages


@dataclass(frozen=True)
class Branch:
    """How the output y of the last layer of a transformer block enters the block's output: r + scale * y.

    Attributes:
        block: Name of the transformer block.
        scale: LayerScale and the like, (O,), float32 or wider; 1 where y is added unscaled.
        at_input: Whether ``block`` is a module within it, whose input is r + scale * y (see `attention_branches`).
    """

    block: str
    scale: Tensor
    at_input: bool = False


@dataclass(frozen=True)
class Network:
    """What `analyse` found.

    Attributes:
        model: As given.
        layers: All layers that multiply tokens by a weight matrix, in order of execution.
        resume_points: Modules after which a pass can resume from their output alone, in order of execution.
        branches: Last layer of a transformer block -> how its output is added; only layers where it is.
        macs: Multiply-accumulates of all products for one image, attention included.
    """

    model: nn.Module
    layers: list[LayerSpec]
    resume_points: list[str]
    branches: dict[str, Branch]
    macs: int


@torch.no_grad()
def analyse(model: nn.Module) -> Network:
    """Analyses a model, and proves on two random images the assumptions that pruning and refitting make.

    Linear products are made by layers that are known, but for a few. A pass that resumes after a resume point gives the
    output of a full pass; a module after which it does not is left out, and passes resume earlier. The output of the
    last layer of a transformer block is added to the rest of it, scaled by one number a feature, or it is not listed as
    a branch.

    Args:
        model: Not on the meta device; not modified.

    Raises:
        LpvitError: It is not clear what counts of the model's output, or many of its products belong to no layer.
    """
    require_plain_module(model)
    require_weights(model)
    traced = trace(model)
    layers = traced_layers(model, traced)
    _require_all_products(model, traced, layers)
    body = Body.of(model, traced)
    with quiet(model):
        resume_points = _resume_points(model, traced, body)
        branches = _branches(model, traced, body, layers)
    return Network(model, layers, resume_points, branches, traced.macs)


def require_plain_module(model: object) -> None:
    """Checks that an object is a model that can be copied and traced.

    Raises:
        LpvitError: It is not a module, is compiled, is on several devices, or has a forward that does not belong to it.
    """
    if not isinstance(model, nn.Module):
        raise LpvitError(f"model: found {type(model).__name__}, expected a model: an nn.Module")
    if next(model.parameters(), None) is None:
        raise LpvitError(f"model: {type(model).__name__} has no weights")
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise LpvitError("model: is compiled; give the model before torch.compile, and compile the result")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise LpvitError(f"model: is wrapped in {type(model).__name__}; give its 'module'")
    require_bound_forwards(model)


def require_weights(model: nn.Module) -> None:
    """Checks that a model has weights.

    Raises:
        LpvitError: It is on the meta device.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise LpvitError("model: is on the meta device, so it has no weights; load them, or move it with to_empty")


def _require_all_products(model: nn.Module, traced: Trace, layers: Sequence[LayerSpec]) -> None:
    known = sum(layer.macs for layer in layers)
    for name, span in traced.spans.items():  # not per image, such as the MLP of a position bias
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear | nn.Conv2d) and not span.grows:
            known += span.numbers * module.weight[0].numel()
    others = traced.linear_macs - known
    if not others:
        return
    places = ", ".join(f"'{name}' in '{place}'" for name, place in list(traced.by_function.items())[:2])
    reason = f"functions multiply by {places}" if places else "no layer makes them"
    told = (
        f"{others:,} of its {traced.linear_macs:,} multiply-adds in linear products are not those of a layer ({reason})"
    )
    if 0 < others <= MOST_OTHERS * traced.linear_macs:
        _logger.info("model: %s; they stay as they are, and no budget counts them", told)
        return
    if others < 0:
        told = f"layers with {-others:,} more multiply-adds than its {traced.linear_macs:,} are found ({reason})"
    raise LpvitError(f"model: {type(model).__name__}: {told}, so it cannot be pruned to a budget")


def _resume_points(model: nn.Module, traced: Trace, body: Body) -> list[str]:
    """The candidates from which a pass resumes correctly, checked from the last to the first.

    One that gives the output of a later point that was proved need not run to the end.
    """
    candidates = {*body.spans, *body.blocks}
    candidates |= {name for name in traced.spans if name.rpartition(".")[2] in _OTHER_RESUME_POINTS}
    ended = sorted(
        (name for name in candidates if traced.spans[name].calls == 1 and traced.spans[name].numbers),
        key=lambda name: traced.spans[name].end,
    )
    images = random_images(model, IMAGES)
    with recorded_outputs(model, ended) as outputs:
        whole = read(model, model(images))
    if len(whole) != IMAGES:
        raise LpvitError(f"model: returns {len(whole)} rows for {IMAGES} images; say with output= what counts")
    outputs = {point: output for point, output in outputs.items() if output.shape[0] == IMAGES}
    ended = [point for point in ended if point in outputs]
    proved: list[str] = []
    for number, point in reversed(list(enumerate(ended))):
        forwards = {before: constant(torch.full_like(outputs[before], torch.nan)) for before in ended[:number]}
        forwards[point] = constant(outputs[point])
        goal = proved[0] if proved else None
        found = _run_to(model, forwards, torch.full_like(images, torch.nan), goal)
        if _equal(found, whole if goal is None else outputs[goal]):
            proved.insert(0, point)
        else:
            _logger.info("%s: passes do not resume after it, because later modules use more than its output", point)
    return proved


class _GoalError(Exception):
    def __init__(self, output: Any) -> None:
        self.output = output


def _run_to(model: nn.Module, forwards: Mapping[str, Callable[..., Tensor]], images: Tensor, goal: str | None) -> Any:
    def reached(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        raise _GoalError(output)

    hook = None if goal is None else model.get_submodule(goal).register_forward_hook(reached)
    try:
        with replaced_forwards(model, forwards):
            return read(model, model(images))
    except _GoalError as stopped:
        return stopped.output
    finally:
        if hook is not None:
            hook.remove()


def _branches(model: nn.Module, traced: Trace, body: Body, layers: Sequence[LayerSpec]) -> dict[str, Branch]:
    calls = _recorded_calls(model, body.blocks)
    branches = {}
    for block, (arguments, options) in calls.items():
        inside = [layer for layer in layers if layer.name.startswith(f"{block}.") and not layer.obstacle]
        if not inside:
            continue
        layer = max(inside, key=lambda layer: traced.spans[layer.name].end)
        if isinstance(model.get_submodule(layer.name), nn.Conv2d):  # refitted to its own output
            continue
        scale = _scale(_Block(model, block, layer.name, arguments, options), layer.out_features)
        if scale is not None:
            branches[layer.name] = Branch(block, scale)
    return branches


@torch.no_grad()
def attention_branches(network: Network) -> dict[str, Branch]:
    """Layers amid a transformer block whose output y is added to the residual stream r, and who reads r + scale * y.

    In a timm block that is the output projection of the attention, and the second norm. Proved as `analyse` proves
    `Network.branches`, which has the last layer of every block instead.
    """
    model, branches = network.model, {}
    traced = trace(model)
    body = Body.of(model, traced)
    with quiet(model):
        for block, (arguments, options) in _recorded_calls(model, body.blocks).items():
            inside = [layer for layer in network.layers if layer.name.startswith(f"{block}.") and not layer.obstacle]
            for layer in inside:
                if layer.name in network.branches or layer.out_features != body.blocks[block].width:
                    continue
                for reader in _modules_after(layer.name, block, traced):
                    block_with = _Block(model, block, layer.name, arguments, options, reader)
                    scale = _scale(block_with, layer.out_features)
                    if scale is not None and scale.any() and block_with(torch.zeros_like).any():
                        branches[layer.name] = Branch(reader, scale, at_input=True)
                        break
    return branches


def _modules_after(layer: str, block: str, traced: Trace) -> list[str]:
    """Modules within a transformer block that begin after a layer has ended, in order of execution."""
    ended = traced.spans[layer].end
    later = {name: span.start for name, span in traced.spans.items() if name.startswith(f"{block}.")}
    return sorted((name for name, start in later.items() if start > ended), key=later.__getitem__)


@dataclass(frozen=True)
class _Block:
    """A transformer block, called with its recorded arguments and another output of one of its layers.

    Attributes:
        reader: A module within it, whose input is asked for; None asks for the output of the block.
    """

    model: nn.Module
    name: str
    layer: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    reader: str | None = None

    def __call__(self, output: Callable[[Tensor], Tensor]) -> Any:
        read: list[Any] = []
        hooks = [self.model.get_submodule(self.layer).register_forward_hook(lambda _, __, found: output(found))]
        if self.reader is not None:
            reader = self.model.get_submodule(self.reader)
            hooks.append(reader.register_forward_pre_hook(lambda _, inputs: read.extend(_copied(inputs[:1]))))
        try:
            whole = self.model.get_submodule(self.name)(*_copied(self.arguments), **_copied(self.options))
        finally:
            for hook in hooks:
                hook.remove()
        return whole if self.reader is None else next(iter(read), None)


def _scale(block_with: _Block, features: int) -> Tensor | None:
    """The numbers s in r + s * y, the transformer block's output as a function of the output y of its last layer."""
    residual = block_with(torch.zeros_like)
    random = torch.randn(features, generator=torch.Generator().manual_seed(1))
    draws: list[Tensor] = []

    def drawn(output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        draws.append(torch.randn(output.shape, generator=generator).to(output) + random.to(output))
        return draws[0]

    found = block_with(drawn)
    with_ones = block_with(torch.ones_like)
    if not isinstance(residual, Tensor) or residual.shape[-1] != features or residual.numel() != draws[0].numel():
        return None
    scale: Tensor = (with_ones - residual).reshape(-1, features).double().mean(dim=0)
    expected = residual.double() + scale * draws[0].reshape(residual.shape).double()
    if not _equal(found.double(), expected):
        return None
    rounded = scale.float()
    return torch.ones_like(rounded) if torch.allclose(rounded, torch.ones_like(rounded), rtol=1e-3) else rounded


def _recorded_calls(model: nn.Module, modules: Mapping[str, Any]) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Records the arguments of modules in a pass."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments, options, name=name: calls.update({name: (_copied(arguments), _copied(options))}),
            with_kwargs=True,
        )
        for name in modules
    ]
    try:
        model(random_images(model, IMAGES))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copied(value: Any) -> Any:
    """A copy of tensors in tuples, lists and dicts, safe from changes in place."""
    return torch.utils._pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _equal(found: Any, expected: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    scale = float(expected.abs().max()) or 1.0
    coarse = expected.is_floating_point() and expected.dtype.itemsize < 4
    return bool(((found - expected).abs() <= scale * (3e-2 if coarse else 1e-4)).all())
