"""What a model is measured by: the tensors of its output that are named, as one vector per image.

A classifier gives logits; others give features, several tensors, a tuple, a dict or a ``ModelOutput``. Distortion is
the mean squared change of the vector. With several tensors each is scaled to unit energy first: a mean squared norm of
1 over some images.

N = images; K = numbers of an image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError, one_line

Output = str | int | Sequence[str | int] | Callable[[Any], Any]  # keys of what a model returns, or a function of it

_KEYS = (  # of dicts, the first that is there: logits, else pooled features, else the last hidden state
    "logits",
    "pooler_output",
    "pooled_output",
    "image_embeds",
    "image_features",
    "x_norm_clstoken",
    "feature_maps",
    "last_hidden_state",
)


@dataclass(frozen=True)
class Reading:
    """How the output of a model is read.

    Attributes:
        output: Keys or places of tensors, or a function; None takes logits, else pooled features, else the last hidden
            state, of a tuple the first if it is (N, K), and otherwise all tensors.
        scales: Factors of the tensors, if there are several; without them they stay as they are.
    """

    output: Output | None = None
    scales: tuple[float, ...] = ()

    def __call__(self, found: Any) -> Tensor:
        """The vectors, (N, K).

        Raises:
            LpvitError: There is no such tensor, or it is not clear which one counts.
        """
        named = named_tensors(found, self.output).values()
        tensors = [tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in named]
        if len(tensors) == 1:
            return tensors[0]
        scales = self.scales or (1.0,) * len(tensors)
        return torch.cat([scale * tensor for scale, tensor in zip(scales, tensors, strict=True)], dim=1)


def read(model: nn.Module, found: Any) -> Tensor:
    """What a model returned as one vector per image, (N, K); logits stay as they are.

    Args:
        model: That returned it; says how it is read, if `set_output` was called.
        found: Its output for N images.

    Raises:
        LpvitError: As `Reading`.
    """
    return reading_of(model)(found)


class _TensorOutput(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return read(self.model, self.model(images))


@torch.no_grad()
def with_tensor_output(model: nn.Module, images: Tensor) -> nn.Module:
    """A model in evaluation mode that returns a tensor (N, K), for engines: itself if it does, else a wrapper.

    Args:
        model: Any.
        images: Some that it takes.
    """
    model.eval()
    return model if isinstance(model(images), Tensor) else _TensorOutput(model).eval()


def reading_of(model: nn.Module) -> Reading:
    """How the output of a model is read: as `set_output` said, or by default."""
    return getattr(model, "lpvit_reading", None) or Reading()


def plain_output(model: nn.Module) -> tuple[str | int, ...]:
    """Keys or places that a model is read by, for a file; empty for the default and for a function."""
    reading: Reading | None = getattr(model, "lpvit_reading", None)
    output = None if reading is None or callable(reading.output) else reading.output
    return () if output is None else (output,) if isinstance(output, str | int) else tuple(output)


@torch.no_grad()
def set_output(model: nn.Module, images: Tensor, output: Output | None = None) -> None:
    """Says what a model is measured by, after a look at what it returns; copies of it remember.

    Args:
        model: In evaluation mode.
        images: Some that it takes, (N, channels, height, width); energies are measured on them.
        output: See `Reading`.

    Raises:
        LpvitError: It returns no such tensor, one that is not (N, ...), or several of which none is known to count.
    """
    found = model(images)
    tensors = named_tensors(found, output)
    for name, tensor in tensors.items():
        if not tensor.dim() or len(tensor) != len(images) or not tensor.is_floating_point():
            raise LpvitError(
                f"output: {type(model).__name__} returns {_shown(found)}; '{name}' for {len(images)} images is not "
                f"({len(images)}, ...); name another with output=, or give a function that returns tensors"
            )
    several = len(tensors) > 1 and not images.is_meta
    energies = [float(tensor.double().square().sum()) / len(images) for tensor in tensors.values() if several]
    scales = tuple((energy or 1.0) ** -0.5 for energy in energies)
    model.lpvit_reading = Reading(output, scales)  # type: ignore[assignment]


def named_tensors(found: Any, output: Output | None = None) -> dict[str, Tensor]:
    """The tensors of an output that are named, by name.

    Raises:
        LpvitError: As `Reading`.
    """
    if callable(output):
        return _all(output(found))
    tensors = _parts(found)
    if output is not None:
        named: dict[str, Tensor] = {}
        for key in (output,) if isinstance(output, str | int) else output:
            if not (of_key := _at(tensors, str(key))):
                raise LpvitError(f"output: there is no '{one_line(key)}' in {_shown(found)}")
            named |= of_key
        return named
    for key in _KEYS:
        if of_key := _at(tensors, key):
            return of_key
    if isinstance(found, tuple) and "0" in tensors and tensors["0"].dim() == 2:
        return {"0": tensors["0"]}
    if len(tensors) == 1 or (tensors and isinstance(found, tuple | list)):
        return tensors
    raise LpvitError(
        f"output: the model returns {_shown(found)}; say with output= what counts: a key, several keys, or a function "
        "that returns tensors"
    )


def _at(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """A tensor, or those of a list at a key."""
    return {name: tensor for name, tensor in tensors.items() if name == key or name.startswith(f"{key}.")}


def _all(found: Any) -> dict[str, Tensor]:
    if tensors := _parts(found):
        return tensors
    raise LpvitError(f"output: the function returns {_shown(found)}, expected tensors")


def _parts(found: Any) -> dict[str, Tensor]:
    """The tensors inside an output, by key, place or attribute; those of a list in it as ``key.0``, ``key.1``, ..."""
    if isinstance(found, Tensor):
        return {"output": found}
    if isinstance(found, Mapping):
        items = list(found.items())
    elif isinstance(found, tuple) and hasattr(found, "_asdict"):
        items = list(found._asdict().items())
    elif isinstance(found, tuple | list):
        items = list(enumerate(found))
    else:
        items = list(vars(found).items()) if is_dataclass(found) and not isinstance(found, type) else []
    parts: dict[str, Tensor] = {}
    for key, value in items:
        several = enumerate(value) if isinstance(value, tuple | list) else ()
        of_key = {str(key): value} | {f"{key}.{place}": part for place, part in several}
        parts |= {name: part for name, part in of_key.items() if isinstance(part, Tensor)}
    return parts


def _shown(found: Any) -> str:
    """An output in a message, with the shapes of its tensors."""
    if isinstance(found, Tensor):
        return f"a tensor {tuple(found.shape)}"
    parts = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(_parts(found).items())[:8])
    return f"a {type(found).__name__}" + f" of {parts}" * bool(parts)
