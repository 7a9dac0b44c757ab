"""Makes a compressed model fast: sparse layers, fused attention, prologues and epilogues, chosen by measured time."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
