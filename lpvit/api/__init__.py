"""The public functions: prune, fine-tune, evaluate, save, load, sparsify, export."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
