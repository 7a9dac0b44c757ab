"""The tables of the paper: experiments that say which published row they stand for."""

reproduced = {
    name: {"folder": folders["dense"] if experiment.published.stage == "dense" else list(folders.values())[-1], **folders_of_model}
    for name, experiment in experiments.items()
    if experiment.published is not None
    for folders in [evaluated(experiment)]
    for folders_of_model in [{"dense": folders["dense"], "costs": f"{MODEL}/costs.parquet".format(**names_of(experiment))}]
}


def row_of(name: str) -> dict:
    """What a row says beside what was measured."""
    experiment = experiments[name]
    recipe = None if experiment.published.stage == "dense" else recipe_of(experiment.recipe)
    window = settings.models[experiment.model].options.get("window_size", 7)
    return {
        "experiment": name,
        **chosen(experiment.published),
        "recipe": recipe,
        "window_tokens": window**2 if "swin" in settings.models[experiment.model].timm else None,
    }


rule paper_tables:
    """Published accuracy and MACs beside ours, for every row."""
    input:
        dense=[f"{entry['dense']}/metrics.parquet" for entry in reproduced.values()],
        final=[f"{entry['folder']}/metrics.parquet" for entry in reproduced.values()],
        layers=[f"{entry['folder']}/layers.parquet" for entry in reproduced.values()],
        costs=[entry["costs"] for entry in reproduced.values()],
    output:
        markdown=f"{REPORT}/paper.md",
        csv=report(
            f"{REPORT}/paper.csv",
            caption="../report/paper.rst",
            category="Results",
            labels={"what": "the paper's rows", "form": "table"},
        ),
        figure=report(
            f"{REPORT}/paper.png",
            caption="../report/paper.rst",
            category="Results",
            labels={"what": "the paper's rows", "form": "figure"},
        ),
    params:
        rows=[row_of(name) for name in reproduced],
        proxy="proxy" in settings.report,
        sources=sources("paper_tables.py"),
    log:
        f"{REPORT}/paper.log",
    conda:
        ENVIRONMENT
    script:
        "../scripts/paper_tables.py"
