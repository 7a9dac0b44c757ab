"""What can be removed from a layer; one package per structure."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
