"""Narrower dense models: the baseline that removes whole features."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
