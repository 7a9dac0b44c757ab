"""Parquet schemas and `.pt` artifacts: complete or not there; digests of files and code."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
