rule finetune:
    """Trains the pruned model with fixed masks, or prunes the dense one during training."""
    input:
        images=f"{DATASET}/images.parquet",
        dense=basis_of,
        pruned=f"{BUDGET}/pruned.pt",
        masks=f"{BUDGET}/masks.pt",
        teacher=lambda wildcards: teacher_of(wildcards.recipe),
    output:
        finetuned=f"{RECIPE}/finetuned.pt",
        masks=f"{RECIPE}/masks.pt",
        history=f"{RECIPE}/history.parquet",
    params:
        dataset=images_of,
        recipe=lambda wildcards: recipe_of(wildcards.recipe),
        given=lambda wildcards: stamps_of(teacher_of(wildcards.recipe)),
        resume=f"{RECIPE}/resume.pt",
        sources=sources("finetune.py"),
    log:
        f"{RECIPE}/finetuned.log",
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
        "../scripts/finetune.py"
