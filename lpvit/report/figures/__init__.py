"""Registry of figures, one file each.

A file defines

- ``TITLE``, ``CAPTION``, its explanation, and ``CATEGORY``, its group in Snakemake's report;
- ``draw``, whose parameters name its inputs: artifacts of the workflow as frames (`ARTIFACTS` in
  ``workflow/rules/figures.smk``), and facts as plain values; it returns a matplotlib figure. The figure is saved in
  the folder of the first artifact. An artifact with a default may be missing.

An experiment with all these artifacts gets the figure, on the page and as SVG and PNG.
"""

from lpvit.lazy import modules_of

__getattr__ = modules_of(__name__)
