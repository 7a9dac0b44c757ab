"""Figures, one file each.

A file defines

- ``TITLE``, and ``CAPTION``, which says what to see; ``CATEGORY``, under which Snakemake's report lists it;
- ``draw``, whose parameters name what it is drawn from: artifacts of the workflow as frames (`ARTIFACTS` in
  ``workflow/rules/figures.smk``), and facts as plain values; it gives a matplotlib figure. The figure lies beside the
  first artifact. An artifact with a default may be missing.

An experiment that makes all these artifacts gets the figure, on the page and as SVG and PNG.
"""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
