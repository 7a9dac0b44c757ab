"""Schemes, one file each: what makes a model compute less beside the blocks that are gone from its weights.

A file defines ``Settings``, its keys in the config, and ``add(model, settings)``, which changes a model in place from
outside, by hooks and submodules: no code of timm is copied, names of layers stay as they are. It raises `LpvitError`
where a model is not of the kind that it works on. A submodule with a method ``anneal(progress)`` is told how much of a
training is done, from 0 to 1, before every step.
"""
