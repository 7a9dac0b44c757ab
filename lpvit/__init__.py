"""Block pruning of Vision Transformers under a compute budget.

The names of ``__all__`` and the packages below (`lpvit.pruning`, ...) are imported when first used, so that commands
without torch, such as a dry run, do not load it.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lpvit import moved
from lpvit.lazy import modules_of

if TYPE_CHECKING:
    from lpvit.allocation.settings import Budget
    from lpvit.api.checkpoint import load, save
    from lpvit.api.classes import name_classes
    from lpvit.api.export import export_onnx, export_openvino
    from lpvit.api.prune import prune
    from lpvit.api.pruned import Pruned
    from lpvit.api.quantise import quantise
    from lpvit.api.sparsify import sparsify
    from lpvit.api.training import evaluate, finetune, probe
    from lpvit.api.transform import transform
    from lpvit.api.weights import load_weights, original_state_dict
    from lpvit.errors import LpvitError
    from lpvit.progress import show_progress
    from lpvit.quantisation.settings import Quantisation
    from lpvit.schemes.edit import add_scheme
    from lpvit.schemes.settings import Scheme
    from lpvit.structures.blocks.settings import Blocks
    from lpvit.structures.factors.settings import Factors
    from lpvit.structures.mixed.settings import Mixed
    from lpvit.structures.width.settings import Width
    from lpvit.training.evaluation import Accuracy
    from lpvit.training.features import Agreement
    from lpvit.training.probing import Probe
    from lpvit.training.settings import Recipe

    Pruning = Blocks

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "Agreement",
    "Blocks",
    "Budget",
    "Factors",
    "LpvitError",
    "Mixed",
    "Probe",
    "Pruned",
    "Quantisation",
    "Recipe",
    "Scheme",
    "Width",
    "add_scheme",
    "evaluate",
    "export_onnx",
    "export_openvino",
    "finetune",
    "load",
    "load_weights",
    "name_classes",
    "original_state_dict",
    "probe",
    "prune",
    "quantise",
    "save",
    "show_progress",
    "sparsify",
    "transform",
]

_MODULES = {
    "Accuracy": "training.evaluation",
    "Agreement": "training.features",
    "Blocks": "structures.blocks.settings",
    "Budget": "allocation.settings",
    "LpvitError": "errors",
    "Probe": "training.probing",
    "Pruned": "api.pruned",
    "Quantisation": "quantisation.settings",
    "Recipe": "training.settings",
    "Scheme": "schemes.settings",
    "Factors": "structures.factors.settings",
    "Mixed": "structures.mixed.settings",
    "Width": "structures.width.settings",
    "add_scheme": "schemes.edit",
    "evaluate": "api.training",
    "export_onnx": "api.export",
    "export_openvino": "api.export",
    "finetune": "api.training",
    "original_state_dict": "api.weights",
    "load": "api.checkpoint",
    "load_weights": "api.weights",
    "name_classes": "api.classes",
    "probe": "api.training",
    "prune": "api.prune",
    "quantise": "api.quantise",
    "save": "api.checkpoint",
    "show_progress": "progress",
    "sparsify": "api.sparsify",
    "transform": "api.transform",
}

_OLD_NAMES = {"Pruning": "Blocks"}  # of the last release, for one more

moved.install()
_room = modules_of(__name__)


def __getattr__(name: str) -> Any:
    if name in _OLD_NAMES:
        warnings.warn(f"lpvit.{name} is now lpvit.{_OLD_NAMES[name]}", DeprecationWarning, stacklevel=2)
        name = _OLD_NAMES[name]
    if name not in _MODULES:
        return _room(name)
    return getattr(import_module(f"lpvit.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
