"""Loaders, one file each: ways from image files to batches.

A file defines ``ImageLoader``, an `lpvit.data.loading.Loader`: what it prepares or refuses in ``__post_init__``, and in
``__iter__`` the batches of an epoch, in the order of its ``plan``. What it imports may be missing on some machines.
"""
