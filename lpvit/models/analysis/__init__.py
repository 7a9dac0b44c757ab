"""Structural analysis of a model: linear layers, residual branches, and modules a forward pass can resume after."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
