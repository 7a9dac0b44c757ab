"""Low-rank factors: a layer as two thinner ones, chosen by input covariance and output sensitivity."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
