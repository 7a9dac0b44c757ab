"""The config file: its sections, its checks, its generated reference."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
