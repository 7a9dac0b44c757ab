"""Models of Hugging Face transformers that take images."""

import inspect
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, final

import torch
from huggingface_hub import try_to_load_from_cache
from pydantic import Field, PrivateAttr
from torch import nn

from lpvit.errors import LpvitError, one_line, similar
from lpvit.models.sources.arguments import require_known
from lpvit.models.sources.source import Source, data_config_of, outputs_of_head

if TYPE_CHECKING:
    from lpvit.models.settings import Model

# What a config says besides shapes: code and weights from elsewhere, labels, bookkeeping.
_NOT_SHAPES = ("backbone", "pretrained", "auto_map", "quantization", "attn_implementation", "kernel", "name_or_path")
_BOOKKEEPING = (
    *("transformers_version", "architectures", "model_type", "dtype", "torch_dtype", "id2label", "label2id"),
    *("stage_names", "out_features"),  # follow from the number of layers and from out_indices
)
_PREPROCESSING = "preprocessor_config.json"


@final
class Transformers(Source):
    """A model of transformers: its class, and the values of its config.

    Attributes:
        name: Of a class whose input is ``pixel_values``, such as ``ViTForImageClassification``.
        options: Of its config, as far as they differ from the default.
    """

    source: Literal["transformers"] = "transformers"
    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    _folder: str | None = PrivateAttr(None)  # of the weights; not in files
    _known_classes: int | None = PrivateAttr(None)
    _known_labels: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def of(cls, model: Any) -> Self | None:
        """The source of a model; None if its class is not one of transformers itself."""
        name = type(model).__name__
        if getattr(_package(), name, None) is not type(model):
            return None
        classes = (cls.classes_in(model) or model.config.num_labels) if "Classification" in name else 0
        found = _preprocessing(str(model.config.name_or_path)) | data_config_of(model)
        return cls(name=name, num_classes=classes, options=_options(model.config), data_config=found)

    @staticmethod
    def classes_in(model: nn.Module) -> int | None:
        return outputs_of_head(getattr(model, "classifier", getattr(model, "cls_classifier", None)))

    @classmethod
    def configured(cls, settings: "Model", num_classes: int) -> Self:
        folder = str(settings.transformers)
        config = _config_in(folder)
        if not config.architectures:
            raise LpvitError(f"models: {folder}/config.json: names no class; add 'architectures'")
        name = config.architectures[0]
        classes = num_classes if "Classification" in name else 0
        found = _preprocessing(folder) | settings.data_config
        source = cls(name=name, num_classes=classes, options=_options(config) | settings.options, data_config=found)
        source._folder, source._known_classes = folder, config.num_labels if classes else None
        of_weights = Path(folder) if settings.checkpoint is None else settings.checkpoint
        if classes and (settings.checkpoint is None or (of_weights / "config.json").is_file()):
            source._known_labels = label_names(_config_in(str(of_weights)))
        return source

    def build(self, pretrained: bool = False, seed: int = 0) -> nn.Module:
        kind = self._class()
        known = {key for key in kind.config_class().to_dict() if not _is_other(key)}
        require_known(self.options, known, f"'{self.name}'", f"transformers' {kind.config_class.__name__}")
        options = dict(self.options) | ({"num_labels": self.num_classes} if self.num_classes else {})
        torch.default_generator.manual_seed(seed)
        try:
            model = kind(kind.config_class(**options))
        except Exception as error:  # inconsistent numbers raise anywhere in transformers
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise LpvitError(f"models: transformers cannot build '{self.name}' with {options}: {reason}") from None
        if pretrained:
            self._load(model)
        return self.described(model, self.preprocessing_of(model))

    def preprocessing_of(self, model: Any) -> dict[str, Any]:
        size = getattr(model.config, "image_size", 224)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        channels = getattr(model.config, "num_channels", 3)
        found = {"mean": (0.5,) * channels, "std": (0.5,) * channels, "interpolation": "bilinear", "crop_pct": 1.0}
        return {**found, "input_size": (channels, *sides)}

    def _class(self) -> Any:
        """The class; only one of transformers that takes images."""
        transformers = _package()
        known = [name for name in dir(transformers) if not name.startswith(("_", "Auto"))]
        kind: Any = getattr(transformers, self.name, None) if self.name in known else None
        if not issubclass(kind if inspect.isclass(kind) else object, transformers.PreTrainedModel):
            raise LpvitError(f"models: transformers has no model '{self.name}'{similar(self.name, known)}")
        if kind.main_input_name != "pixel_values":
            raise LpvitError(f"models: transformers' '{self.name}' takes {kind.main_input_name}, expected pixel_values")
        return kind

    def _load(self, model: Any) -> None:
        """Loads the weights of the folder, whole or in shards; a head of other classes stays as it is."""
        if self._folder is None:
            raise LpvitError(f"models: {self} has no weights; name its folder in the config")
        try:
            given = type(model).from_pretrained(
                self._folder,
                trust_remote_code=False,
                weights_only=True,
                ignore_mismatched_sizes=True,
                config=model.config,
            )
        except Exception as error:
            raise LpvitError(f"models: the weights in '{self._folder}' cannot be read ({one_line(error)})") from None
        model.load_state_dict(given.state_dict())

    @property
    def known_classes(self) -> int | None:
        return self._known_classes

    @property
    def known_labels(self) -> Sequence[str]:
        return self._known_labels

    def __str__(self) -> str:
        return f"transformers' '{self.name}' with {self.options}"


def _config_in(folder: str) -> Any:
    try:
        return _package().AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise LpvitError(f"models: '{folder}' is no folder of transformers ({one_line(error)})") from None


def label_names(config: Any) -> tuple[str, ...]:
    """The classes in a config of transformers, by label; none where they have only numbers."""
    found = getattr(config, "id2label", None)
    names = tuple(str(found[label]) for label in sorted(found)) if isinstance(found, dict) else ()
    return () if names == tuple(f"LABEL_{label}" for label in range(len(names))) else names


def _package() -> Any:
    try:
        import transformers
    except ImportError:
        raise LpvitError("models: needs the package 'transformers'; pip install 'lpvit[transformers]'") from None
    return transformers


def _is_other(key: str) -> bool:
    return key in _BOOKKEEPING or any(part in key for part in _NOT_SHAPES)


def _options(config: Any) -> dict[str, Any]:
    found, default = config.to_dict(), type(config)().to_dict()
    return {key: found[key] for key, value in default.items() if not _is_other(key) and found.get(key, value) != value}


def _preprocessing(folder: str) -> dict[str, Any]:
    """Of ``preprocessor_config.json``, in timm's words: of a folder, or of a name whose file is in the cache."""
    file: Any = Path(folder, _PREPROCESSING)
    if folder and not file.is_file():
        with suppress(ValueError):  # no name
            file = try_to_load_from_cache(folder, _PREPROCESSING)
    if not folder or not isinstance(file, str | Path) or not Path(file).is_file():
        return {}
    found = json.loads(Path(file).read_text())
    size = found.get("size") or {}
    resized = size if isinstance(size, int) else size.get("shortest_edge", size.get("height"))
    crop = found.get("crop_size") if found.get("do_center_crop") else resized
    cropped = crop if isinstance(crop, int) or crop is None else crop.get("height")
    numbers = {"mean": found.get("image_mean"), "std": found.get("image_std")}
    resample = {0: "similar", 1: "lanczos", 2: "bilinear", 3: "bicubic"}.get(found.get("resample", 2), "bilinear")
    crop_pct = {"crop_pct": cropped / resized} if resized and cropped else {}
    return {key: value for key, value in numbers.items() if value} | {"interpolation": resample} | crop_pct
