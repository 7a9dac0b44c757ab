"""Tables of the report: summary, speed, the paper's rows."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
