"""Speed and energy on this machine, on request; each job takes all cores, so that no other job runs."""

benchmarked = [
    {
        **{"experiment": name, "dataset": experiment.dataset, "model": experiment.model},
        **{"dense": evaluated(experiment)["dense"], "folder": final_of(experiment)},
    }
    for name, experiment in experiments.items()
]
timed = {  # latency tables, one per model and block shape
    LATENCY.format(**experiment.model_dump(), added="", block=block): experiment
    for experiment in experiments.values()
    for block in blocks_of(experiment.pruning)
    if block != "factors"
}


rule measure_latency:
    """Times the layers of a model, dense and with blocks of a shape or as factors: the cost of a budget in milliseconds."""
    input:
        costs=f"{MODEL}/costs{{added}}.parquet",
    output:
        latency=LATENCY,
    params:
        benchmark=chosen(settings.benchmark, "dtype", "layer_batch_size"),
        block_shape=lambda wildcards: (
            FACTORS if wildcards.block == "factors" else [int(side) for side in wildcards.block.split("x")]
        ),
        sources=sources("measure_latency.py"),
    log:
        f"{MODEL}/latency{{added}}/{{block}}/latency.log",
    threads: all_cores
    resources:
        mem_mb=scaled(16_000),
        runtime=scaled(240),
        gpu=GPUS,
        slurm_extra="--exclusive",
    conda:
        ENVIRONMENT
    script:
        "../scripts/measure_latency.py"


rule benchmark_model:
    """Times a model, masked and block-sparse, against the dense one; measures the energy of all."""
    input:
        dense=f"{MODEL}/dense.pt",
        model=f"{STAGE}.pt",
        masks=masks_of,
        images=f"{DATASET}/images.parquet" if settings.benchmark.engines else [],
        samples=samples_of if settings.benchmark.engines else [],
    output:
        speed=f"{STAGE}/speed.parquet",
        choices=f"{STAGE}/choices.parquet",
        energy=f"{STAGE}/energy.parquet",
    params:
        stage=kind_of,
        benchmark=chosen(settings.benchmark, without="layer_batch_size"),
        dataset=lambda wildcards: images_of(wildcards) if settings.benchmark.engines else None,
        sources=sources("benchmark.py"),
    log:
        f"{STAGE}/speed.log",
    threads: all_cores
    resources:
        mem_mb=scaled(16_000),
        runtime=scaled(240),
        gpu=GPUS,
        slurm_extra="--exclusive",
    conda:
        ENVIRONMENT
    script:
        "../scripts/benchmark.py"


rule summarize_speed:
    """Collects speed and energy of every final model, and the choices of its layers."""
    input:
        speed=[f"{entry['folder']}/speed.parquet" for entry in benchmarked],
        choices=[f"{entry['folder']}/choices.parquet" for entry in benchmarked],
        energy=[f"{entry['folder']}/energy.parquet" for entry in benchmarked],
        dense=[f"{entry['dense']}/metrics.parquet" for entry in benchmarked],
        final=[f"{entry['folder']}/metrics.parquet" for entry in benchmarked],
        latency=list(timed),
        costs=[f"{MODEL}/costs.parquet".format(**experiment.model_dump()) for experiment in timed.values()],
    output:
        markdown=f"{REPORT}/speed.md",
        csv=report(
            f"{REPORT}/speed.csv",
            caption="../report/speed.rst",
            category="Speed",
            labels={"content": "all models (CSV)"},
        ),
        choices=report(
            f"{REPORT}/choices.csv",
            caption="../report/choices.rst",
            category="Speed",
            labels={"content": "sparse and dense layers (CSV)"},
        ),
        speed_up=f"{REPORT}/speed_up.csv",
    params:
        benchmarked=benchmarked,
        timed=[{"dataset": experiment.dataset, "model": experiment.model} for experiment in timed.values()],
        sources=sources("summarize_speed.py"),
    log:
        f"{REPORT}/speed.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/summarize_speed.py"


use rule write_page as write_speed_to_page with:
    """Writes the page again, with the measured speed."""
    input:
        **page_inputs(),
        page=f"{REPORT}/index.html",
        speed=f"{REPORT}/speed.csv",
    output:
        touch(f"{REPORT}/.page_with_speed"),  # the page exists before anything is measured, so it is an input
    log:
        f"{REPORT}/page_with_speed.log",


rule benchmark:
    """Measures speed and energy of every experiment's final model, and adds them to the report."""
    input:
        f"{RESULTS}/plan.parquet",
        f"{REPORT}/speed.csv",
        report_figures("speed", *(["speed_up"] if timed else [])),
        f"{REPORT}/.page_with_speed",
