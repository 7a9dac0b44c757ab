"""Which tables and figures the experiments of the config give."""

import shlex

from lpvit.allocation.settings import TARGETS
from lpvit.report.series import series_of

SECTIONS = ("dataset", "model", "calibration", "pruning", "budget", "recipe", "quantisation")
TIMED = {
    "dense model": f"{MODEL}/dense.time.tsv",
    "gradients": f"{PRUNING}/statistics.time.tsv",
    "curves": f"{PRUNING}/curves.time.tsv",
    "pruning rounds": f"{ROUNDS}/rounds.time.tsv",
    "masks and reconstruction": f"{BUDGET}/masks.time.tsv",
    "fine-tuning": f"{RECIPE}/finetuned.time.tsv",
}
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


def trained_from(names) -> str:
    """Metrics of the model that a training began with; blocks that go during training leave the dense one.

    Takes the wildcards of a rule, or the names of an experiment.
    """
    folder = f"{MODEL}/dense" if settings.recipes[names["recipe"]].pruned_over else f"{BUDGET}/pruned"
    return f"{folder}/metrics.parquet".format(**names)


def figures_of(experiment: Experiment) -> list[str]:
    names, budget = names_of(experiment), BUDGET.format(**names_of(experiment))
    figures = []
    if settings.prunings[experiment.pruning].structure == "blocks":
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


def page_inputs() -> dict:
    """What the page is made of; `write_page` also takes what `benchmark` measured, if it is there."""
    reproduces = any(experiment.published for experiment in experiments.values())
    return {
        "summary": f"{REPORT}/summary.csv",
        "tradeoff": f"{REPORT}/tradeoff.svg",
        "paper": [f"{REPORT}/paper.csv", f"{REPORT}/paper.svg"] if reproduces else [],
        "figures": sorted({figure for experiment in experiments.values() for figure in figures_of(experiment)}),
        "layers": sorted({f"{final_of(experiment)}/layers.parquet" for experiment in experiments.values()}),
    }


def page_params() -> dict:
    return {
        "page": lambda wildcards: f"{REPORT}/index.html",
        "glance": lambda wildcards: f"{REPORT}/glance.html",
        "speed": lambda wildcards: f"{REPORT}/speed.csv",
        "name": settings.report,
        "proxy": settings.scale == "proxy",
        "series": series,
        "experiments": [
            {
                "name": name,
                "decisions": decisions_of(experiment),
                "figures": figures_of(experiment),
                "layers": f"{final_of(experiment)}/layers.parquet",
                "unit": unit_of(experiment),
                "before": "" if experiment.recipe is None else trained_from(names_of(experiment)),
            }
            for name, experiment in experiments.items()
        ],
        "timed": timed_stages(),
    }


def unit_of(experiment: Experiment) -> str:
    """Unit of its curves, if it has some."""
    pruning = settings.prunings[experiment.pruning]
    return pruning.distortion.unit if pruning.structure == "blocks" else ""


def decisions_of(experiment: Experiment) -> dict:
    """What an experiment chose, and what the config says about it."""
    decisions = {
        section: {"name": name, "settings": told(getattr(settings, f"{section}s")[name])}
        for section in SECTIONS
        if (name := getattr(experiment, section)) is not None
    }
    if experiment.schemes:
        texts = [told(settings.schemes[name]) for name in experiment.schemes]
        decisions["schemes"] = {"name": ", ".join(experiment.schemes), "settings": "; ".join(texts)}
    return decisions


def told(section: Section) -> str:
    given = section.model_dump(mode="json", exclude_unset=True)
    short = {key: value["name"] for key, value in given.items() if isinstance(value, dict) and [*value] == ["name"]}
    texts = {key: json.dumps(value).strip('"') for key, value in (given | short).items()}
    return ", ".join(f"{key}: {text}" for key, text in texts.items())


def timed_stages() -> list[dict]:
    """The benchmark file of every long stage, and the experiments that it belongs to."""
    shared: dict[tuple, list[str]] = {}
    for name, experiment in experiments.items():
        for stage, file in TIMED.items():
            if experiment.recipe is not None or "{recipe}" not in file:
                shared.setdefault((stage, file.format(**names_of(experiment))), []).append(name)
    return [{"stage": stage, "of": ", ".join(names), "file": file} for (stage, file), names in shared.items()]


def report_files() -> list[str]:
    """The checked plan and everything that people read; asking for it runs all experiments."""
    figures = {figure for experiment in experiments.values() for figure in figures_of(experiment)}
    if any(experiment.published for experiment in experiments.values()):
        figures |= {f"{REPORT}/paper.md", f"{REPORT}/paper.svg"}
    return [
        f"{RESULTS}/plan.parquet",
        f"{REPORT}/index.html",
        f"{REPORT}/summary.md",
        f"{REPORT}/summary.csv",
        f"{REPORT}/tradeoff.svg",
        *sorted(figures),
    ]


def print_summary() -> None:
    """Shows the table where all of it was asked for and made."""
    table, files = Path(REPORT, "summary.md"), workflow.config_settings.configfiles
    if table.is_file():
        configured = f" --configfile {shlex.join(map(os.path.relpath, files))}" if files else ""
        print(f"\n{table.read_text()}\nThe report: {REPORT}/index.html")
        print(f"With code and parameters of every file: snakemake --report report.html{configured}")
