rule evaluate:
    """Measures a model's accuracy on the validation split, or without classes its agreement with the dense model."""
    input:
        images=f"{DATASET}/images.parquet",
        model=f"{STAGE}.pt",
        dense=reference_of,
        probe=probe_of,
    output:
        accuracy=f"{STAGE}/accuracy.parquet",
    params:
        dataset=images_of,
        probe=probe_images_of,
        stage=kind_of,
        sources=sources("evaluate.py"),
    log:
        f"{STAGE}/accuracy.log",
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(16_000),
        runtime=scaled(120),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/evaluate.py"


rule total_costs:
    """Counts the costs of a model, in total and by layer: MACs, parameters, modelled energy; and joins its accuracy."""
    input:
        model=f"{STAGE}.pt",
        masks=masks_of,
        accuracy=f"{STAGE}/accuracy.parquet",
    output:
        metrics=f"{STAGE}/metrics.parquet",
        layers=f"{STAGE}/layers.parquet",
    params:
        energy=chosen(settings.energy),
        stage=kind_of,
        sources=sources("total_costs.py"),
    log:
        f"{STAGE}/metrics.log",
    resources:
        mem_mb=scaled(8_000),
        runtime=scaled(30),
        gpu=0,
    conda:
        ENVIRONMENT
    script:
        "../scripts/total_costs.py"
