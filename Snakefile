"""The workflow lies in `workflow/`; here it is found by a plain `snakemake`."""


include: "workflow/Snakefile"


workflow.default_target = "all"  # which an included file cannot say
