"""Transformers of torchvision: ViT, Swin and Swin V2."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, final

import torch
from pydantic import Field
from torch import nn
from torchvision import models
from torchvision.models import swin_transformer as swin

from lpvit.errors import LpvitError, nearest, one_line
from lpvit.models.sources.arguments import require_known
from lpvit.models.sources.source import Source, data_config_of, imagenet_labels, outputs_of_head

if TYPE_CHECKING:
    from lpvit.models.settings import Model

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of all of torchvision's weights


def _of_vit(model: models.VisionTransformer) -> dict[str, Any]:
    names = ("image_size", "patch_size", "hidden_dim", "mlp_dim", "representation_size")
    layers = list(model.encoder.layers)
    return {
        **{name: getattr(model, name) for name in names},
        "num_layers": len(layers),
        "num_heads": layers[0].self_attention.num_heads,
    }


def _of_swin(model: models.SwinTransformer) -> dict[str, Any]:
    stages = [
        stage
        for stage in model.features
        if any(isinstance(part, swin.SwinTransformerBlock) for part in stage.children())
    ]
    patches, first = model.features[0][0], stages[0][0]
    return {
        "patch_size": list(patches.kernel_size),
        "embed_dim": patches.out_channels,
        "depths": [len(stage) for stage in stages],
        "num_heads": [stage[0].attn.num_heads for stage in stages],
        "window_size": list(first.attn.window_size),
        "mlp_ratio": first.mlp[0].out_features / patches.out_channels,
    }


class _Class(NamedTuple):
    """A class of models: what it is made with always, its arguments read from an instance, and sides of its images."""

    make: type[nn.Module]
    fixed: Mapping[str, Any]
    arguments_of: Callable[[Any], dict[str, Any]]
    size: int


_V2 = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
_CLASSES = {
    "VisionTransformer": _Class(models.VisionTransformer, {}, _of_vit, 224),
    "SwinTransformer": _Class(models.SwinTransformer, {}, _of_swin, 224),
    "SwinTransformerV2": _Class(models.SwinTransformer, _V2, _of_swin, 256),
}
_BUILDERS = {"vit_": "VisionTransformer", "swin_v2_": "SwinTransformerV2", "swin_": "SwinTransformer"}


@final
class Torchvision(Source):
    """A transformer of torchvision: a builder (``vit_b_16``), or a class with all that shapes it.

    Attributes:
        name: Of a builder, or ``VisionTransformer``, ``SwinTransformer``, ``SwinTransformerV2``.
        options: Further keyword arguments of its class.
    """

    source: Literal["torchvision"] = "torchvision"
    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Self | None:
        """The source of a model, with all its arguments; None if it is of no class above."""
        kinds = {type(module) for module in model.modules()}
        name = type(model).__name__ + "V2" * (swin.SwinTransformerBlockV2 in kinds)
        if name not in _CLASSES or type(model) is not _CLASSES[name].make:
            return None
        options = _CLASSES[name].arguments_of(model)
        return cls(
            name=name, num_classes=cls.classes_in(model) or 0, options=options, data_config=data_config_of(model)
        )

    @staticmethod
    def classes_in(model: nn.Module) -> int | None:
        head: Any = getattr(model, "head", getattr(model, "heads", None))
        return outputs_of_head(head[-1] if isinstance(head, nn.Sequential) and len(head) else head)

    @classmethod
    def configured(cls, settings: "Model", num_classes: int) -> Self:
        shared = {"options": settings.options, "data_config": settings.data_config}
        return cls(name=str(settings.torchvision), num_classes=num_classes, **shared)

    def build(self, pretrained: bool = False, seed: int = 0) -> nn.Module:
        made = self._class()
        known = set(inspect.signature(made.make.__init__).parameters) - {"self", "num_classes", *_V2}
        known -= {"norm_layer", "conv_stem_configs"}
        require_known(self.options, known, f"'{self.name}'", "its class in torchvision")
        options = dict(self.options)
        torch.default_generator.manual_seed(seed)
        try:
            if self.name in _CLASSES:
                model = made.make(num_classes=self.num_classes, **made.fixed, **options)
            else:
                model = models.get_model(self.name, weights=None, num_classes=self.num_classes, **options)
        except Exception as error:  # inconsistent numbers raise anywhere in torchvision
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise LpvitError(f"models: torchvision cannot build '{self.name}' with {options}: {reason}") from None
        found = self.preprocessing_of(model)
        return self.described(model, {**found, **(self._load(model) if pretrained else {})})

    def preprocessing_of(self, model: nn.Module) -> dict[str, Any]:
        size = getattr(model, "image_size", self._class().size)
        return {**_IMAGENET, "interpolation": "bilinear", "crop_pct": 0.875, "input_size": (3, size, size)}

    def _class(self) -> _Class:
        names = [name for name in models.list_models() if name.startswith(tuple(_BUILDERS))]
        if self.name not in (*names, *_CLASSES):
            raise LpvitError(f"models: torchvision has no transformer '{self.name}'{nearest(self.name, names)}")
        of_builder = (kind for prefix, kind in _BUILDERS.items() if self.name.startswith(prefix))
        return _CLASSES[self.name if self.name in _CLASSES else next(of_builder)]

    def _load(self, model: nn.Module) -> dict[str, Any]:
        """Loads torchvision's weights, without the head if it has other classes; their preprocessing."""
        if self.name in _CLASSES:
            raise LpvitError(f"models: torchvision has weights of builders such as vit_b_16, not of '{self.name}'")
        weights = models.get_model_weights(self.name).DEFAULT
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except Exception as error:
            raise LpvitError(
                f"models: torchvision could not fetch the weights of '{self.name}' ({type(error).__name__}); connect "
                "once so that they are cached, or give a local file with 'weights: checkpoint' and 'checkpoint: path'"
            ) from None
        own = model.state_dict()
        model.load_state_dict(
            {name: state[name] if state[name].shape == own[name].shape else own[name] for name in own}
        )
        transforms = weights.transforms()
        return {
            "mean": tuple(transforms.mean),
            "std": tuple(transforms.std),
            "interpolation": transforms.interpolation.value,
            "crop_pct": transforms.crop_size[0] / transforms.resize_size[0],
        }

    @property
    def known_classes(self) -> int | None:
        return None if self.name in _CLASSES else len(models.get_model_weights(self.name).DEFAULT.meta["categories"])

    @property
    def known_labels(self) -> Sequence[str]:
        return imagenet_labels(self.known_classes)

    def __str__(self) -> str:
        return f"torchvision's '{self.name}' with {self.options}"
