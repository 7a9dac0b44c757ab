"""Tables and figures of the experiments of the config."""

import shlex

from lpvit.allocation.settings import OUTCOMES, TARGETS
from lpvit.report.methods import methods
from lpvit.report.series import series_of

SECTIONS = ("dataset", "model", "calibration", "pruning", "budget", "recipe", "quantisation")
TIMED = {  # long stages -> log of the job, next to its record
    "dense model": f"{MODEL}/dense.log",
    "gradients": f"{PRUNING}/statistics.log",
    "curves": f"{PRUNING}/curves.log",
    "pruning rounds": f"{ROUNDS}/rounds.log",
    "masks and reconstruction": f"{BUDGET}/masks.log",
    "fine-tuning": f"{RECIPE}/finetuned.log",
}
series = series_of(
    {
        name: names_of(experiment)
        | {"published": None, "budget": chosen(settings.budgets[experiment.budget], without=(*TARGETS, *OUTCOMES))}
        for name, experiment in experiments.items()
    }
)
evaluations = [
    {"experiment": name, "dataset": experiment.dataset, "model": experiment.model, "folder": folder}
    for name, experiment in experiments.items()
    for folder in evaluated(experiment).values()
]


def sharing(wildcards) -> str:
    """The experiments of a file with these wildcards."""
    names = {section: name for section, name in spelled(wildcards).items() if section in SECTIONS}
    return ", ".join(name for name, experiment in experiments.items() if names.items() <= names_of(experiment).items())


def trained_from(names) -> str:
    """Accuracy of the model before a training; the dense one if blocks are pruned during training.

    Takes the wildcards of a rule, or the names of an experiment.
    """
    folder = f"{MODEL}/dense" if settings.recipes[names["recipe"]].pruned_over else f"{BUDGET}/pruned"
    return f"{folder}/accuracy.parquet".format(**names)


def all_figures() -> list[str]:
    """The figures of single experiments."""
    return sorted({figure for experiment in experiments.values() for figure in figures_of(experiment)})


def page_inputs() -> dict:
    """The inputs of the page; `write_page` also uses results of `benchmark`, if they exist."""
    reproduces = any(experiment.published for experiment in experiments.values())
    return {
        "summary": f"{REPORT}/summary.csv",
        "tradeoff": f"{REPORT}/tradeoff.svg",
        "paper": [f"{REPORT}/paper.csv", f"{REPORT}/paper.svg"] if reproduces else [],
        "figures": [f"{file[:-4]}.{kind}" for file in all_figures() for kind in ("svg", "json")],
        "layers": sorted({f"{final_of(experiment)}/layers.parquet" for experiment in experiments.values()}),
        "allocations": sorted(filter(None, map(allocation_of, experiments.values()))),
        "images": sorted(images_by_dataset().values()),
    }


def page_params() -> dict:
    return {
        "page": lambda wildcards: f"{REPORT}/index.html",
        "glance": lambda wildcards: f"{REPORT}/glance.html",
        "speed": lambda wildcards: f"{REPORT}/speed.csv",
        "name": settings.report,
        "proxy": settings.scale == "proxy",
        "series": series,
        "command": command_of_run("lpvit prune"),
        "images": images_by_dataset(),
        "experiments": [
            {
                "name": name,
                "structure": structure_told(settings.prunings[experiment.pruning]),
                "allocation": allocation_of(experiment),
                "rank_multiple": rank_multiple_of(settings.prunings[experiment.pruning]),
                "methods": methods_of(name, experiment),
                "decisions": decisions_of(experiment),
                "figures": [
                    {
                        **{"file": file, "title": FIGURES[Path(file).stem].title},
                        "caption": caption_of(Path(file).stem, names_of(experiment)),
                    }
                    for file in figures_of(experiment)
                ],
                "layers": f"{final_of(experiment)}/layers.parquet",
            }
            for name, experiment in experiments.items()
        ],
        "timed": timed_stages(),
    }


def allocation_of(experiment: Experiment) -> str | None:
    """The table of what every layer keeps; None of a narrower model."""
    return artifact("allocation", names_of(experiment)) if "allocation" in made_by(experiment) else None


def images_by_dataset() -> dict[str, str]:
    return {
        name: f"{DATASET}/images.parquet".format(dataset=name)
        for name in sorted({e.dataset for e in experiments.values()})
    }


def structure_told(pruning) -> str:
    return f"blocks {'x'.join(map(str, pruning.block_shape))}" if pruning.structure == "blocks" else pruning.structure


def methods_of(name: str, experiment: Experiment) -> str:
    """The paragraph of an experiment's methods."""
    model, recipes = settings.models[experiment.model], settings.recipes
    calibration, pruning = settings.calibrations[experiment.calibration], settings.prunings[experiment.pruning]
    return methods(
        name,
        (experiment.dataset, settings.datasets[experiment.dataset]),
        model,
        (calibration, pruning, settings.budgets[experiment.budget]),
        (recipes.get(model.recipe), recipes.get(experiment.recipe)),
        experiment.schemes,
        settings.quantisations.get(experiment.quantisation),
    )


def command_of_run(command: str) -> str:
    """A command on the configs of this run, as typed in the folder that it ran in."""
    files = map(os.path.relpath, workflow.config_settings.configfiles or [DEFAULT_CONFIG])
    return shlex.join([*command.split(), *(file for file in files if file != "lpvit.yaml")])


def decisions_of(experiment: Experiment) -> dict:
    """The decisions of an experiment and their settings in the config."""
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
    """The log of every long stage, and the experiments that it belongs to."""
    shared: dict[tuple, list[str]] = {}
    for name, experiment in experiments.items():
        for stage, file in TIMED.items():
            if experiment.recipe is not None or "{recipe}" not in file:
                shared.setdefault((stage, file.format(**names_of(experiment))), []).append(name)
    return [{"stage": stage, "of": ", ".join(names), "log": file} for (stage, file), names in shared.items()]


def report_files() -> list[str]:
    """The checked plan and all tables, figures and pages; these targets run all experiments."""
    reproduces = any(experiment.published for experiment in experiments.values())
    return [
        f"{RESULTS}/plan.parquet",
        f"{REPORT}/index.html",
        f"{REPORT}/summary.md",
        f"{REPORT}/summary.csv",
        *([f"{REPORT}/paper.md"] if reproduces else []),
        *report_figures("summary", *(["paper"] if reproduces else [])),
        *all_figures(),
    ]


def print_summary() -> None:
    """Prints the table if the whole report was requested and written."""
    table = Path(REPORT, "summary.md")
    if table.is_file():
        print(f"\n{table.read_text()}\nThe report: {REPORT}/index.html")
        print(f"With code and parameters of every file: {command_of_run('lpvit report')}")
        for model in sorted({f"{final_of(experiment)}.pt" for experiment in experiments.values()}):
            print(f"compressed model: {model}")
        print("next: lpvit info FILE, lpvit bench FILE, lpvit predict FILE IMAGE, lpvit export FILE model.onnx")
