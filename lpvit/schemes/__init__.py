"""Token and attention schemes that reduce computation besides pruning."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
