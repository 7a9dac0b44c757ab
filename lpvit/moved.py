"""Forwards old paths of modules and names with a `DeprecationWarning` for one more release.

All names here are below `lpvit`.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_KEPT_THEIR_NAMES = {  # old package -> new package -> modules
    "curves": {
        "allocation": "ranking",
        "structures.blocks": "correction curve distortions distortions.empirical distortions.gauss_newton "
        "distortions.taylor interactions masking products rate_distortion saliencies saliencies.gauss_newton "
        "saliencies.l1 saliencies.taylor scores settings statistics",
    },
    "measure": {
        "benchmark": "engines settings speed",
        "inference": "choice layer_latency sparsify",
    },
    "models": {
        "costs": "cost energy",
        "export": "onnx onnx_int8",
        "models.analysis": "layers network passes trace",
        "models.sources": "arguments checkpoints dense families pretrained",
        "schemes": "attention scheme",
    },
    "models.schemes": {"schemes.kinds": "sparse_attention token_merging token_selection"},
    "sparse": {"export": "openvino"},
    "weights": {
        "quantisation": "rounding settings",
        "refitting": "least_squares reconstruction",
        "structures.blocks": "masks",
        "structures.width": "narrowing",
    },
}
MODULES = {
    f"{old}.{module}": f"{new}.{module}"
    for old, places in _KEPT_THEIR_NAMES.items()
    for new, modules in places.items()
    for module in modules.split()
} | {
    "curves": "structures.blocks",
    "measure.fusion": "inference.attention_fusion",
    "measure.joining": "inference.layer_fusion",
    "models.blocks": "structures.blocks.grid",
    "models.pattern_attention": "schemes.kinds.sparse_attention.pattern",
    "models.quantised": "quantisation.layers",
    "models.schemes": "schemes.kinds",
    "models.token_merger": "schemes.kinds.token_merging.merger",
    "models.token_scorer": "schemes.kinds.token_selection.scorer",
    "report.facts": "report.environment",
    "report.looks": "report.style",
    "report.panels": "report.interactive",
    "report.paper": "report.tables.paper",
    "report.speed": "report.tables.speed",
    "report.tradeoff": "report.figures.tradeoff",
    "training.course": "training.progress",
    "variants": "strategies",
    "weights": "refitting",
    "weights.steps": "pruning.rounds",
    "weights.quantisation": "quantisation.quantise",
}
NAMES = {  # name that moved to another module than the rest of its module -> that module
    "curves.products.GRADIENT_NUMBERS": "moments.gradients",
    "curves.statistics.averaged_gradients": "structures.blocks.statistics.averaged_gradients",
    "curves.statistics.mean_squared_products": "structures.blocks.statistics.block_products",
    "models.architecture.create_model": "models.sources.timm",
    "models.architecture.fit_heads": "structures.width.edit",
    "models.architecture.input_size": "models.sources.timm",
    "models.architecture.nearest_model": "models.sources.timm",
    "models.quantised.LARGEST": "quantisation.rounding",
    "models.scheme.add_scheme": "schemes.edit",
    "models.settings.Energy": "costs.settings",
    "models.settings.Scheme": "schemes.settings",
    "store.schemas.empty_frame": "store.tables",
    "store.schemas.read_parquet": "store.tables",
    "store.schemas.write_parquet": "store.tables",
    "weights.reconstruction.pruned_weights": "structures.blocks.weights",
    "weights.reconstruction.reconstruct": "structures.blocks.weights",
}


def forwards(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module, given its full name, for names that have moved."""

    def find(name: str) -> Any:
        place = NAMES.get(f"{module.removeprefix('lpvit.')}.{name}")
        if place is None:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        _warn(f"{module}.{name}", f"lpvit.{place}.{name}", 3)
        return getattr(import_module(f"lpvit.{place}"), name)

    return find


def _warn(old: str, new: str, level: int) -> None:
    warnings.warn(
        f"{old} is {new} now; the next release removes the old path",
        DeprecationWarning,
        stacklevel=level + 1,
    )


class OldPaths(MetaPathFinder, Loader):
    """Finds modules by their old paths and forwards their names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        old = name.removeprefix("lpvit.")
        if old == name or old not in MODULES:
            return None
        return ModuleSpec(name, self, is_package=any(other.startswith(f"{old}.") for other in MODULES))

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.removeprefix("lpvit.")
        new = f"lpvit.{MODULES[old]}"
        is_package = hasattr(module, "__path__")  # imported with each of its modules, which issue the warning
        if not is_package:
            _warn(module.__name__, new, 2)

        def find(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")
            if f"{old}.{name}" in MODULES:
                return import_module(f"{module.__name__}.{name}")
            if is_package:
                _warn(f"{module.__name__}.{name}", f"{new}.{name}", 2)
            return getattr(import_module(f"lpvit.{NAMES.get(f'{old}.{name}', MODULES[old])}"), name)

        module.__getattr__ = find  # type: ignore[method-assign]


def install() -> None:
    """Makes old paths importable; existing modules are found first."""
    sys.meta_path.append(OldPaths())
