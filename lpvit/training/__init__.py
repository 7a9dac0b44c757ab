"""Training loop, loss, resuming, launching of processes, evaluation."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
