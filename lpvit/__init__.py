"""Block pruning of Vision Transformers under a compute budget.

The names of ``__all__`` are imported when first used, so that what needs no torch, such as a dry-run, loads none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpvit.allocation.settings import Budget
    from lpvit.api.checkpoint import load, save
    from lpvit.api.export import export_onnx
    from lpvit.api.prune import prune
    from lpvit.api.pruned import Pruned
    from lpvit.api.sparsify import sparsify
    from lpvit.curves.settings import Pruning
    from lpvit.errors import LpvitError
    from lpvit.models.scheme import add_scheme
    from lpvit.models.settings import Scheme

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "LpvitError",
    "Pruned",
    "Pruning",
    "Scheme",
    "add_scheme",
    "export_onnx",
    "load",
    "prune",
    "save",
    "sparsify",
]

_MODULES = {
    "Budget": "allocation.settings",
    "LpvitError": "errors",
    "Pruned": "api.pruned",
    "Pruning": "curves.settings",
    "Scheme": "models.settings",
    "add_scheme": "models.scheme",
    "export_onnx": "api.export",
    "load": "api.checkpoint",
    "prune": "api.prune",
    "save": "api.checkpoint",
    "sparsify": "api.sparsify",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lpvit' has no attribute '{name}'")
    return getattr(import_module(f"lpvit.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
