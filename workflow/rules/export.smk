rule export_pruned:
    """Writes the pruned model on request: compressed for lpvit.load, and as ONNX for use elsewhere."""
    input:
        model=f"{BUDGET}/pruned.pt",
        masks=f"{BUDGET}/masks.pt",
    output:
        safetensors=f"{BUDGET}/model.safetensors",
        onnx=f"{BUDGET}/model.onnx",
    params:
        stage="pruned",
        budget=lambda wildcards: chosen(budget_of(wildcards)),
        sources=sources("export_model.py"),
    log:
        f"{BUDGET}/model.log",
    threads: settings.compute.threads
    resources:
        mem_mb=scaled(16_000),
        runtime=scaled(60),
    conda:
        ENVIRONMENT
    script:
        "../scripts/export_model.py"


use rule export_pruned as export_finetuned with:
    """Writes the fine-tuned model on request: compressed for lpvit.load, and as ONNX for use elsewhere."""
    input:
        model=f"{RECIPE}/finetuned.pt",
        masks=f"{RECIPE}/masks.pt",
    output:
        safetensors=f"{RECIPE}/model.safetensors",
        onnx=f"{RECIPE}/model.onnx",
    params:
        stage="finetuned",
        budget=lambda wildcards: chosen(budget_of(wildcards)),
        sources=sources("export_model.py"),
    log:
        f"{RECIPE}/model.log",


use rule export_pruned as export_quantised with:
    """Writes the pruned, quantised model on request: compressed for lpvit.load, and as ONNX for use elsewhere."""
    input:
        model=f"{BUDGET}/{QUANTISED}.pt",
        masks=f"{BUDGET}/masks.pt",
    output:
        safetensors=f"{BUDGET}/{QUANTISED}.safetensors",
        onnx=f"{BUDGET}/{QUANTISED}.onnx",
    params:
        stage="quantised",
        budget=lambda wildcards: chosen(budget_of(wildcards)),
        sources=sources("export_model.py"),
    log:
        f"{BUDGET}/{QUANTISED}.export.log",


use rule export_pruned as export_finetuned_quantised with:
    """Writes the fine-tuned, quantised model on request: compressed for lpvit.load, and as ONNX for use elsewhere."""
    input:
        model=f"{RECIPE}/{QUANTISED}.pt",
        masks=f"{RECIPE}/masks.pt",
    output:
        safetensors=f"{RECIPE}/{QUANTISED}.safetensors",
        onnx=f"{RECIPE}/{QUANTISED}.onnx",
    params:
        stage="finetuned_quantised",
        budget=lambda wildcards: chosen(budget_of(wildcards)),
        sources=sources("export_model.py"),
    log:
        f"{RECIPE}/{QUANTISED}.export.log",


rule export:
    """Writes every experiment's final model for use elsewhere, and the same quantised."""
    input:
        [
            f"{BUDGET if experiment.recipe is None else RECIPE}/{name}.{suffix}".format(**names_of(experiment))
            for experiment in experiments.values()
            for name in ["model"] + [QUANTISED] * (experiment.quantisation is not None)
            for suffix in ("safetensors", "onnx")
        ],
