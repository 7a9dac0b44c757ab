"""Block pruning of Vision Transformers under a compute budget."""

__version__ = "0.1.0"
