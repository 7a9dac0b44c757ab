"""timm models, their dense weights, and their prunable layers.

O, I = output and input features of a layer.
"""

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import InstanceOf
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from lpvit.errors import LpvitError, one_line
from lpvit.models.sources.arguments import DATA_CONFIG, require_plain
from lpvit.models.sources.checkpoints import require_one_type, require_same_architecture
from lpvit.models.sources.families import call_modules
from lpvit.quantisation.layers import int8_layers, make_int8
from lpvit.schemes.scheme import add_scheme, schemes_of
from lpvit.schemes.settings import Scheme
from lpvit.store.artifacts import load, save

LARGEST_BUFFERS = 2**26  # numbers that a model may keep beside its weights: masks and indices of windows


def create_model(
    name: str,
    num_classes: int,
    options: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    drop_path: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """A timm model with ``num_classes`` outputs, in evaluation mode.

    Args:
        name: Model name in timm.
        num_classes: Outputs of the classifier.
        options: Further keyword arguments of ``timm.create_model``.
        data_config: Overrides of the model's own data config (mean, std, ...); the input size follows ``options``.
        pretrained: Load timm's weights.
        drop_path: Stochastic depth rate while training.
        seed: Of the initial weights.

    Raises:
        LpvitError: timm does not know the model or an option, or cannot fetch the weights.
    """
    options = dict(options or {})
    if not timm.is_model(name.partition(".")[0]):
        raise LpvitError(f"models: timm knows no model '{name}'{nearest_model(name)}")
    require_plain(name, options, data_config or {})
    overlay = _input_size(options) | dict(data_config or {})
    torch.default_generator.manual_seed(seed)  # weights are drawn on the CPU
    try:
        model: nn.Module = timm.create_model(
            name,
            pretrained=pretrained,
            num_classes=num_classes,
            pretrained_cfg_overlay=overlay or None,
            **({"drop_path_rate": drop_path} if drop_path else {}),
            **options,
        )
    except Exception as error:  # numbers that do not go together are found anywhere in timm
        if not pretrained or isinstance(error, TypeError | AssertionError | ValueError):
            raise LpvitError(
                f"models: timm cannot build '{name}' with {options}: {type(error).__name__}: {one_line(error)}"
            ) from None
        raise LpvitError(
            f"models: timm could not fetch the weights of '{name}' ({type(error).__name__}); connect once so that "
            "they are cached, or give a local file with 'weights: checkpoint' and 'checkpoint: path'"
        ) from None
    return call_modules(model.eval())


@dataclass(frozen=True)
class Architecture:
    """What it takes to build a model again: the arguments of `create_model` that shape it.

    Attributes:
        shapes: Parameter name -> shape, of a model made narrower than timm makes it.
        schemes: Settings of the schemes that are added to it, `lpvit.models.settings.Scheme`, in that order.
        int8: Names of the layers that multiply in int8.
    """

    timm: str
    num_classes: int
    options: dict[str, Any]
    data_config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    schemes: Sequence[Mapping[str, Any]] = ()
    int8: Sequence[str] = ()

    @classmethod
    def of(cls, model: nn.Module, options: Mapping[str, Any] | None = None) -> "Architecture":
        """What made a model of timm, as far as it can tell.

        Args:
            model: From ``timm.create_model``.
            options: Arguments that it was made with beside its name, ``num_classes`` and ``pretrained``; without them
                only another size or another number of channels of the images is found.

        Raises:
            LpvitError: The model does not say its name in timm.
        """
        found = getattr(model, "pretrained_cfg", None) or {}
        if "architecture" not in found:
            raise LpvitError("model: does not say its name in timm; make it with timm.create_model")
        name = ".".join(filter(None, (found["architecture"], found.get("tag"))))
        default = timm.get_pretrained_cfg(name).to_dict()
        if options is None:
            options = _image_options(tuple(default["input_size"]), input_size(model))
        data_config = {key: found[key] for key in DATA_CONFIG if found.get(key) != default.get(key)}
        schemes = [scheme.model_dump(mode="json") for scheme in schemes_of(model)]
        classes: int = model.num_classes  # type: ignore[assignment]
        return cls(name, classes, dict(options), data_config, schemes=schemes, int8=int8_layers(model))

    def narrowed_to(self, model: nn.Module) -> "Architecture":
        """The same with the shapes of a narrower model, as far as they differ from timm's."""
        timms = self.build().state_dict()
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        return replace(self, shapes={name: shape for name, shape in shapes.items() if shape != timms[name].shape})

    def build(self, state: Mapping[str, Tensor] | None = None, **arguments: Any) -> nn.Module:
        """The model, with the weights of ``state`` in their dtype if given; further arguments go to `create_model`."""
        model = create_model(self.timm, self.num_classes, self.options, self.data_config, **arguments)
        reshape(model, self.shapes)
        for scheme in self.schemes:
            add_scheme(model, Scheme.model_validate(scheme))
        make_int8(model, self.int8)
        if state is not None:
            model.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
        return model


def outline(architecture: Architecture, state: Mapping[str, Tensor]) -> nn.Module:
    """The model on the meta device, where it takes no memory: what an architecture from a file would build.

    Args:
        architecture: From the file.
        state: The tensors of the file. Building stops as soon as there are many more parameters than these.

    Raises:
        LpvitError: The architecture cannot be built, or is far larger than the file.
    """
    numbers = sum(tensor.numel() for tensor in state.values())
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _at_most(3 * len(state) + 100):
        try:
            model = architecture.build()
        except LpvitError:
            raise
        except Exception as error:  # shapes and schemes that do not go together with the model
            raise LpvitError(f"architecture: cannot be built ({type(error).__name__}: {one_line(error)})") from None
    buffers = sum(buffer.numel() for buffer in model.buffers())
    if buffers > max(numbers, LARGEST_BUFFERS):
        raise LpvitError(f"architecture: needs {buffers:.2g} numbers beside its weights, the file has {numbers:.2g}")
    return model


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Lets this thread make no more parameters than that."""
    made, thread = itertools.count(1), threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if threading.get_ident() == thread and next(made) > parameters:
            raise LpvitError("architecture: has far more parameters than the file")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def with_schemes(
    architecture: Architecture, state: Mapping[str, Tensor], schemes: Sequence[Mapping[str, Any]]
) -> tuple[Architecture, dict[str, Tensor]]:
    """A model with schemes added, whose own weights start as `create_model` draws them.

    Args:
        architecture: Of the model.
        state: Its weights.
        schemes: Settings of the schemes, as in `Architecture.schemes`.

    Raises:
        LpvitError: A scheme does not fit the model.
    """
    if not schemes:
        return architecture, dict(state)
    extended = replace(architecture, schemes=[*architecture.schemes, *schemes])
    model = extended.build()
    model.load_state_dict({**model.state_dict(), **state})
    return extended, model.state_dict()


def reshape(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Changes the shapes of parameters and the sizes that layers store; the weights are lost.

    Args:
        model: Changed in place.
        shapes: Parameter name -> shape.

    Raises:
        LpvitError: The model has no such parameter.
    """
    for name, shape in shapes.items():
        place, _, parameter = name.rpartition(".")
        try:
            module = model.get_submodule(place)
            old = module.get_parameter(parameter)
        except AttributeError:
            raise LpvitError(f"shapes: the model has no parameter '{name}'") from None
        setattr(module, parameter, nn.Parameter(old.new_zeros(shape)))
    for module in model.modules() if shapes else ():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = module.weight.shape[:2]
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, Attention):
            fit_heads(module)


def fit_heads(attention: Attention) -> None:
    """Sets what timm's attention keeps beside its weights after the width of the heads has changed."""
    attention.head_dim = len(attention.qkv.weight) // (3 * attention.num_heads)
    attention.attn_dim = attention.head_dim * attention.num_heads
    attention.scale = attention.head_dim**-0.5


class SavedModel(TypedDict):
    """The payload of `dense`, `pruned` and `finetuned`."""

    architecture: Architecture
    state: dict[str, InstanceOf[Tensor]]


def save_model(
    architecture: Architecture, state: Mapping[str, Tensor], path: str | Path, kind: str, **provenance: Any
) -> None:
    """Writes an architecture and its weights as an artifact (`dense`, `pruned`, `finetuned`, `quantised`)."""
    save({"architecture": asdict(architecture), "state": dict(state)}, path, kind, provenance)


def load_model(path: str | Path, kind: str) -> tuple[Architecture, dict[str, Tensor]]:
    """Reads what `save_model` wrote.

    Raises:
        LpvitError: As `lpvit.store.artifacts.load`, or the weights are not those of the architecture.
    """
    payload = load(path, kind, SavedModel)
    architecture, state = payload["architecture"], payload["state"]
    try:
        model = outline(architecture, state)
        require_same_architecture(model, state, "its weights")
        require_one_type(model, state, "its weights")
    except LpvitError as error:
        raise LpvitError(f"{path}: {error}; delete it and rerun") from None
    return architecture, state


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of the images that the model takes."""
    return tuple(model.pretrained_cfg["input_size"])  # type: ignore[index]


def _input_size(options: Mapping[str, Any]) -> dict[str, Any]:
    if "img_size" not in options and "in_chans" not in options:
        return {}
    size = options.get("img_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return {"input_size": (options.get("in_chans", 3), height, width)}


def _image_options(default: tuple[int, int, int], found: tuple[int, int, int]) -> dict[str, Any]:
    """The options that change the input size of a model: the inverse of `_input_size`."""
    size = {"img_size": found[1:]} if found[1:] != default[1:] else {}
    return size | ({"in_chans": found[0]} if found[0] != default[0] else {})


def nearest_model(name: str) -> str:
    """The end of a message about a name that timm does not know."""
    close = get_close_matches(name, timm.list_models(), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
