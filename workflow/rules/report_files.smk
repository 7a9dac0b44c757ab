"""Which tables and figures the experiments of the config give."""

import shlex

from lpvit.allocation.settings import TARGETS
from lpvit.report.series import series_of

series = series_of(
    {
        name: names_of(experiment)
        | {"published": None, "budget": chosen(settings.budgets[experiment.budget], without=TARGETS)}
        for name, experiment in experiments.items()
    }
)
evaluations = [
    {"experiment": name, "dataset": experiment.dataset, "model": experiment.model, "folder": folder}
    for name, experiment in experiments.items()
    for folder in evaluated(experiment).values()
]


def sharing(wildcards) -> str:
    """The experiments that a file with these wildcards belongs to."""
    spelled = dict(wildcards.items()).items()
    return ", ".join(name for name, experiment in experiments.items() if spelled <= names_of(experiment).items())


def trained_from(wildcards) -> str:
    """Metrics of the model that a training began with; blocks that go during training leave the dense one."""
    folder = MODEL + "/dense" if settings.recipes[wildcards.recipe].pruned_over else BUDGET + "/pruned"
    return f"{folder}/metrics.parquet".format(**wildcards)


def figures_of(experiment: Experiment) -> list[str]:
    names, budget = names_of(experiment), BUDGET.format(**names_of(experiment))
    figures = []
    if settings.budgets[experiment.budget].structure == "blocks":
        figures += [f"{PRUNING}/curves.svg".format(**names), f"{budget}/allocation.svg", f"{budget}/blocks.svg"]
        if settings.prunings[experiment.pruning].probes_used:
            figures.append(f"{budget}/interactions.svg")
    if settings.models[experiment.model].recipe is not None:
        figures.append(f"{MODEL}/dense_history.svg".format(**names))
    if len(settings.budgets[experiment.budget].targets) == 2:
        figures.append(f"{budget}/frontier.svg")
    if experiment.recipe is not None:
        figures.append(f"{RECIPE}/history.svg".format(**names))
    return figures


def report_files() -> list[str]:
    """The checked plan and everything that people read; asking for it runs all experiments."""
    figures = {figure for experiment in experiments.values() for figure in figures_of(experiment)}
    if any(experiment.published for experiment in experiments.values()):
        figures |= {f"{REPORT}/paper.md", f"{REPORT}/paper.svg"}
    return [f"{RESULTS}/plan.parquet", f"{REPORT}/summary.md", f"{REPORT}/summary.csv", f"{REPORT}/tradeoff.svg", *sorted(figures)]


def print_summary() -> None:
    """Shows the table where all of it was asked for and made."""
    table, files = Path(REPORT, "summary.md"), workflow.config_settings.configfiles
    if table.is_file():
        configured = f" --configfile {shlex.join(map(str, files))}" if files else ""
        print(f"\n{table.read_text()}\nTables and figures: {REPORT}")
        print(f"With all files, code and parameters, as one page: snakemake --report report.html{configured}")
