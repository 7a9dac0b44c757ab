"""Which tables and figures the experiments of the config give."""

evaluations = [
    {"experiment": name, "dataset": experiment.dataset, "model": experiment.model, "folder": folder}
    for name, experiment in experiments.items()
    for folder in evaluated(experiment).values()
]


def figures_of(experiment: Experiment) -> list[str]:
    names, budget = names_of(experiment), BUDGET.format(**names_of(experiment))
    figures = []
    if settings.budgets[experiment.budget].structure == "blocks":
        figures += [f"{PRUNING}/curves.png".format(**names), f"{budget}/allocation.png", f"{budget}/blocks.png"]
        if settings.prunings[experiment.pruning].probes_used:
            figures.append(f"{budget}/interactions.png")
    if settings.models[experiment.model].recipe is not None:
        figures.append(f"{MODEL}/dense_history.png".format(**names))
    if len(settings.budgets[experiment.budget].targets) == 2:
        figures.append(f"{budget}/frontier.png")
    if experiment.recipe is not None:
        figures.append(f"{RECIPE}/history.png".format(**names))
    return figures


def report_files() -> list[str]:
    """The checked plan and everything that people read; asking for it runs all experiments."""
    figures = {figure for experiment in experiments.values() for figure in figures_of(experiment)}
    if any(experiment.published for experiment in experiments.values()):
        figures |= {f"{REPORT}/paper.md", f"{REPORT}/paper.png"}
    return [f"{RESULTS}/plan.parquet", f"{REPORT}/summary.md", f"{REPORT}/summary.csv", f"{REPORT}/tradeoff.png", *sorted(figures)]


def print_summary() -> None:
    """Shows the table where all of it was asked for and made."""
    table = Path(REPORT, "summary.md")
    if table.is_file():
        print(f"\n{table.read_text()}\nTables and figures: {REPORT}; as one page: snakemake --report report.html")
