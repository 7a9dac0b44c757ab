"""Several structures under one budget: every layer stays dense or takes the structure that loses least."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
