rule collect_statistics:
    """Reduces the gradients of the calibration images to blocks: their average, image by image, or both."""
    input:
        dense=f"{MODEL}/dense.pt",
        samples=f"{CALIBRATION}/samples.parquet",
    output:
        statistics=f"{PRUNING}/statistics.pt",
    params:
        dataset=images_of,
        batch_size=batch_size_of,
        needed=lambda wildcards: settings.prunings[wildcards.pruning].statistics_needed,
        sources=sources("collect_statistics.py"),
    log:
        f"{PRUNING}/statistics.log",
    benchmark:
        f"{PRUNING}/statistics.time.tsv"
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
    """Scores the blocks, and measures or predicts what pruning them costs: one curve a layer."""
    input:
        statistics=f"{PRUNING}/statistics.pt",
        dense=branch(measures_images, then=f"{MODEL}/dense.pt", otherwise=[]),
        samples=branch(measures_images, then=f"{CALIBRATION}/samples.parquet", otherwise=[]),
    output:
        blocks=f"{PRUNING}/blocks.parquet",
        curves=f"{PRUNING}/curves.parquet",
    params:
        dataset=images_of,
        batch_size=batch_size_of,
        pruning=lambda wildcards: chosen(settings.prunings[wildcards.pruning]),
        sources=sources("measure_rate_distortion.py"),
    log:
        f"{PRUNING}/curves.log",
    benchmark:
        f"{PRUNING}/curves.time.tsv"
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
    """Runs all pruning rounds of a budget but the last, and measures the model that they leave."""
    input:
        dense=f"{MODEL}/dense.pt",
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
        sources=sources("prune_iteratively.py"),
    log:
        f"{ROUNDS}/rounds.log",
    benchmark:
        f"{ROUNDS}/rounds.time.tsv"
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(32_000),
        runtime=scaled(480),
        gpu=GPUS,
    conda:
        ENVIRONMENT
    script:
        "../scripts/prune_iteratively.py"


rule allocate_sparsity:
    """Gives every layer its keep ratio under the budget."""
    input:
        blocks=last_step("blocks.parquet"),
        curves=last_step("curves.parquet"),
        costs=costs_of,
        latency=latency_of,
    output:
        allocation=f"{BUDGET}/allocation.parquet",
    params:
        budget=lambda wildcards: chosen(budget_of(wildcards), without="reconstruction"),
        pruning=lambda wildcards: chosen(settings.prunings[wildcards.pruning], "block_shape"),
        energy=energy_of,
        sources=sources("allocate_sparsity.py"),
    log:
        f"{BUDGET}/allocation.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/allocate_sparsity.py"


rule build_masks:
    """Keeps the most salient blocks of every layer, zeroes the others, fits what stays if asked, and adds schemes."""
    input:
        dense=f"{MODEL}/dense.pt",
        blocks=last_step("blocks.parquet"),
        allocation=f"{BUDGET}/allocation.parquet",
        samples=branch(is_reconstructed, then=f"{CALIBRATION}/samples.parquet", otherwise=[]),
    output:
        masks=f"{BUDGET}/masks.pt",
        pruned=f"{BUDGET}/pruned.pt",
    params:
        dataset=lambda wildcards: images_of(wildcards) if is_reconstructed(wildcards) else None,
        batch_size=lambda wildcards: batch_size_of(wildcards) if is_reconstructed(wildcards) else None,
        pruning=lambda wildcards: chosen(settings.prunings[wildcards.pruning], "block_shape"),
        schemes=schemes_of,
        sources=sources("build_masks.py"),
    log:
        f"{BUDGET}/masks.log",
    benchmark:
        f"{BUDGET}/masks.time.tsv"
    wildcard_constraints:
        pruning=prunings_of("blocks"),
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
    """Makes the whole model narrower, and prunes no block: what block sparsity has to beat."""
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
    benchmark:
        f"{BUDGET}/masks.time.tsv"
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
    """Predicts how far the layers' distortions add up, under the masks of an experiment."""
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
    conda:
        ENVIRONMENT
    script:
        "../scripts/measure_interactions.py"
