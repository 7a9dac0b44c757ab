"""Figures, tables and the HTML page, from data frames."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
