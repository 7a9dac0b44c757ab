"""Distributes a budget: options with costs and distortions in, one choice per layer out. NumPy and pandas only."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
