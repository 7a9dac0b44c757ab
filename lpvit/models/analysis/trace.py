"""Traces a forward pass: order of the modules, location of attention, and products outside modules.

N = images of the pass.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

IMAGES = 2  # of the traced pass; work that does not grow with them is not work on tokens

_ATTENTION = (
    functional.scaled_dot_product_attention,
    functional.softmax,
    torch.softmax,
    Tensor.softmax,
    functional.multi_head_attention_forward,
)
_PRODUCTS = (
    functional.linear,
    functional.conv2d,
    functional.multi_head_attention_forward,
    torch.matmul,
    torch.mm,
    torch.einsum,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.mm,
)
_MIXED = "its input does not begin with the images: the first is mixed with others (modules of torch: batch_first=True)"
_PRODUCTS_OF_LAYERS = ("mm", "addmm", "convolution", "_convolution")  # of the counter; attention is bmm


@dataclass
class Span:
    """When a module ran, and properties of its output.

    Attributes:
        start: Time at which it started.
        end: Time at which it ended.
        calls: How often it ran.
        numbers: Elements of its outputs, summed over all calls, with N images.
        width: Size of the last dimension of its output, or of the first tensor of a tuple; 0 without a tensor.
        grows: Whether its output is larger for N images than for one.
        mismatch: How the output of a linear layer or convolution is wrong; empty if it is input times weight.
    """

    start: int
    end: int = -1
    calls: int = 1
    numbers: int = 0
    width: int = 0
    grows: bool = True
    mismatch: str = ""


@dataclass
class Trace:
    """The result of `trace`.

    Attributes:
        images: N.
        spans: Name of a module -> when it ran.
        attention: Time and enclosing modules, outermost first, of every softmax or attention product.
        macs: Multiply-accumulates of all products for one image.
        linear_macs: Those of linear products and convolutions only.
        by_function: Parameter that a function multiplied by -> the module in which it was called.
    """

    images: int
    spans: dict[str, Span] = field(default_factory=dict)
    attention: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    macs: int = 0
    linear_macs: int = 0
    by_function: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def trace(model: nn.Module) -> Trace:
    """Traces one pass over ``IMAGES`` random images, and counts the products of another over one image.

    A third, whose second image is NaN, shows whether inputs of layers begin with the images, so that the products of
    an image can be separated from those of others.

    Args:
        model: Not modified. On the meta device nothing is computed, so no product is checked.
    """
    traced = Trace(IMAGES)
    numbers: dict[str, int] = {}
    with quiet(model):
        images = random_images(model, IMAGES)
        with _watched(model, traced), _nan_in_first(model) as before:
            model(images)
        # Fused attention kernels differ by device and not all are counted; the plain one is two matrix products.
        with _sized(model, numbers), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(images[:1])
        images[1:] = torch.nan
        with _nan_in_first(model) as after:
            model(images)
    for name, span in traced.spans.items():
        span.grows = span.numbers > numbers.get(name, 0)
        if span.grows and after.get(name) and not before[name]:
            span.mismatch = span.mismatch or _MIXED
    traced.macs = int(counter.get_total_flops()) // 2
    traced.linear_macs = _linear_flops(model, counter) // 2
    return traced


def _linear_flops(model: nn.Module, counter: FlopCounterMode) -> int:
    """Of linear products and convolutions; a layer with windows of tokens as input makes them as batched products."""
    counts, root = counter.get_flop_counts(), type(model).__name__
    flops = sum(count for product, count in counts["Global"].items() if _is_of_layers(product))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            own = counts.get(f"{root}.{name}", {})
            flops += sum(count for product, count in own.items() if not _is_of_layers(product))
    return int(flops)


def random_images(model: nn.Module, count: int) -> Tensor:
    """Deterministic images in the format of the model, (count, channels, height, width)."""
    parameter = next(model.parameters())
    size: tuple[int, ...] = tuple(model.pretrained_cfg["input_size"])  # type: ignore[index]
    if parameter.device.type == "meta":
        return torch.empty(count, *size, device="meta", dtype=parameter.dtype)
    images = torch.randn(count, *size, generator=torch.Generator().manual_seed(0))
    return images.to(parameter)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients of parameters, which torch's counter does not support."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    model.eval()
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


@contextmanager
def hooks(handles: Iterator[Any] | list[Any]) -> Iterator[None]:
    """Removes hooks on exit."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


class _Functions(TorchFunctionMode):
    """Records attention, and products with a parameter that are not made by its layer."""

    def __init__(
        self, traced: Trace, stack: list[str], clock: Iterator[int], names: Mapping[int, str], layers: Collection[str]
    ) -> None:
        super().__init__()
        self.traced, self.stack, self.clock, self.names, self.layers = traced, stack, clock, names, layers

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = dict(kwargs or {})
        if function in _ATTENTION:
            self.traced.attention.append((next(self.clock), tuple(self.stack)))
        if function in _PRODUCTS:
            place = self.stack[-1] if self.stack else "the model"
            for factor in (*args, *arguments.values()):
                name = self.names.get(id(factor)) if isinstance(factor, Tensor) and factor.dim() > 1 else None
                if name is not None and not (place in self.layers and name == f"{place}.weight"):
                    self.traced.by_function[name] = place
        return function(*args, **arguments)


@contextmanager
def _watched(model: nn.Module, traced: Trace) -> Iterator[None]:
    stack: list[str] = []
    clock = itertools.count()
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}

    def begin(name: str) -> None:
        stack.append(name)
        if name in traced.spans:
            traced.spans[name].calls += 1
        else:
            traced.spans[name] = Span(next(clock))

    def end(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        span = traced.spans[name]
        if isinstance(module, nn.Linear | nn.Conv2d) and isinstance(output, Tensor) and not output.is_meta:
            span.mismatch = _mismatch(module, inputs[0], output)  # within the module, or it would count as a function's
        stack.pop()
        span.end = next(clock)
        first = output[0] if isinstance(output, tuple) and output else output
        span.width = first.shape[-1] if isinstance(first, Tensor) and first.dim() else 0
        if isinstance(output, Tensor):
            span.numbers += output.numel()

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda _, __, name=name: begin(name)))
            handles.append(module.register_forward_hook(lambda *call, name=name: end(name, *call)))
    with hooks(handles), _Functions(traced, stack, clock, names, layers):
        yield


@contextmanager
def _sized(model: nn.Module, numbers: dict[str, int]) -> Iterator[None]:
    def note(name: str, output: Any) -> None:
        numbers[name] = numbers.get(name, 0) + (output.numel() if isinstance(output, Tensor) else 0)

    modules = model.named_modules()
    with hooks(
        [module.register_forward_hook(lambda _, __, out, name=name: note(name, out)) for name, module in modules]
    ):
        yield


@contextmanager
def _nan_in_first(model: nn.Module) -> Iterator[dict[str, bool]]:
    """Layer -> whether the part of its input that should be the first image's has NaN; nothing on the meta device."""
    found: dict[str, bool] = {}

    def look(name: str, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and not inputs[0].is_meta:
            numbers = inputs[0].flatten()
            found[name] = bool(numbers[: len(numbers) // IMAGES].isnan().any())

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    with hooks(
        [module.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs)) for name, module in layers]
    ):
        yield found


def _mismatch(module: nn.Linear | nn.Conv2d, inputs: Tensor, output: Tensor) -> str:
    """Compares the output with the product of input and weight; empty if they agree."""
    if not module.weight.is_floating_point():  # an int8 layer, whose inputs are rounded
        return ""
    if isinstance(module, nn.Linear):
        expected = functional.linear(inputs, module.weight, module.bias)
    else:
        expected = nn.Conv2d._conv_forward(module, inputs, module.weight, module.bias)
    if expected.shape == output.shape and torch.allclose(expected, output, rtol=1e-3, atol=1e-4, equal_nan=True):
        return ""
    return f"the output of {type(module).__name__} is not its input times its weight"


def _is_of_layers(product: Any) -> bool:
    return str(product).rpartition(".")[2] in _PRODUCTS_OF_LAYERS
