"""Block-sparse linear layers that run faster than dense ones: storage and kernels."""

from lpvit.sparse.linear import BlockSparseLinear
from lpvit.sparse.storage import compress, decompress

__all__ = ["BlockSparseLinear", "compress", "decompress"]
