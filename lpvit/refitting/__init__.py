"""Least-squares refitting of layers, in order of execution, from sums over tokens."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
