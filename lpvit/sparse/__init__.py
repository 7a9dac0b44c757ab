"""Block-sparse linear layers that run faster than dense ones: storage, kernels, and the swap into a timm model."""

from lpvit.sparse.linear import BlockSparseLinear
from lpvit.sparse.model import LayerChoice, sparsify
from lpvit.sparse.storage import compress, decompress

__all__ = ["BlockSparseLinear", "LayerChoice", "compress", "decompress", "sparsify"]
