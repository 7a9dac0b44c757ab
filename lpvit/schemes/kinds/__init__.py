"""Schemes, one folder each: what makes a model compute less beside the blocks that are gone from its weights.

A folder's ``__init__.py`` holds one `lpvit.schemes.settings.Scheme`, which changes a model in place from outside, by
hooks and submodules: no code of timm is copied, names of layers stay as they are. A submodule with a method
``anneal(progress)`` is told how much of a training is done, from 0 to 1, before every step.
"""
