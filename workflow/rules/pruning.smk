rule align_model:
    """Writes the dense model as the same function in aligned bases, where few blocks matter."""
    input:
        dense=f"{MODEL}/dense.pt",
        samples=f"{CALIBRATION}/samples.parquet",
    output:
        aligned=f"{PRUNING}/aligned.pt",
        freedoms=f"{PRUNING}/freedoms.parquet",
    params:
        dataset=images_of,
        batch_size=batch_size_of,
        freedoms=lambda wildcards: settings.prunings[wildcards.pruning].freedoms,
        sources=sources("align_model.py", "lpvit.structures", SALIENCIES, DISTORTIONS, STATISTICS),
    log:
        f"{PRUNING}/aligned.log",
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(240),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/align_model.py"


rule collect_statistics:
    """Reduces the gradients of the calibration images to statistics of every layer, of blocks or as second moments."""
    input:
        dense=basis_of,
        samples=f"{CALIBRATION}/samples.parquet",
    output:
        statistics=f"{PRUNING}/statistics.pt",
    params:
        dataset=images_of,
        batch_size=batch_size_of,
        structure=lambda wildcards: settings.prunings[wildcards.pruning].structure,
        needed=lambda wildcards: settings.prunings[wildcards.pruning].statistics_needed,
        sources=sources("collect_statistics.py", SALIENCIES, DISTORTIONS),
    log:
        f"{PRUNING}/statistics.log",
    cache: CACHED
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(240),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/collect_statistics.py"


rule measure_rate_distortion:
    """Scores what can be removed, and measures or predicts its distortion: one curve a layer."""
    input:
        statistics=f"{PRUNING}/statistics.pt",
        dense=branch(measures_images, then=basis_of, otherwise=[]),
        samples=branch(measures_images, then=f"{CALIBRATION}/samples.parquet", otherwise=[]),
    output:
        blocks=f"{PRUNING}/blocks.parquet",
        curves=f"{PRUNING}/curves.parquet",
    params:
        dataset=images_of,
        batch_size=batch_size_of,
        pruning=measured_by,
        sources=sources("measure_rate_distortion.py", STATISTICS),
    log:
        f"{PRUNING}/curves.log",
    cache: CACHED
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(240),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/measure_rate_distortion.py"


rule prune_iteratively:
    """Runs all pruning rounds of a budget but the last, and measures the resulting model."""
    input:
        dense=basis_of,
        samples=f"{CALIBRATION}/samples.parquet",
        blocks=f"{PRUNING}/blocks.parquet",
        curves=f"{PRUNING}/curves.parquet",
        costs=costs_of,
        latency=latency_of,
    output:
        blocks=f"{ROUNDS}/blocks.parquet",
        curves=f"{ROUNDS}/curves.parquet",
    params:
        dataset=images_of,
        batch_size=batch_size_of,
        budget=lambda wildcards: chosen(budget_of(wildcards)),
        pruning=lambda wildcards: chosen(settings.prunings[wildcards.pruning]),
        energy=energy_of,
        given=latency_stamp_of,
        sources=sources("prune_iteratively.py"),
    log:
        f"{ROUNDS}/rounds.log",
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(480),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/prune_iteratively.py"


rule search_outcome:
    """Compresses to several shares of the MACs and measures each, until the best for the outcome of the budget is known."""
    input:
        dense=basis_of,
        images=f"{DATASET}/images.parquet",
        samples=f"{CALIBRATION}/samples.parquet",
        statistics=branch(compresses_by_statistics, then=f"{PRUNING}/statistics.pt", otherwise=[]),
        blocks=f"{PRUNING}/blocks.parquet",
        curves=f"{PRUNING}/curves.parquet",
        costs=costs_of,
        latency=latency_of,
    output:
        outcomes=f"{BUDGET}/outcomes.parquet",
    params:
        dataset=images_of,
        batch_size=batch_size_of,
        budget=lambda wildcards: chosen(budget_of(wildcards)),
        pruning=compression_of,
        calibration=lambda wildcards: chosen(settings.calibrations[wildcards.calibration], "seed"),
        energy=energy_of,
        sources=sources("search_outcome.py"),
    log:
        f"{BUDGET}/outcomes.log",
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(480),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/search_outcome.py"


rule allocate_sparsity:
    """Allocates the keep ratio of every layer under the budget."""
    input:
        outcomes=branch(is_by_outcome, then=f"{BUDGET}/outcomes.parquet", otherwise=[]),
        blocks=last_step("blocks.parquet"),
        curves=last_step("curves.parquet"),
        costs=costs_of,
        latency=latency_of,
    output:
        allocation=f"{BUDGET}/allocation.parquet",
    params:
        budget=lambda wildcards: chosen(budget_of(wildcards), without="reconstruction"),
        pruning=compression_of,
        energy=energy_of,
        given=latency_stamp_of,
        sources=sources("allocate_sparsity.py"),
    log:
        f"{BUDGET}/allocation.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/allocate_sparsity.py"


rule build_masks:
    """Prunes the model as allocated, refits the remaining weights if asked, and adds schemes."""
    input:
        dense=basis_of,
        blocks=last_step("blocks.parquet"),
        allocation=f"{BUDGET}/allocation.parquet",
        samples=branch(is_reconstructed, then=f"{CALIBRATION}/samples.parquet", otherwise=[]),
        statistics=branch(compresses_by_statistics, then=f"{PRUNING}/statistics.pt", otherwise=[]),
    output:
        masks=f"{BUDGET}/masks.pt",
        pruned=f"{BUDGET}/pruned.pt",
    params:
        dataset=lambda wildcards: images_of(wildcards) if is_reconstructed(wildcards) else None,
        batch_size=lambda wildcards: batch_size_of(wildcards) if is_reconstructed(wildcards) else None,
        pruning=compression_of,
        schemes=schemes_of,
        sources=sources("build_masks.py"),
    log:
        f"{BUDGET}/masks.log",
    wildcard_constraints:
        pruning=prunings_of("blocks", "factors", "mixed"),
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(240),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/build_masks.py"


rule narrow_model:
    """Creates a narrower dense model, the baseline of block sparsity."""
    input:
        dense=f"{MODEL}/dense.pt",
        samples=f"{CALIBRATION}/samples.parquet",
    output:
        masks=f"{BUDGET}/masks.pt",
        pruned=f"{BUDGET}/pruned.pt",
    params:
        dataset=images_of,
        batch_size=batch_size_of,
        macs=lambda wildcards: budget_of(wildcards).macs,
        refit=is_reconstructed,
        schemes=schemes_of,
        sources=sources("narrow_model.py"),
    log:
        f"{BUDGET}/masks.log",
    wildcard_constraints:
        pruning=prunings_of("width"),
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(240),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/narrow_model.py"


rule measure_interactions:
    """Estimates the additivity of the layers' distortions under the masks of an experiment."""
    input:
        statistics=f"{PRUNING}/statistics.pt",
        masks=f"{BUDGET}/masks.pt",
    output:
        interactions=f"{BUDGET}/interactions.parquet",
    params:
        sources=sources("measure_interactions.py"),
    log:
        f"{BUDGET}/interactions.log",
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(60),
        gpu=0,
    conda:
        ENVIRONMENT
    script:
        "../scripts/measure_interactions.py"
