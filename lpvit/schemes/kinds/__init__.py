"""Registry of schemes, one folder each: changes of the forward pass that save computation besides pruning.

A folder's ``__init__.py`` defines one `lpvit.schemes.settings.Scheme`, which changes a model in place by hooks and
submodules: no code of timm is copied, and layer names do not change. It raises `LpvitError` for models that it does not
support. ``anneal(progress)`` of a submodule is called before every optimiser step with the progress of the training,
from 0 to 1.
"""
