"""Speed and energy on the machine at hand, on request; all cores for each job, so that nothing runs beside it."""

benchmarked = [
    {
        **{"experiment": name, "dataset": experiment.dataset, "model": experiment.model},
        **{"dense": evaluated(experiment)["dense"], "folder": final_of(experiment)},
    }
    for name, experiment in experiments.items()
]
for_engines = (
    {"images": f"{DATASET}/images.parquet", "samples": f"{CALIBRATION}/samples.parquet"}
    if settings.benchmark.engines
    else {}
)
timed = {  # latency tables, one per model and block shape
    LATENCY.format(**experiment.model_dump(), block=block_of(experiment.pruning)): experiment
    for experiment in experiments.values()
    if settings.prunings[experiment.pruning].structure == "blocks"
}


rule measure_latency:
    """Times the layers of a model, dense and with blocks of a shape pruned: the cost of a budget in milliseconds."""
    input:
        costs=f"{MODEL}/costs.parquet",
    output:
        latency=LATENCY,
    params:
        benchmark=chosen(settings.benchmark, "dtype", "layer_batch_size"),
        block_shape=lambda wildcards: [int(side) for side in wildcards.block.split("x")],
        sources=sources("measure_latency.py"),
    log:
        f"{MODEL}/latency/{{block}}/latency.log",
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


rule benchmark_pruned:
    """Times the pruned model, masked and block-sparse, against the dense one; measures the energy of all."""
    input:
        **for_engines,
        dense=f"{MODEL}/dense.pt",
        model=f"{BUDGET}/pruned.pt",
        masks=f"{BUDGET}/masks.pt",
    output:
        speed=f"{BUDGET}/pruned/speed.parquet",
        choices=f"{BUDGET}/pruned/choices.parquet",
        energy=f"{BUDGET}/pruned/energy.parquet",
    params:
        stage="pruned",
        benchmark=chosen(settings.benchmark, without="layer_batch_size"),
        dataset=lambda wildcards: images_of(wildcards) if settings.benchmark.engines else None,
        sources=sources("benchmark.py"),
    log:
        f"{BUDGET}/pruned/speed.log",
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


use rule benchmark_pruned as benchmark_finetuned with:
    """Times the fine-tuned model, masked and block-sparse, against the dense one; measures the energy of all."""
    input:
        **for_engines,
        dense=f"{MODEL}/dense.pt",
        model=f"{RECIPE}/finetuned.pt",
        masks=f"{RECIPE}/masks.pt",
    output:
        speed=f"{RECIPE}/finetuned/speed.parquet",
        choices=f"{RECIPE}/finetuned/choices.parquet",
        energy=f"{RECIPE}/finetuned/energy.parquet",
    params:
        stage="finetuned",
        benchmark=chosen(settings.benchmark, without="layer_batch_size"),
        dataset=lambda wildcards: images_of(wildcards) if settings.benchmark.engines else None,
        sources=sources("benchmark.py"),
    log:
        f"{RECIPE}/finetuned/speed.log",


use rule benchmark_pruned as benchmark_quantised with:
    """Times the pruned and quantised model, block-sparse, against the dense one; measures the energy of both."""
    input:
        **for_engines,
        dense=f"{MODEL}/dense.pt",
        model=f"{BUDGET}/{QUANTISED}.pt",
        masks=f"{BUDGET}/masks.pt",
    output:
        speed=f"{BUDGET}/{QUANTISED}/speed.parquet",
        choices=f"{BUDGET}/{QUANTISED}/choices.parquet",
        energy=f"{BUDGET}/{QUANTISED}/energy.parquet",
    params:
        stage="quantised",
        benchmark=chosen(settings.benchmark, without="layer_batch_size"),
        dataset=lambda wildcards: images_of(wildcards) if settings.benchmark.engines else None,
        sources=sources("benchmark.py"),
    log:
        f"{BUDGET}/{QUANTISED}/speed.log",


use rule benchmark_pruned as benchmark_finetuned_quantised with:
    """Times the fine-tuned and quantised model, block-sparse, against the dense one; and their energy."""
    input:
        **for_engines,
        dense=f"{MODEL}/dense.pt",
        model=f"{RECIPE}/{QUANTISED}.pt",
        masks=f"{RECIPE}/masks.pt",
    output:
        speed=f"{RECIPE}/{QUANTISED}/speed.parquet",
        choices=f"{RECIPE}/{QUANTISED}/choices.parquet",
        energy=f"{RECIPE}/{QUANTISED}/energy.parquet",
    params:
        stage="finetuned_quantised",
        benchmark=chosen(settings.benchmark, without="layer_batch_size"),
        dataset=lambda wildcards: images_of(wildcards) if settings.benchmark.engines else None,
        sources=sources("benchmark.py"),
    log:
        f"{RECIPE}/{QUANTISED}/speed.log",


rule summarize_speed:
    """Gathers what every final model reached, and which of its layers stayed dense."""
    input:
        speed=[f"{entry['folder']}/speed.parquet" for entry in benchmarked],
        choices=[f"{entry['folder']}/choices.parquet" for entry in benchmarked],
        energy=[f"{entry['folder']}/energy.parquet" for entry in benchmarked],
        dense=[f"{entry['dense']}/metrics.parquet" for entry in benchmarked],
        final=[f"{entry['folder']}/metrics.parquet" for entry in benchmarked],
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
        svg=report(
            f"{REPORT}/latency.svg",
            caption="../report/latency.rst",
            category="Speed",
            labels={"content": "accuracy against latency"},
        ),
        png=f"{REPORT}/latency.png",
    params:
        benchmarked=benchmarked,
        series=series,
        sources=sources("summarize_speed.py"),
    log:
        f"{REPORT}/speed.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/summarize_speed.py"


rule plot_speed_up:
    """Draws the speed-up of layers against their sparsity, for the block shapes of all experiments."""
    input:
        latency=list(timed),
        costs=[f"{MODEL}/costs.parquet".format(**experiment.model_dump()) for experiment in timed.values()],
    output:
        svg=report(
            f"{REPORT}/speed_up.svg",
            caption="../report/speed_up.rst",
            category="Speed",
            labels={"content": "speed-up against sparsity"},
        ),
        png=f"{REPORT}/speed_up.png",
    params:
        models=[{"dataset": experiment.dataset, "model": experiment.model} for experiment in timed.values()],
        benchmark=chosen(settings.benchmark, "dtype", "layer_batch_size"),
        sources=sources("plot_speed_up.py"),
    log:
        f"{REPORT}/speed_up.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_speed_up.py"


use rule write_page as write_speed_to_page with:
    """Writes the page anew, with the speed that was measured."""
    input:
        **page_inputs(),
        page=f"{REPORT}/index.html",
        speed=f"{REPORT}/speed.csv",
    output:
        touch(f"{REPORT}/.page_with_speed"),  # the page itself, which is there before anything is measured, is an input
    log:
        f"{REPORT}/page_with_speed.log",


rule benchmark:
    """Measures speed and energy of every experiment's final model, and adds them to the report."""
    input:
        f"{RESULTS}/plan.parquet",
        f"{REPORT}/speed.csv",
        *([f"{REPORT}/speed_up.svg"] if timed else []),
        f"{REPORT}/.page_with_speed",
