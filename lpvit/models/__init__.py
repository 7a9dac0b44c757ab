"""Models, their structural analysis, and the edits that compression makes to them."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
