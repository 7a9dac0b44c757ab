"""Image towers of open_clip."""

import dataclasses
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, Self, final

import torch
from pydantic import Field
from torch import nn

from lpvit.errors import LpvitError, one_line, similar
from lpvit.models.sources.arguments import require_known
from lpvit.models.sources.source import Source

if TYPE_CHECKING:
    from lpvit.models.settings import Model

_OF_ALL = ("embed_dim", "quick_gelu")  # options beside those of the tower


@final
class OpenClip(Source):
    """The image tower of a model of open_clip, which gives embeddings.

    Attributes:
        name: In open_clip, such as ``ViT-B-32``.
        weights: Tag of open_clip's weights, such as ``laion2b_s34b_b79k``, for ``pretrained``.
        options: Instead of those of the model: ``embed_dim``, ``quick_gelu``, and what shapes the tower (``layers``,
            ``width``, ``image_size``, ...).
    """

    source: Literal["open_clip"] = "open_clip"
    name: str
    weights: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def configured(cls, settings: "Model", num_classes: int) -> Self:
        name, _, weights = str(settings.open_clip).partition("/")
        shared = {"options": settings.options, "data_config": settings.data_config}
        return cls(name=name, weights=weights or None, **shared)

    def build(self, pretrained: bool = False, seed: int = 0) -> nn.Module:
        open_clip = _package()
        if self.name not in open_clip.list_models():
            raise LpvitError(
                f"models: open_clip has no model '{self.name}'{similar(self.name, open_clip.list_models())}"
            )
        known = {field.name for field in dataclasses.fields(open_clip.CLIPVisionCfg)} | set(_OF_ALL)
        known = {name for name in known if not name.startswith("timm_")} - {"act_kwargs", "norm_kwargs"}
        require_known(self.options, known, f"'{self.name}'", "open_clip.CLIPVisionCfg")
        settings = deepcopy(open_clip.get_model_config(self.name))
        shared = {key: self.options.get(key, settings.get(key, False)) for key in _OF_ALL}
        tower = {key: value for key, value in self.options.items() if key not in _OF_ALL}
        text = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}  # dropped
        torch.default_generator.manual_seed(seed)
        try:
            vision = {**settings["vision_cfg"], **tower}
            model = open_clip.CLIP(vision_cfg=vision, text_cfg=text, **shared).visual
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise LpvitError(f"models: open_clip cannot build '{self.name}' with {self.options}: {reason}") from None
        if pretrained:
            model.load_state_dict(self._weights(open_clip).state_dict())
        size = vision.get("image_size", 224)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        found = open_clip.get_pretrained_cfg(self.name, self.weights) if self.weights else {}
        return self.described(
            model,
            {
                "mean": tuple(found.get("mean") or open_clip.OPENAI_DATASET_MEAN),
                "std": tuple(found.get("std") or open_clip.OPENAI_DATASET_STD),
                "interpolation": found.get("interpolation") or "bicubic",
                "crop_pct": 1.0,
                "input_size": (3, *sides),
            },
        )

    def _weights(self, open_clip: Any) -> nn.Module:
        tags = open_clip.list_pretrained_tags_by_model(self.name)
        if self.weights not in tags:
            raise LpvitError(
                f"models: open_clip has no weights '{self.weights}' of '{self.name}'; there are {', '.join(tags)}"
            )
        try:
            model: nn.Module = open_clip.create_model(self.name, pretrained=self.weights).visual
            return model
        except Exception as error:
            raise LpvitError(
                f"models: open_clip could not fetch the weights of '{self.name}' ({type(error).__name__}); connect "
                "once so that they are cached, or give a local file with 'weights: checkpoint' and 'checkpoint: path'"
            ) from None

    def __str__(self) -> str:
        return f"the image tower of open_clip's '{self.name}' with {self.options}"


def _package() -> Any:
    try:
        import open_clip
    except ImportError:
        raise LpvitError("models: needs the package 'open_clip_torch'; pip install 'lpvit[open-clip]'") from None
    return open_clip
