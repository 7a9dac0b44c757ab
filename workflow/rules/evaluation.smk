rule evaluate_dense:
    """Measures the dense model's accuracy on the validation split, and counts its costs."""
    input:
        images=f"{DATASET}/images.parquet",
        model=f"{MODEL}/dense.pt",
        masks=[],
    output:
        metrics=f"{MODEL}/dense/metrics.parquet",
        layers=f"{MODEL}/dense/layers.parquet",
    params:
        dataset=images_of,
        energy=chosen(settings.energy),
        stage="dense",
        sources=sources("evaluate.py"),
    log:
        f"{MODEL}/dense/metrics.log",
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(16_000),
        runtime=scaled(120),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/evaluate.py"


use rule evaluate_dense as evaluate_pruned with:
    """Measures the pruned model's accuracy on the validation split, and counts its costs."""
    input:
        images=f"{DATASET}/images.parquet",
        model=f"{BUDGET}/pruned.pt",
        masks=f"{BUDGET}/masks.pt",
    output:
        metrics=f"{BUDGET}/pruned/metrics.parquet",
        layers=f"{BUDGET}/pruned/layers.parquet",
    params:
        dataset=images_of,
        energy=chosen(settings.energy),
        stage="pruned",
        sources=sources("evaluate.py"),
    log:
        f"{BUDGET}/pruned/metrics.log",


use rule evaluate_dense as evaluate_finetuned with:
    """Measures the fine-tuned model's accuracy on the validation split, and counts its costs."""
    input:
        images=f"{DATASET}/images.parquet",
        model=f"{RECIPE}/finetuned.pt",
        masks=f"{RECIPE}/masks.pt",
    output:
        metrics=f"{RECIPE}/finetuned/metrics.parquet",
        layers=f"{RECIPE}/finetuned/layers.parquet",
    params:
        dataset=images_of,
        energy=chosen(settings.energy),
        stage="finetuned",
        sources=sources("evaluate.py"),
    log:
        f"{RECIPE}/finetuned/metrics.log",


use rule evaluate_dense as evaluate_quantised with:
    """Measures the pruned, quantised model's accuracy on the validation split, and counts its costs."""
    input:
        images=f"{DATASET}/images.parquet",
        model=f"{BUDGET}/{QUANTISED}.pt",
        masks=f"{BUDGET}/masks.pt",
    output:
        metrics=f"{BUDGET}/{QUANTISED}/metrics.parquet",
        layers=f"{BUDGET}/{QUANTISED}/layers.parquet",
    params:
        dataset=images_of,
        energy=chosen(settings.energy),
        stage="quantised",
        sources=sources("evaluate.py"),
    log:
        f"{BUDGET}/{QUANTISED}/metrics.log",


use rule evaluate_dense as evaluate_finetuned_quantised with:
    """Measures the fine-tuned, quantised model's accuracy on the validation split, and counts its costs."""
    input:
        images=f"{DATASET}/images.parquet",
        model=f"{RECIPE}/{QUANTISED}.pt",
        masks=f"{RECIPE}/masks.pt",
    output:
        metrics=f"{RECIPE}/{QUANTISED}/metrics.parquet",
        layers=f"{RECIPE}/{QUANTISED}/layers.parquet",
    params:
        dataset=images_of,
        energy=chosen(settings.energy),
        stage="finetuned_quantised",
        sources=sources("evaluate.py"),
    log:
        f"{RECIPE}/{QUANTISED}/metrics.log",
