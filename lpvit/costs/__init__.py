"""Multiply-accumulates, parameters and modelled energy of layers and models."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
