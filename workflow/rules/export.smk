rule export_model:
    """Writes a model on request: compressed for lpvit.load, and as ONNX."""
    input:
        model=lambda wildcards: f"{FOLDER}/{exported_stage(wildcards)}.pt".format(**wildcards),
        masks=f"{FOLDER}/masks.pt",
    output:
        safetensors=f"{FOLDER}/{{file}}.safetensors",
        onnx=f"{FOLDER}/{{file}}.onnx",
    params:
        stage=lambda wildcards: kind_of(wildcards, exported_stage(wildcards)),
        budget=lambda wildcards: chosen(budget_of(wildcards)),
        export=chosen(settings.export),
        sources=sources("export_model.py"),
    log:
        f"{FOLDER}/{{file}}.export.log",
    wildcard_constraints:
        file="model|quantised@[^/]+",
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(16_000),
        runtime=scaled(60),
        gpu=0,
    conda:
        ENVIRONMENT
    script:
        "../scripts/export_model.py"


rule export:
    """Exports every experiment's final model, and its quantised form."""
    input:
        [
            f"{BUDGET if experiment.recipe is None else RECIPE}/{name}.{suffix}".format(**names_of(experiment))
            for experiment in experiments.values()
            for name in ["model"] + [QUANTISED] * (experiment.quantisation is not None)
            for suffix in ("safetensors", "onnx")
        ],
