"""Figures: one per file of lpvit/report/figures; here are their possible inputs."""

from lpvit.report.catalogue import figure_files

FIGURES = figure_files()
ARTIFACTS = {  # name, as a parameter of a figure's `draw` -> file
    "costs": lambda names: costs_of(names) if "budget" in names else f"{MODEL}/costs.parquet",
    "dense_history": f"{MODEL}/dense_history.parquet",
    "samples": f"{CALIBRATION}/samples.parquet",
    "blocks": f"{PRUNING}/blocks.parquet",
    "curves": f"{PRUNING}/curves.parquet",
    "allocation": f"{BUDGET}/allocation.parquet",
    "masks": f"{BUDGET}/masks.pt",
    "interactions": f"{BUDGET}/interactions.parquet",
    "frontier": f"{BUDGET}/frontier.parquet",
    "outcomes": f"{BUDGET}/outcomes.parquet",
    "history": f"{RECIPE}/history.parquet",
    "before": lambda names: trained_from(names),
    "summary": f"{REPORT}/summary.csv",
    "paper": f"{REPORT}/paper.csv",
    "speed": f"{REPORT}/speed.csv",
    "speed_up": f"{REPORT}/speed_up.csv",
}


def artifact(name: str, names: dict[str, str]) -> str:
    """The file of an artifact, for the decisions of an experiment or of a path."""
    file = ARTIFACTS[name]
    return (file if isinstance(file, str) else file(names)).format(**names)


def made_by(experiment: Experiment) -> set[str]:
    """The artifacts and facts that an experiment has."""
    budget, pruning = settings.budgets[experiment.budget], settings.prunings[experiment.pruning]
    blocks, curves = pruning.structure == "blocks", pruning.structure != "width"
    return {"costs", "samples"}.union(
        {"curves", "allocation", "unit"} if curves else (),
        {"rank_multiple"} if pruning.structure == "factors" else (),
        {"blocks", "masks"} if blocks else (),
        {"interactions"} if blocks and pruning.probes_used else (),
        {"frontier"} if len(budget.targets) == 2 else (),
        {"outcomes"} if budget.by_outcome else (),
        {"history", "before"} if experiment.recipe is not None else (),
        {"dense_history"} if settings.models[experiment.model].recipe is not None else (),
    )


def figures_of(experiment: Experiment) -> list[str]:
    """Figures of a single experiment, as SVG: those whose artifacts it creates."""
    made, names = made_by(experiment), names_of(experiment)
    drawn = [name for name, figure in FIGURES.items() if set(figure.needs) <= made]
    return sorted((placed_at(name, names) for name in drawn), key=lambda file: (file.count("/"), file))


def placed_at(figure: str, names: dict[str, str]) -> str:
    """In the folder of the first of its artifacts."""
    return f"{os.path.dirname(artifact(FIGURES[figure].needs[0], names))}/{figure}.svg"


def report_figures(*artifacts: str) -> list[str]:
    """Figures of all experiments together: those that need one of these artifacts."""
    return [placed_at(name, {}) for name, figure in FIGURES.items() if figure.needs[0] in artifacts]


def drawn_from(wildcards) -> dict[str, str]:
    """The inputs of a figure; optional ones if an experiment that shares it creates them."""
    figure, names = FIGURES[wildcards.figure], spelled(wildcards)
    made = set().union(*(made_by(experiments[name]) for name in sharing(wildcards).split(", ")))
    shown = [*figure.needs, *(name for name in figure.takes if name in made)]
    return {name: artifact(name, names) for name in shown if name in ARTIFACTS}


def facts_of(wildcards) -> dict:
    """Facts that a figure takes besides its artifacts."""
    figure, names = FIGURES[wildcards.figure], spelled(wildcards)
    facts = {"series": series, "proxy": settings.scale == "proxy"}
    if "pruning" in names:
        pruning = settings.prunings[names["pruning"]]
        facts["unit"] = pruning.distortion_unit
        facts["rank_multiple"] = rank_multiple_of(pruning)
    return {name: value for name, value in facts.items() if name in (*figure.needs, *figure.takes)}


def rank_multiple_of(pruning) -> int | None:
    """Of layers that are kept by ranks; None for blocks, 0 where layers differ in that."""
    return {"factors": getattr(pruning, "rank_multiple", None), "mixed": 0}.get(pruning.structure)


def caption_of(figure: str, names: dict[str, str]) -> str:
    """The caption of a figure, in the words of its structure."""
    pruning = settings.prunings.get(names.get("pruning"))
    return FIGURES[figure].caption.replace("{units}", pruning.units if pruning else "")
