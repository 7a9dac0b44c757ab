"""Registry of loaders, one file each: from image files to batches.

A file defines ``ImageLoader``, an `lpvit.data.loading.Loader`: ``__post_init__`` prepares or raises, ``__iter__``
yields the batches of an epoch in the order of its ``plan``. Its imports may be missing on some machines.
"""
