"""Blocks (tiles) of weight matrices: saliencies, rate-distortion curves, keep masks."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
