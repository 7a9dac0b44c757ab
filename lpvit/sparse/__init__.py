"""Block-sparse linear layers: storage and kernels."""

from lpvit.lazy import modules_of
from lpvit.sparse.linear import BlockSparseLinear
from lpvit.sparse.storage import compress, decompress

__getattr__ = modules_of(__name__)

__all__ = ["BlockSparseLinear", "compress", "decompress"]
