include: "report_files.smk"


rule summarize:
    """Gathers what every experiment reached."""
    input:
        metrics=[f"{evaluation['folder']}/metrics.parquet" for evaluation in evaluations],
    output:
        markdown=f"{REPORT}/summary.md",
        csv=report(
            f"{REPORT}/summary.csv",
            caption="../report/summary.rst",
            category="Results",
            labels={"what": "all models", "form": "table"},
        ),
    params:
        evaluations=evaluations,
        sources=sources("summarize.py"),
    log:
        f"{REPORT}/summary.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/summarize.py"


rule plot_tradeoff:
    """Draws accuracy against MACs for all experiments."""
    input:
        summary=f"{REPORT}/summary.csv",
    output:
        figure=report(
            f"{REPORT}/tradeoff.png",
            caption="../report/tradeoff.rst",
            category="Results",
            labels={"what": "accuracy against MACs", "form": "figure"},
        ),
    params:
        sources=sources("plot_tradeoff.py"),
    log:
        f"{REPORT}/tradeoff.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_tradeoff.py"


rule plot_curves:
    """Draws the rate-distortion curves of all layers."""
    input:
        curves=f"{PRUNING}/curves.parquet",
        costs=f"{MODEL}/costs.parquet",
    output:
        figure=report(
            f"{PRUNING}/curves.png",
            caption="../report/curves.rst",
            category="Rate-distortion curves",
            labels={
                "dataset": "{dataset}",
                "model": "{model}",
                "calibration": "{calibration}",
                "pruning": "{pruning}",
            },
        ),
    params:
        pruning=lambda wildcards: chosen(settings.prunings[wildcards.pruning], "block_shape", "distortion", "form", "saliency"),
        sources=sources("plot_curves.py"),
    log:
        f"{PRUNING}/curves.png.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_curves.py"


rule plot_allocation:
    """Draws the keep ratio of every layer."""
    input:
        allocation=f"{BUDGET}/allocation.parquet",
        costs=costs_of,
    output:
        figure=report(
            f"{BUDGET}/allocation.png",
            caption="../report/allocation.rst",
            category="Pruned models",
            labels={
                "dataset": "{dataset}",
                "model": "{model}",
                "pruning": "{calibration}/{pruning}",
                "budget": "{budget}",
                "figure": "keep ratios",
            },
        ),
    params:
        allocator=lambda wildcards: budget_of(wildcards).allocator,
        sources=sources("plot_allocation.py"),
    log:
        f"{BUDGET}/allocation.png.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_allocation.py"


rule trace_frontier:
    """Traces what two budgets could be at equal distortion."""
    input:
        blocks=last_step("blocks.parquet"),
        curves=last_step("curves.parquet"),
        costs=costs_of,
        latency=latency_of,
        allocation=f"{BUDGET}/allocation.parquet",
    output:
        frontier=f"{BUDGET}/frontier.parquet",
        figure=report(
            f"{BUDGET}/frontier.png",
            caption="../report/frontier.rst",
            category="Pruned models",
            labels={
                "dataset": "{dataset}",
                "model": "{model}",
                "pruning": "{calibration}/{pruning}",
                "budget": "{budget}",
                "figure": "two budgets",
            },
        ),
    params:
        budget=lambda wildcards: chosen(budget_of(wildcards), without="reconstruction"),
        pruning=lambda wildcards: chosen(settings.prunings[wildcards.pruning], "block_shape"),
        energy=energy_of,
        sources=sources("trace_frontier.py"),
    log:
        f"{BUDGET}/frontier.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/trace_frontier.py"


rule plot_blocks:
    """Draws which blocks stay in a few layers."""
    input:
        masks=f"{BUDGET}/masks.pt",
        costs=costs_of,
    output:
        figure=report(
            f"{BUDGET}/blocks.png",
            caption="../report/blocks.rst",
            category="Pruned models",
            labels={
                "dataset": "{dataset}",
                "model": "{model}",
                "pruning": "{calibration}/{pruning}",
                "budget": "{budget}",
                "figure": "block patterns",
            },
        ),
    params:
        pruning=lambda wildcards: chosen(settings.prunings[wildcards.pruning], "block_shape"),
        sources=sources("plot_blocks.py"),
    log:
        f"{BUDGET}/blocks.png.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_blocks.py"


rule plot_interactions:
    """Draws how far the layers' distortions add up."""
    input:
        interactions=f"{BUDGET}/interactions.parquet",
        costs=costs_of,
    output:
        figure=report(
            f"{BUDGET}/interactions.png",
            caption="../report/interactions.rst",
            category="Pruned models",
            labels={
                "dataset": "{dataset}",
                "model": "{model}",
                "pruning": "{calibration}/{pruning}",
                "budget": "{budget}",
                "figure": "interactions of layers",
            },
        ),
    params:
        sources=sources("plot_interactions.py"),
    log:
        f"{BUDGET}/interactions.png.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_interactions.py"


rule plot_history:
    """Draws the course of a training, dense or pruned."""
    input:
        history=f"{RESULTS}/{{training}}history.parquet",
    output:
        figure=report(
            f"{RESULTS}/{{training}}history.png",
            caption="../report/history.rst",
            category="Trainings",
            labels={"training": "{training}"},
        ),
    params:
        sources=sources("plot_history.py"),
    log:
        f"{RESULTS}/{{training}}history.png.log",
    wildcard_constraints:
        training=".+/(dense_)?",
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot_history.py"
