"""Architectures: how to rebuild a model; and models with their weights in files."""

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import torch
from pydantic import BeforeValidator, Field, InstanceOf
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from lpvit.errors import LpvitError, one_line
from lpvit.models.analysis.trace import IMAGES, random_images
from lpvit.models.edits import AnyEdit, Edit, apply_edit, edits_of
from lpvit.models.format_1 import architecture_of_format_1
from lpvit.models.outputs import plain_output, set_output
from lpvit.models.sources.checkpoints import require_same_architecture
from lpvit.models.sources.given import Given
from lpvit.models.sources.source import AnySource, Source, source_class
from lpvit.models.sources.timm import Timm
from lpvit.models.sources.transformers import label_names
from lpvit.moved import forwards
from lpvit.settings import Section
from lpvit.store.artifacts import load, save

FORMAT = 2  # of models in artifacts
LARGEST_BUFFERS = 2**26  # largest number of buffer elements: masks and indices of windows
MOST_EDITS = 1000
MOST_CLASSES = 100_000


class Architecture(Section):
    """How to rebuild a model, as plain values.

    Attributes:
        source: Builds the bare model, with its arguments.
        edits: Edits in order.
        classes: Names of the classes in the order of the logits; empty if they are not known.
    """

    source: AnySource
    edits: tuple[AnyEdit, ...] = Field((), max_length=MOST_EDITS)
    classes: tuple[str, ...] = Field((), max_length=MOST_CLASSES)

    @classmethod
    def of(cls, model: nn.Module, options: Mapping[str, Any] | None = None) -> Self:
        """The architecture of a model, as far as it is recorded.

        Args:
            model: From `build`, or from a library.
            options: Arguments of timm besides name, ``num_classes`` and ``pretrained``. Without them they are read from
                the model: all if `build` created it, else only image size, number of channels and stochastic
                depth.

        Raises:
            LpvitError: There are options, but the model has no name in timm.
        """
        if options is not None:
            source: Source = Timm.of(model, options)
        else:
            source = source_of(model).model_copy(update={"output": plain_output(model)})
        return cls(source=source, edits=edits_of(model), classes=classes_of(model))

    def with_edits(self, edits: Sequence[Edit]) -> Self:
        """The same source with these edits and no others."""
        return self.model_copy(update={"edits": tuple(edits)})

    def build(
        self, state: Mapping[str, Tensor] | None = None, given: nn.Module | None = None, **arguments: Any
    ) -> nn.Module:
        """Builds the model, with its source and edits recorded.

        Args:
            state: Its weights; their dtype is kept.
            given: The bare model, changed in place, instead of one that the source builds.
            arguments: Further ones of the source: ``pretrained``, ``seed``.

        Raises:
            LpvitError: The source cannot build it, or an edit does not fit.
        """
        with torch.random.fork_rng(devices=[]):  # the seed is of this model alone
            if given is None:
                model = self.source.build(**arguments)
            else:
                model = self.source.described(given, getattr(given, "pretrained_cfg", None) or {})
            model.lpvit_source = self.source  # type: ignore[assignment]
            record_classes(model, self.classes)
            for edit in self.edits:
                apply_edit(model, edit)
        if state is not None:
            model.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
        if self.source.output:
            set_output(model, random_images(model, IMAGES), self.source.output)
        return model


def source_of(model: nn.Module) -> Source:
    """What builds a model, as recorded or as found; with the classes of its present head."""
    source: Source = getattr(model, "lpvit_source", None) or found_source(model)
    classes = source.classes_in(model)
    return source if classes in (None, source.num_classes) else source.model_copy(update={"num_classes": classes})


def found_source(model: nn.Module) -> Source:
    """Where a model comes from by its class and what its library notes; `Given` if that does not say it."""
    library = type(model).__module__.partition(".")[0]
    found: Source | None = None
    if library in ("transformers", "torchvision"):
        found = source_class(library).of(model)  # type: ignore[attr-defined]
    elif "architecture" in (getattr(model, "pretrained_cfg", None) or {}) and hasattr(model, "num_classes"):
        found = Timm.of(model)  # but for features only, which have no classes
    return found or Given.of(model)


def classes_of(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's classes in the order of its logits, or none; copies of a model keep them.

    Names from before the head was replaced by one of another size are none.
    """
    names = getattr(model, "lpvit_classes", ()) or _named_by_transformers(model)
    return names if not names or source_of(model).num_classes in (0, len(names)) else ()


def record_classes(model: nn.Module, classes: Sequence[str]) -> None:
    """Records the names of a model's classes; in the config of one of transformers as well."""
    model.lpvit_classes = tuple(classes)  # type: ignore[assignment]
    config: Any = getattr(model, "config", None)
    if classes and getattr(config, "num_labels", None) == len(classes):
        config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}


def _named_by_transformers(model: nn.Module) -> tuple[str, ...]:
    return label_names(getattr(model, "config", None)) if "Classification" in type(model).__name__ else ()


def outline(architecture: Architecture, state: Mapping[str, Tensor], given: nn.Module | None = None) -> nn.Module:
    """The model on the meta device, where it needs no memory, to check an architecture from a file.

    Args:
        architecture: From the file.
        state: The tensors of the file. Building stops as soon as there are many more parameters than these.
        given: The bare model, instead of one that the source builds; stays as it is.

    Raises:
        LpvitError: The architecture cannot be built, or is far larger than the file.
    """
    numbers = sum(tensor.numel() for tensor in state.values())
    with torch.device("meta"), _at_most(3 * len(state) + 100):
        try:
            model = architecture.build(given=None if given is None else deepcopy(given).to("meta"))
        except LpvitError:
            raise
        except Exception as error:  # edits that do not fit the model
            raise LpvitError(f"architecture: cannot be built ({type(error).__name__}: {one_line(error)})") from None
    buffers = sum(buffer.numel() for buffer in model.buffers())
    if buffers > max(numbers, LARGEST_BUFFERS):
        raise LpvitError(f"architecture: needs {buffers:.2g} numbers besides its weights, the file has {numbers:.2g}")
    return model


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Limits the number of parameters that this thread can create."""
    made, thread = itertools.count(1), threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if threading.get_ident() == thread and next(made) > parameters:
            raise LpvitError("architecture: has far more parameters than the file")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def extended(
    architecture: Architecture, state: Mapping[str, Tensor], edits: Sequence[Edit]
) -> tuple[Architecture, dict[str, Tensor]]:
    """A model with more edits; their new weights are initialised as in `Architecture.build`.

    Args:
        architecture: Of the model.
        state: Its weights.
        edits: Applied after the existing ones; they keep the shapes of its weights.

    Raises:
        LpvitError: An edit does not fit the model.
    """
    if not edits:
        return architecture, dict(state)
    architecture = architecture.with_edits([*architecture.edits, *edits])
    model = architecture.build()
    model.load_state_dict({**model.state_dict(), **state})
    return architecture, model.state_dict()


class SavedModel(TypedDict):
    """The payload of `dense`, `pruned`, `finetuned` and of quantised models."""

    architecture: Architecture
    state: dict[str, InstanceOf[Tensor]]


class _SavedModel1(TypedDict):
    architecture: Annotated[Architecture, BeforeValidator(architecture_of_format_1)]
    state: dict[str, InstanceOf[Tensor]]


def save_model(
    architecture: Architecture, state: Mapping[str, Tensor], path: str | Path, kind: str, **provenance: Any
) -> None:
    """Writes an architecture and its weights as an artifact (`dense`, `pruned`, `finetuned`, ...)."""
    save({"architecture": architecture.model_dump(), "state": dict(state)}, path, kind, provenance, FORMAT)


def load_model(path: str | Path, kind: str) -> tuple[Architecture, dict[str, Tensor]]:
    """Reads what `save_model` wrote, now or in format 1.

    Raises:
        LpvitError: As `lpvit.store.artifacts.load`, or the weights are not those of the architecture.
    """
    payload = load(path, kind, {FORMAT: SavedModel, 1: _SavedModel1})
    architecture, state = payload["architecture"], payload["state"]
    try:
        model = outline(architecture, state)
        require_same_architecture(model, state, "its weights")
    except LpvitError as error:
        raise LpvitError(f"{path}: {one_line(error)}; delete it and rerun") from None
    return architecture, state


if not TYPE_CHECKING:  # otherwise type checkers accept any name
    __getattr__ = forwards(__name__)
