"""Experiments that reproduce a row of the paper, and the files of their results."""

reproduced = {name: experiment for name, experiment in experiments.items() if experiment.published is not None}


def dense_of(experiment: Experiment) -> str:
    return evaluated(experiment)["dense"]


def reproduced_by(experiment: Experiment) -> str:
    """The folder of the model of a row: the dense one, or the last of the experiment."""
    return dense_of(experiment) if experiment.published.stage == "dense" else final_of(experiment)


def costs_of_row(experiment: Experiment) -> str:
    schemes = experiment.schemes if experiment.published.stage == "final" else ()
    return f"{MODEL}/costs{'@' * bool(schemes)}{'@'.join(schemes)}.parquet".format(**names_of(experiment))


def row_of(name: str) -> dict:
    """The published columns of a row."""
    experiment = experiments[name]
    model = settings.models[experiment.model]
    trained = experiment.published.stage == "final" and experiment.recipe is not None
    return {
        "experiment": name,
        **chosen(experiment.published),
        "recipe": recipe_of(experiment.recipe) if trained else None,
        "window_tokens": model.options.get("window_size", 7) ** 2 if "swin" in model.name else None,
    }
