"""Low-rank factors: a layer as two thinner ones, by what its inputs are and what the logits feel of its outputs."""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
