"""Block pruning of Vision Transformers under a compute budget.

The names of ``__all__`` are imported when first used, so that what needs no torch, such as a dry-run, loads none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpvit.checkpoint import load, save
    from lpvit.config import Budget, Pruning
    from lpvit.errors import LpvitError
    from lpvit.onnx import export_onnx
    from lpvit.pruned import Pruned
    from lpvit.pruning import prune
    from lpvit.sparse import sparsify

__version__ = "0.1.0"

__all__ = ["Budget", "LpvitError", "Pruned", "Pruning", "export_onnx", "load", "prune", "save", "sparsify"]

_MODULES = {
    "Budget": "config",
    "LpvitError": "errors",
    "Pruned": "pruned",
    "Pruning": "config",
    "export_onnx": "onnx",
    "load": "checkpoint",
    "prune": "pruning",
    "save": "checkpoint",
    "sparsify": "sparse",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lpvit' has no attribute '{name}'")
    return getattr(import_module(f"lpvit.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
