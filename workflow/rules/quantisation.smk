"""The last decision: pruned and fine-tuned models in the precision of an experiment's `quantisation`."""


rule quantise_pruned:
    """Rounds the pruned model's weights to int8, on the images that pruned it, or casts it to bfloat16."""
    input:
        model=f"{BUDGET}/pruned.pt",
        masks=f"{BUDGET}/masks.pt",
        samples=branch(rounds_on_images, then=f"{CALIBRATION}/samples.parquet", otherwise=[]),
    output:
        quantised=f"{BUDGET}/{QUANTISED}.pt",
    params:
        stages=["pruned", "quantised"],
        quantisation=lambda wildcards: chosen(settings.quantisations[wildcards.quantisation]),
        images=rounding_images_of,
        sources=sources("quantise.py"),
    log:
        f"{BUDGET}/{QUANTISED}.log",
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(240),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/quantise.py"


use rule quantise_pruned as quantise_finetuned with:
    """Rounds the fine-tuned model's weights to int8, on the images that pruned it, or casts it to bfloat16."""
    input:
        model=f"{RECIPE}/finetuned.pt",
        masks=f"{RECIPE}/masks.pt",
        samples=branch(rounds_on_images, then=f"{CALIBRATION}/samples.parquet", otherwise=[]),
    output:
        quantised=f"{RECIPE}/{QUANTISED}.pt",
    params:
        stages=["finetuned", "finetuned_quantised"],
        quantisation=lambda wildcards: chosen(settings.quantisations[wildcards.quantisation]),
        images=rounding_images_of,
        sources=sources("quantise.py"),
    log:
        f"{RECIPE}/{QUANTISED}.log",
