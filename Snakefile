"""From images to a pruned, fine-tuned and evaluated Vision Transformer. `snakemake --cores all` runs it all."""

from snakemake.utils import min_version

min_version("9.13")


# A file given by --configfile replaces the default one: merged, the default's experiments would run as well.
if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/dense.smk"
include: "workflow/rules/pruning.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/paper.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/benchmark.smk"


localrules:
    all,
    benchmark,
    check_experiments,
    export,


rule all:
    default_target: True
    input:
        report_files(),


onstart:
    hold_folder()


onsuccess:
    print_summary()
