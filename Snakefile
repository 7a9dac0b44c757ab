"""The workflow lies in `workflow/`; here it is found by a plain `snakemake`."""


include: "workflow/Snakefile"


workflow.default_target = "all"  # an included file cannot set it
