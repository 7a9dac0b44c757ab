"""Lazy import of modules at first use, so that ``import lpvit`` is sufficient; and which modules there are."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def is_installed(module: str) -> bool:
    """Whether a module can be imported; of one within a package, the package is."""
    try:
        return find_spec(module) is not None
    except ImportError:  # there is no such package
        return False


def modules_of(package: str) -> Callable[[str], ModuleType]:
    """The ``__getattr__`` of a package that imports its modules and subpackages."""

    def find(name: str) -> ModuleType:
        if name.startswith("_") or find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return import_module(f"{package}.{name}")

    return find
