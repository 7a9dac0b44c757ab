rule index_images:
    """Lists and checks every image of a dataset, once."""
    output:
        images=f"{DATASET}/images.parquet",
    params:
        dataset=lambda wildcards: chosen(settings.datasets[wildcards.dataset], without=("loader", "probe")),
        listing=lambda wildcards: listing_of(wildcards.dataset),
        sources=sources("index_images.py", "lpvit.data.loaders"),
    log:
        f"{DATASET}/images.log",
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(8_000),
        runtime=scaled(240),
        gpu=0,
    conda:
        ENVIRONMENT
    script:
        "../scripts/index_images.py"


rule sample_calibration:
    """Samples the calibration images from the training split."""
    input:
        images=f"{DATASET}/images.parquet",
    output:
        samples=f"{CALIBRATION}/samples.parquet",
    params:
        calibration=lambda wildcards: chosen(settings.calibrations[wildcards.calibration]),
        sources=sources("sample_calibration.py", "lpvit.data.layouts", "lpvit.data.loaders"),
    log:
        f"{CALIBRATION}/samples.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/sample_calibration.py"
