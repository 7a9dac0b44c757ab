rule check_experiments:
    """Checks in seconds what would otherwise fail after hours: budgets, blocks, weights, teachers, folders."""
    output:
        plan=f"{RESULTS}/plan.parquet",
    params:
        settings=chosen(settings),
        listings={name: listing_of(name) for name in settings.datasets},
        sources=sources("check_experiments.py"),
    log:
        f"{RESULTS}/plan.log",
    # All cores and the highest priority: it runs alone and first. As an input of other stages it would rerun them all.
    threads: 9999
    priority: 100
    conda:
        ENVIRONMENT
    script:
        "../scripts/check_experiments.py"


rule fetch_dense:
    """Creates a dense model that is not trained here: timm's weights, a checkpoint, or random ones."""
    input:
        images=f"{DATASET}/images.parquet",
        checkpoint=checkpoint_of,
    output:
        dense=f"{MODEL}/dense.pt",
        costs=f"{MODEL}/costs.parquet",
    params:
        model=lambda wildcards: chosen(settings.models[wildcards.model]),
        given=lambda wildcards: stamps_of(*checkpoint_of(wildcards)),
        sources=sources("fetch_dense.py"),
    log:
        f"{MODEL}/dense.log",
    cache: CACHED
    wildcard_constraints:
        model=one_of(name for name, model in settings.models.items() if model.recipe is None),
    resources:
        mem_mb=scaled(16_000),
        runtime=scaled(60),
        gpu=0,
    conda:
        ENVIRONMENT
    script:
        "../scripts/fetch_dense.py"


rule train_dense:
    """Trains the dense model: from random weights, from timm's, or from a checkpoint."""
    input:
        images=f"{DATASET}/images.parquet",
        checkpoint=checkpoint_of,
        teacher=lambda wildcards: teacher_of(settings.models[wildcards.model].recipe),
    output:
        dense=f"{MODEL}/dense.pt",
        costs=f"{MODEL}/costs.parquet",
        history=f"{MODEL}/dense_history.parquet",
    params:
        dataset=images_of,
        model=lambda wildcards: chosen(settings.models[wildcards.model]),
        recipe=lambda wildcards: recipe_of(settings.models[wildcards.model].recipe),
        given=lambda wildcards: stamps_of(
            *checkpoint_of(wildcards), teacher_of(settings.models[wildcards.model].recipe)
        ),
        resume=f"{MODEL}/dense_resume.pt",
        sources=sources("train_dense.py"),
    log:
        f"{MODEL}/dense.log",
    cache: CACHED
    wildcard_constraints:
        model=one_of(name for name, model in settings.models.items() if model.recipe is not None),
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(64_000),
        runtime=scaled(24 * 60),
        gpu=GPUS_OF_TRAINING if NODES == 1 else 0,
        nodes=NODES,
        tasks=None if GPUS else NODES,  # otherwise SLURM gives one node to one task
        gres=f"gpu:{GPUS_OF_TRAINING // NODES}" if GPUS and NODES > 1 else None,  # SLURM's, of each node
    conda:
        ENVIRONMENT
    script:
        "../scripts/train_dense.py"


rule count_costs:
    """Counts the costs of the layers of the dense model with schemes."""
    input:
        dense=f"{MODEL}/dense.pt",
    output:
        costs=f"{MODEL}/costs@{{schemes}}.parquet",
    params:
        schemes=lambda wildcards: [chosen(settings.schemes[name]) for name in wildcards.schemes.split("@")],
        sources=sources("count_costs.py"),
    log:
        f"{MODEL}/costs@{{schemes}}.log",
    wildcard_constraints:
        schemes="[^/]+",
    conda:
        ENVIRONMENT
    script:
        "../scripts/count_costs.py"
