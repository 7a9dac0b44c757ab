"""A copy of a model in the state that pruning needs, whatever state its owner has it in."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from lpvit.errors import LpvitError
from lpvit.models.analysis.trace import quiet, random_images
from lpvit.models.architecture import found_source
from lpvit.models.outputs import Output, read, set_output
from lpvit.models.sources.families import call_modules
from lpvit.models.sources.source import Source
from lpvit.models.unpacking.edit import unpack

_logger = logging.getLogger(__name__)

_OF_WRAPPERS = {  # attribute that accelerate leaves where it replaces a forward -> others of it
    "_original_forward": (),
    "_old_forward": ("_hf_hook",),
}


def prepared(model: nn.Module, images: Tensor, output: Output | None = None) -> nn.Module:
    """A copy of a model that is ready for pruning: plain, with its input size, its layers called, its output named.

    Args:
        model: Left as it is.
        images: Some that it takes, (N, channels, height, width), on its device.
        output: What counts of its output.

    Raises:
        LpvitError: As `plain_copy`, `adopt_input_size` and `set_output`.
    """
    copy = plain_copy(model)
    adopt_input_size(copy, images)
    source: Source = getattr(copy, "lpvit_source", None) or found_source(copy)
    copy.lpvit_source = source  # type: ignore[assignment]
    copy.pretrained_cfg = {**source.preprocessing_of(copy), **source.data_config, **copy.pretrained_cfg}  # type: ignore[assignment, dict-item]
    unpack(copy, images)
    set_output(copy, images, output)
    return copy


def adopt_input_size(model: nn.Module, images: Tensor) -> None:
    """Sets the size of the given images in the model's data config, which timm leaves at the default.

    Raises:
        LpvitError: The model does not accept images of this size.
    """
    size = tuple(images.shape[1:])
    config = getattr(model, "pretrained_cfg", None) or {}
    model.pretrained_cfg = {**config, "input_size": size}  # type: ignore[assignment]
    try:
        with torch.no_grad(), quiet(model):
            model(images[:1].to(next(model.parameters())))
    except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise LpvitError(
            f"loader: the model does not accept its images of {'x'.join(map(str, size))} ({reason})"
        ) from None


@torch.no_grad()
def width_of(model: nn.Module) -> int:
    """Numbers that a model gives for an image, such as logits: of its output, since attributes may be out of date."""
    with quiet(model):
        return read(model, model(random_images(model, 1))).shape[1]


def plain_copy(model: nn.Module) -> nn.Module:
    """A plain copy in evaluation mode, of the same function.

    Gradient checkpointing is off, compiled modules are as before `torch.compile`, masks of `torch.nn.utils.prune` and
    parametrisations are folded into weights, forwards replaced by accelerate are restored, and attention calls its
    layers (`lpvit.models.sources.families.call_modules`).

    Args:
        model: Left as it is.

    Raises:
        LpvitError: It has adapters that are not merged, or weights that are computed in another way.
    """
    _require_merged(model)
    with _without_computed_weights(model):
        copy = deepcopy(model).eval()
    for name, module in list(copy.named_modules()):
        if isinstance(module, torch._dynamo.eval_frame.OptimizedModule):
            copy.set_submodule(name, module._orig_mod)
    for module in copy.modules():
        module.__dict__.pop("_compiled_call_impl", None)
        _restore_forward(module)
        for switch in ("grad_checkpointing", "gradient_checkpointing"):
            if getattr(module, switch, None) is True:
                setattr(module, switch, False)
    _fold(copy)
    return call_modules(copy)


def _fold(model: nn.Module) -> None:
    """Masks and parametrisations become part of the weights."""
    folded = []
    for name, module in model.named_modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
                folded.append(name)
        if parametrize.is_parametrized(module):
            shared = type(module)  # with the original module, from which nothing must be removed
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            for parameter in list(module.parametrizations):
                parametrize.remove_parametrizations(module, parameter, leave_parametrized=True)
            folded.append(name)
    if folded:
        _logger.info("model: masks or parametrisations of %d modules are folded into their weights", len(folded))


@contextmanager
def _without_computed_weights(model: nn.Module) -> Iterator[None]:
    """Takes away weights that a hook of `torch.nn.utils.prune` computes before every pass: they cannot be copied."""
    taken: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                taken.append((module, name, module.__dict__.pop(name)))
    try:
        yield
    finally:
        for module, name, value in taken:
            module.__dict__[name] = value


def _restore_forward(module: nn.Module) -> None:
    """The forward of its class, where accelerate has replaced it."""
    for mark, others in _OF_WRAPPERS.items():
        if mark in module.__dict__:
            for attribute in (mark, *others, "forward"):
                module.__dict__.pop(attribute, None)


def _require_merged(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).__module__.startswith("peft.") or hasattr(module, "lora_A"):
            raise LpvitError(
                f"model: '{name or type(model).__name__}' is an adapter of PEFT; merge it first (merge_and_unload())"
            )
