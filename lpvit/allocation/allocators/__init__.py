"""Allocators, one file each: the rules that give every layer its sparsity.

A file defines one of two functions, of the prunable layers in the order of the model (``Sequence[Layer]``):

- ``priorities(layers, requirement)``: a priority for each of the first L blocks of every layer, shape (L,),
  non-decreasing. Over the whole model, blocks go by rising priority until the budget is met to one block.
- ``blocks_pruned(layers, requirements)``: the blocks pruned in every layer, which together meet one budget or two.

and, where it needs them,

- ``Settings``, its keys in the config; the function then takes them as last argument;
- ``FLOORS`` and ``raise_floors(floors, blocks)``, in words and in blocks: what layers keep beyond ``min_keep_ratio``.

L = blocks of a layer, least salient first, that may be pruned.
"""
