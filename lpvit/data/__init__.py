"""Datasets, calibration samples, image loaders."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
