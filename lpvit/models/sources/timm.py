"""Models of timm."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, final

import timm
import torch
from pydantic import Field
from timm.layers import DropPath
from timm.models import PretrainedCfg
from torch import nn

from lpvit.errors import LpvitError, one_line, similar
from lpvit.models.drop_rates import drop_rates
from lpvit.models.sources.arguments import DATA_CONFIG, require_plain
from lpvit.models.sources.families import call_modules
from lpvit.models.sources.source import Source, imagenet_labels, outputs_of_head

if TYPE_CHECKING:
    from lpvit.models.settings import Model


@final
class Timm(Source):
    """A model of timm: the arguments of `create_model` that shape it.

    Attributes:
        name: Model name in timm.
        options: Further keyword arguments of ``timm.create_model``.
    """

    source: Literal["timm"] = "timm"
    name: str
    num_classes: int
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, options: Mapping[str, Any] | None = None) -> Self:
        """The source of a timm model, as far as it is recorded.

        Args:
            model: From ``timm.create_model``.
            options: Arguments besides its name, ``num_classes`` and ``pretrained``; without them only image size,
                number of channels and stochastic depth are read from the model.

        Raises:
            LpvitError: The model has no name in timm.
        """
        found = getattr(model, "pretrained_cfg", None) or {}
        if "architecture" not in found:
            raise LpvitError("model: has no name in timm; create it with timm.create_model")
        name, default = _registered(found["architecture"], found.get("tag"))
        if options is None:
            options = _image_options(tuple(default["input_size"]), input_size(model)) | _drop_path(model)
            options |= {
                key: True for key in ("dynamic_img_size", "dynamic_img_pad") if getattr(model, key, False) is True
            }
        data_config = {key: found[key] for key in DATA_CONFIG if found.get(key) != default.get(key)}
        found_classes = cls.classes_in(model)
        classes = model.num_classes if found_classes is None else found_classes
        return cls(name=name, num_classes=classes, options=dict(options), data_config=data_config)

    @staticmethod
    def classes_in(model: nn.Module) -> int | None:
        head: Any = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
        return outputs_of_head(head[0] if isinstance(head, tuple | list) else head)

    @classmethod
    def configured(cls, settings: "Model", num_classes: int) -> Self:
        shared = {"options": settings.options, "data_config": settings.data_config}
        return cls(name=str(settings.timm), num_classes=num_classes, **shared)

    def build(self, pretrained: bool = False, seed: int = 0) -> nn.Module:
        return create_model(self.name, self.num_classes, self.options, self.data_config, pretrained, seed)

    @property
    def known_classes(self) -> int | None:
        found = timm.get_pretrained_cfg(self.name)
        return None if found is None else found.num_classes

    @property
    def known_labels(self) -> Sequence[str]:
        return imagenet_labels(self.known_classes)

    def __str__(self) -> str:
        return f"timm's '{self.name}' with {self.options}"


def create_model(
    name: str,
    num_classes: int,
    options: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A timm model with ``num_classes`` outputs, in evaluation mode.

    Args:
        name: Model name in timm.
        num_classes: Outputs of the classifier.
        options: Further keyword arguments of ``timm.create_model``.
        data_config: Overrides of the model's own data config (mean, std, ...); the input size follows ``options``.
        pretrained: Load timm's weights.
        seed: Of the initial weights.

    Raises:
        LpvitError: timm does not know the model or an option, or cannot fetch the weights.
    """
    options = dict(options or {})
    if not timm.is_model(name.partition(".")[0]):
        raise LpvitError(f"models: timm knows no model '{name}'{nearest_model(name)}")
    require_plain(name, options, data_config or {})
    torch.default_generator.manual_seed(seed)  # weights are drawn on the CPU
    try:
        overlay = _input_size(name, options) | dict(data_config or {})
        model: nn.Module = timm.create_model(
            name,
            pretrained=pretrained,
            num_classes=num_classes,
            pretrained_cfg_overlay=overlay or None,
            **options,
        )
    except Exception as error:  # inconsistent numbers raise anywhere in timm
        if not pretrained or isinstance(error, TypeError | AssertionError | ValueError):
            raise LpvitError(
                f"models: timm cannot build '{name}' with {options}: {type(error).__name__}: {one_line(error)}"
            ) from None
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise LpvitError(
            f"models: timm could not fetch the weights of '{name}' ({reason}); connect once so that they are cached, "
            "or give a local file with 'weights: checkpoint' and 'checkpoint: path'"
        ) from None
    return call_modules(model.eval())


def _registered(architecture: str, tag: str | None) -> tuple[str, dict[str, Any]]:
    """The name under which timm has a model, and its data config there; without the tag if timm does not list it."""
    name = f"{architecture}.{tag}" if tag else architecture
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # such as the tag of weights from 'hf-hub:', or of another release
        name, config = architecture, timm.get_pretrained_cfg(architecture)
    default: dict[str, Any] = (config or PretrainedCfg()).to_dict()
    return name, default


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of the model's input."""
    return tuple(model.pretrained_cfg["input_size"])  # type: ignore[index]


def nearest_model(name: str) -> str:
    """A hint for a message about an unknown timm name."""
    return similar(name, timm.list_models())


def _input_size(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The input size that options ask for; what they leave out stays the model's own."""
    if "img_size" not in options and "in_chans" not in options:
        return {}
    channels, *own = (timm.get_pretrained_cfg(name) or PretrainedCfg()).input_size
    size = options.get("img_size", own)
    height, width = (size, size) if isinstance(size, int) else size
    return {"input_size": (options.get("in_chans", channels), height, width)}


def _image_options(default: tuple[int, int, int], found: tuple[int, int, int]) -> dict[str, Any]:
    """The options that change the input size of a model: the inverse of `_input_size`."""
    size = {"img_size": found[1:]} if found[1:] != default[1:] else {}
    return size | ({"in_chans": found[0]} if found[0] != default[0] else {})


def _drop_path(model: nn.Module) -> dict[str, float]:
    """The option for stochastic depth of a model that has any."""
    rates = [rate for name, rate in drop_rates(model).items() if isinstance(model.get_submodule(name), DropPath)]
    return {"drop_path_rate": round(max(rates), 6)} if rates else {}  # timm keeps rates in float32
