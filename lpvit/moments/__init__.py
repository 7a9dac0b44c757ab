"""Statistics of layer inputs and output gradients over the calibration images."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
