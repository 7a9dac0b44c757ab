"""Distortions, one file each: what pruning blocks of a layer does to the model's output.

A file defines

- ``curves(inputs)``: from `lpvit.structures.blocks.rate_distortion.CurveInputs` to a curve of every layer, schema
  ``CURVES``;
- ``needs()``: what of the calibration it looks at: ``averaged_gradients``, ``block_products``, or the ``images`` anew;

where it needs them, ``Settings``, its keys in the config; both functions then take them as last argument; and ``UNIT``
if its values have one.
"""
