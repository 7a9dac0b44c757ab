"""Forward passes that start or stop in the middle of a model.

Resume points are modules that run one after the other, each on the output of the last one: patch embedding,
transformer blocks, Swin's downsampling (`lpvit.models.analysis.network`). A pass resumes after one by giving the
modules up to it constant outputs.

N = images of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.outputs import read

Batches = Iterable[tuple[Tensor, Tensor]]  # normalised images (N, channels, height, width), labels (N,)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; restores the mode on exit."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def require_finite_logits(logits: Tensor, model: nn.Module, images: Tensor) -> None:
    """Checks that the logits of a forward pass are finite.

    Args:
        logits: Output for the images, (N, K).
        model: Run again after a failure only, to find its origin.
        images: (N, channels, height, width).

    Raises:
        LpvitError: A logit is NaN or infinite; the first module with such an output is named.
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


def constant(output: Tensor) -> Callable[..., Tensor]:
    """A forward function that ignores its input."""
    return lambda *_, **__: output


@contextmanager
def recorded_outputs(model: nn.Module, resume_points: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Yields resume point -> its output (images first), filled in order of execution as the model runs."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(point).register_forward_hook(
            lambda _, __, output, point=point: outputs.update({point: output})
        )
        for point in resume_points
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replaced_forwards(model: nn.Module, forwards: Mapping[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Replaces the forward of modules; on exit that of their class, or their own, is restored."""
    modules = {model.get_submodule(name): forward for name, forward in forwards.items()}
    own = {module: vars(module)["forward"] for module in modules if "forward" in vars(module)}
    try:
        for module, forward in modules.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
        for module, forward in own.items():
            module.__dict__["forward"] = forward


@dataclass(frozen=True)
class CachedPass:
    """A forward pass of a batch, cached at a resume point, in main memory.

    Attributes:
        images: (N, channels, height, width); a placeholder as soon as a resume point is reached.
        outputs: point -> its output (images first) of the resume points reached, in order of execution; placeholders
            except for the last.
    """

    images: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedPass:
    """A whole forward pass of a batch, from which changed passes can resume before any layer.

    Attributes:
        images: (N, channels, height, width).
        logits: (N, K).
        outputs: Of `recorded_outputs`.
        points_before: layer -> number of resume points reached when it ran.
    """

    images: Tensor
    logits: Tensor
    outputs: dict[str, Tensor]
    points_before: dict[str, int]

    @classmethod
    def of(cls, model: nn.Module, resume_points: Iterable[str], images: Tensor, layers: Iterable[str]) -> Self:
        """Runs a model.

        Args:
            model: On the device of the images.
            resume_points: Of the model.
            images: (N, channels, height, width).
            layers: That are changed later.

        Raises:
            LpvitError: A logit is not finite.
        """
        points_before: dict[str, int] = {}
        with recorded_outputs(model, resume_points) as outputs:
            hooks = [
                model.get_submodule(layer).register_forward_pre_hook(
                    lambda _, __, layer=layer: points_before.update({layer: len(outputs)})
                )
                for layer in layers
            ]
            try:
                logits = read(model, model(images))
            finally:
                for hook in hooks:
                    hook.remove()
        require_finite_logits(logits, model, images)
        return cls(images, logits, outputs, points_before)

    def resumed(self, layer: str, copies: int = 1) -> tuple[Tensor, dict[str, Callable[..., Tensor]]]:
        """Images and forwards for `replaced_forwards` with which a pass begins just before a layer.

        Args:
            layer: One of those that were given.
            copies: Of the batch, one behind the other.
        """
        done = list(self.outputs)[: self.points_before[layer]]
        forwards = {point: constant(self.outputs[point]) for point in done}
        if not done:
            return _repeat(self.images, copies), forwards
        forwards[done[-1]] = constant(_repeat(self.outputs[done[-1]], copies))
        return self.images, forwards


def _repeat(batch: Tensor, copies: int) -> Tensor:
    return batch if copies == 1 else batch.repeat(copies, *[1] * (batch.dim() - 1))


@dataclass(frozen=True)
class StopPoint:
    """Where a pass stops.

    Attributes:
        layer: A linear layer or convolution; the pass stops where it begins.
        block: A transformer block around the layer: the pass continues to the end of it with a zero output of the
            layer, which gives the residual that the layer's output is added to. None stops at the layer.
        at_input: Whether ``block`` is a module that runs after the layer, and the pass continues to its beginning.
    """

    layer: str
    block: str | None = None
    at_input: bool = False


def run_until(
    model: nn.Module, resume_points: Iterable[str], cached: CachedPass, stop: StopPoint, device: torch.device | str
) -> tuple[Tensor, Tensor | None, CachedPass]:
    """Continues a pass up to a layer.

    Args:
        model: On the device; not modified.
        resume_points: Of the model.
        cached: A pass of this model that has not reached the layer.
        stop: Where to stop.
        device: Of the model.

    Returns:
        The layer's input, on the device; the output of the transformer block for a zero output of the layer, if
        requested; and the pass cached at the last resume point before the layer.
    """
    forwards = {point: constant(output.to(device)) for point, output in cached.outputs.items()}
    reached: list[Tensor] = []
    residual = None
    with (
        _stopped(model, stop, reached),
        recorded_outputs(model, resume_points) as outputs,
        replaced_forwards(model, forwards),
    ):
        try:
            model(cached.images.to(device))
        except _ReachedError as stopped:
            residual = stopped.output
    if not reached:
        raise AssertionError(f"{stop.layer}: the model ended without running it")
    return reached[0], residual, cached if len(outputs) == len(forwards) else _cached(cached.images, outputs)


def run_through(
    model: nn.Module, resume_points: Iterable[str], cached: CachedPass, point: str, device: torch.device | str
) -> tuple[Tensor, CachedPass]:
    """Continues a pass to a resume point, with gradients where they are enabled.

    Args:
        model: On the device; not modified.
        resume_points: Of the model.
        cached: A pass of this model that has not reached the resume point.
        point: One of the resume points.
        device: Of the model.

    Returns:
        Its output, on the device, and the pass cached there.
    """
    forwards = {ended: constant(output.to(device)) for ended, output in cached.outputs.items()}

    def stop(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        raise _ReachedError(output)

    with recorded_outputs(model, resume_points) as outputs, replaced_forwards(model, forwards):
        handle = model.get_submodule(point).register_forward_hook(stop)  # after the recording, which sees the output
        try:
            model(cached.images.to(device))
        except _ReachedError:
            return outputs[point], _cached(cached.images, {name: each.detach() for name, each in outputs.items()})
        finally:
            handle.remove()
    raise AssertionError(f"{point}: the model ended without running it")


class _ReachedError(Exception):
    def __init__(self, output: Tensor | None = None) -> None:
        self.output = output


@contextmanager
def _stopped(model: nn.Module, stop: StopPoint, reached: list[Tensor]) -> Iterator[None]:
    """Raises `_ReachedError` in a pass where it must stop; the list receives the layer's input."""

    def before_layer(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        reached.append(inputs[0])
        if stop.block is None:
            raise _ReachedError

    def after_layer(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    def after_block(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        if reached:
            raise _ReachedError(output)

    def before_reader(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if reached:
            raise _ReachedError(inputs[0])

    layer = model.get_submodule(stop.layer)
    handles = [layer.register_forward_pre_hook(before_layer)]
    if stop.block is not None:  # registered before the recording of resume points, which must not record this output
        handles.append(layer.register_forward_hook(after_layer))
        block = model.get_submodule(stop.block)
        hook = (
            block.register_forward_pre_hook(before_reader)
            if stop.at_input
            else block.register_forward_hook(after_block)
        )
        handles.append(hook)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cached(images: Tensor, outputs: Mapping[str, Tensor]) -> CachedPass:
    *ended, last = outputs
    placeholders = {point: _placeholder(outputs[point]) for point in ended}
    return CachedPass(_placeholder(images), {**placeholders, last: outputs[last].cpu()})


def _placeholder(tensor: Tensor) -> Tensor:
    """Zeros of the same shape in the memory of one number: input of modules before a point with a constant output."""
    return tensor.new_zeros(()).expand(tensor.shape)


def first_images(batches: Batches, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first ``count`` images and labels, in batches."""
    first = []
    for images, labels in batches:
        first.append((images[:count], labels[:count]))
        count -= len(images)
        if count <= 0:
            break
    return first


def every_nth(batches: Batches, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every ``step``-th image with its label, in batches."""
    seen = 0
    for images, labels in batches:
        chosen = slice(-seen % step, None, step)
        seen += len(images)
        if len(images[chosen]):
            yield images[chosen], labels[chosen]
