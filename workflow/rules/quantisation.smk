rule quantise:
    """Rounds a pruned or fine-tuned model's weights to int8, on its calibration images, or casts it to bfloat16."""
    input:
        model=lambda wildcards: f"{FOLDER}/{trained_stage(wildcards)}.pt".format(**wildcards),
        masks=f"{FOLDER}/masks.pt",
        samples=lambda wildcards: samples_of(wildcards) if rounds_on_images(wildcards) else [],
    output:
        quantised=f"{FOLDER}/{QUANTISED}.pt",
    params:
        stages=lambda wildcards: [trained_stage(wildcards), kind_of(wildcards, QUANTISED)],
        quantisation=lambda wildcards: chosen(settings.quantisations[wildcards.quantisation]),
        images=rounding_images_of,
        sources=sources("quantise.py"),
    log:
        f"{FOLDER}/{QUANTISED}.log",
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(240),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/quantise.py"
