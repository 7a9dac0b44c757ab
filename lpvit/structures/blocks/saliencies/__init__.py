"""Registry of saliencies, one file each: scores of blocks, of which the lowest are pruned first.

A file defines

- ``saliency(tables)``: from a layer's statistics (`lpvit.structures.blocks.statistics`) to scores of its blocks, shape
  (R, C);
- ``needs()``: the data it uses besides sums of weights: ``averaged_gradients`` or ``block_products``.
"""
