"""Registry of allocators, one file each: rules that allocate a sparsity to every layer.

A file defines one of two functions of the prunable layers, in the order of the model (``Sequence[Layer]``):

- ``priorities(layers, requirement)``: a priority for each of the first L blocks of every layer, shape (L,),
  non-decreasing. Over the whole model, blocks are pruned by rising priority until the budget is met to one block.
- ``blocks_pruned(layers, requirements)``: blocks pruned in every layer, which together meet one budget or two.

and optionally

- ``Settings``, its keys in the config; the function then takes them as last argument;
- ``FLOORS`` and ``raise_floors(floors, blocks)``, minimum kept beyond ``min_keep_ratio``, as text and in blocks.

L = blocks of a layer, least salient first, that may be pruned.
"""
