"""Attention whose weights are used by functions, rewritten so that layers use them."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
