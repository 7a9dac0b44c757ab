"""What a model is measured by: the tensors of its output that are named, as one vector per image.

A classifier gives logits; others give features, several tensors, a tuple, a dict or a ``ModelOutput``. Distortion is the
mean squared change of the vector. With several tensors each is scaled to unit energy first: a mean squared norm of 1
over some images.

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
    "last_hidden_state",
)


@dataclass(frozen=True)
class Reading:
    """How the output of a model is read.

    Attributes:
        output: Keys or places of tensors, or a function; None takes logits, else pooled features, else the last hidden
            state, of a tuple the first if it is (N, K), and otherwise all tensors.
        scales: Factors of the tensors, if there are several.
    """

    output: Output | None = None
    scales: tuple[float, ...] = ()

    def __call__(self, found: Any) -> Tensor:
        """The vectors, (N, K).

        Raises:
            LpvitError: There is no such tensor, or it is not clear which one counts.
        """
        tensors = [tensor.reshape(len(tensor), -1) for tensor in named_tensors(found, self.output).values()]
        if len(tensors) == 1:
            return tensors[0]
        if len(self.scales) != len(tensors):
            raise LpvitError(f"output: {len(tensors)} tensors, expected {len(self.scales) or 1}; give 'output' again")
        return torch.cat([scale * tensor for scale, tensor in zip(self.scales, tensors, strict=True)], dim=1)


def read(model: nn.Module, found: Any) -> Tensor:
    """What a model returned as one vector per image, (N, K); logits stay as they are.

    Args:
        model: That returned it; says how it is read, if `set_output` was called.
        found: Its output for N images.

    Raises:
        LpvitError: As `Reading`.
    """
    reading: Reading = getattr(model, "lpvit_reading", None) or Reading()
    return reading(found)


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
    energies = [float(tensor.double().square().sum()) / len(images) for tensor in tensors.values()]
    scales = tuple((energy or 1.0) ** -0.5 for energy in energies) if len(energies) > 1 else ()
    model.lpvit_reading = Reading(output, scales)  # type: ignore[assignment]


def named_tensors(found: Any, output: Output | None = None) -> dict[str, Tensor]:
    """The tensors of an output that are named, by name.

    Raises:
        LpvitError: As `Reading`.
    """
    if isinstance(output, str | int):
        output = (output,)
    if callable(output):
        return _all(output(found))
    tensors = _parts(found)
    if output is not None:
        unknown = [key for key in output if str(key) not in tensors]
        if unknown:
            raise LpvitError(f"output: there is no '{one_line(unknown[0])}' in {_shown(found)}")
        return {str(key): tensors[str(key)] for key in output}
    if known := [key for key in _KEYS if key in tensors]:
        return {known[0]: tensors[known[0]]}
    if isinstance(found, tuple) and "0" in tensors and tensors["0"].dim() == 2:
        return {"0": tensors["0"]}
    if len(tensors) == 1 or (tensors and isinstance(found, tuple | list)):
        return tensors
    raise LpvitError(
        f"output: the model returns {_shown(found)}; say with output= what counts: a key, several keys, or a function "
        "that returns tensors"
    )


def _all(found: Any) -> dict[str, Tensor]:
    if tensors := _parts(found):
        return tensors
    raise LpvitError(f"output: the function returns {_shown(found)}, expected tensors")


def _parts(found: Any) -> dict[str, Tensor]:
    """The tensors right inside an output, by key, place or attribute."""
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
    return {str(key): value for key, value in items if isinstance(value, Tensor)}


def _shown(found: Any) -> str:
    """An output in a message, with the shapes of its tensors."""
    if isinstance(found, Tensor):
        return f"a tensor {tuple(found.shape)}"
    parts = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(_parts(found).items())[:8])
    return f"a {type(found).__name__}" + f" of {parts}" * bool(parts)
