"""The act of pruning: measure, allocate, edit, refit, once per round."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
