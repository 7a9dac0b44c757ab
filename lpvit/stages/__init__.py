"""What every workflow script does around its work; checks of a whole config before a run."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
