"""Forward passes that begin or end in the middle of a model.

Units are the parts that a model runs one after the other, each on the output of the one before: patch embedding,
transformer blocks, Swin's downsampling. A pass begins after a unit by giving the units up to it constant outputs.

N = images of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.layers import transformer_blocks

Batches = Iterable[tuple[Tensor, Tensor]]  # normalised images (N, channels, height, width), labels (N,)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the mode of before outside."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def require_finite_logits(logits: Tensor, model: nn.Module, images: Tensor) -> None:
    """Makes sure that a forward pass went well.

    Args:
        logits: What the model made of the images, (N, K).
        model: Asked again, only after a failure, to find where it began.
        images: (N, channels, height, width).

    Raises:
        LpvitError: A logit is NaN or infinite; the first module whose output is so is named.
    """
    if not logits.isfinite().all():
        raise LpvitError(
            f"{_first_non_finite_module(model, images)}: its output on the calibration images is NaN or infinite; "
            "check the dense weights and the mean and std of the images"
        )


@torch.no_grad()
def _first_non_finite_module(model: nn.Module, images: Tensor) -> str:
    found = []

    def look(name: str, output: object) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return next(iter(found), "the model")


def units(model: nn.Module) -> list[str]:
    """Names of the units of a model."""
    names = [name for name, _ in model.named_modules() if name.split(".")[-1] in ("patch_embed", "downsample")]
    return names + transformer_blocks(model)


def constant(output: Tensor) -> Callable[..., Tensor]:
    """A forward that ignores its input."""
    return lambda *_, **__: output


@contextmanager
def recorded_units(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yields unit -> its output (images first), filled in order of execution as the model runs."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(unit).register_forward_hook(lambda _, __, output, unit=unit: outputs.update({unit: output}))
        for unit in units(model)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replaced_forwards(model: nn.Module, forwards: Mapping[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Lets modules run other forwards; on leaving, the attribute goes and that of their class is back."""
    modules = {model.get_submodule(name): forward for name, forward in forwards.items()}
    try:
        for module, forward in modules.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


@dataclass(frozen=True)
class PausedPass:
    """The pass of a batch that waits between two units, in main memory.

    Attributes:
        images: (N, channels, height, width); a placeholder as soon as a unit has ended.
        outputs: unit -> its output (images first) of the units that have ended, in order of execution; placeholders
            but for the last.
    """

    images: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)


def run_until(
    model: nn.Module, paused: PausedPass, layer: str, device: torch.device | str
) -> tuple[Tensor, PausedPass]:
    """Goes on with a pass as far as a layer.

    Args:
        model: On the device; left as it is.
        paused: A pass of this model that has not come to the layer.
        layer: Where to stop.
        device: Of the model.

    Returns:
        The layer's input, on the device, and the pass paused after the last unit that ended before it.
    """
    forwards = {unit: constant(output.to(device)) for unit, output in paused.outputs.items()}
    stop = model.get_submodule(layer).register_forward_pre_hook(_stop)
    try:
        with recorded_units(model) as outputs, replaced_forwards(model, forwards):
            model(paused.images.to(device))
    except _ReachedError as reached:
        return reached.inputs, paused if len(outputs) == len(forwards) else _pause(paused.images, outputs)
    finally:
        stop.remove()
    raise AssertionError(f"{layer}: the model ended without running it")


class _ReachedError(Exception):
    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs


def _stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise _ReachedError(inputs[0])


def _pause(images: Tensor, outputs: Mapping[str, Tensor]) -> PausedPass:
    *ended, last = outputs
    placeholders = {unit: _placeholder(outputs[unit]) for unit in ended}
    return PausedPass(_placeholder(images), {**placeholders, last: outputs[last].cpu()})


def _placeholder(tensor: Tensor) -> Tensor:
    """Zeros of the same shape in the memory of one: what computes on it goes before a unit with a constant output."""
    return tensor.new_zeros(()).expand(tensor.shape)
