"""Registry of distortions, one file each: estimates of the output change by pruning blocks of a layer.

A file defines

- ``curves(inputs)``: from `lpvit.structures.blocks.rate_distortion.CurveInputs` to a curve of every layer, schema
  ``CURVES``;
- ``needs()``: the calibration data it uses: ``averaged_gradients``, ``block_products``, or another pass over the
  ``images``;

optionally ``Settings``, its keys in the config, which both functions then take as last argument, and ``UNIT`` if its
values have one.
"""
