"""Checks a config with its images and models, and says what a run will do and take."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from lpvit.config.config import Config
from lpvit.config.files import located, read_config
from lpvit.data.index import find_problem, list_images
from lpvit.errors import LpvitError

LOOKED_AT = 2000  # images of a dataset that are decoded, sampled at random


def planned(configs: Sequence[Path]) -> Iterator[str]:
    """Describes what every experiment of a config will prune.

    Raises:
        LpvitError: The config is invalid; one line per problem.
    """
    settings = read_config(*configs)
    from lpvit.stages.duration import expected_seconds  # imports torch, so errors of the config are reported first
    from lpvit.stages.plan import plan_experiments

    try:
        plan = plan_experiments(settings)
        images, looked_at = look_at_images(settings)
    except LpvitError as error:
        raise LpvitError(located(str(error).splitlines(), configs)) from None
    for row in plan.to_dict("records"):
        experiment = settings.experiments[row["experiment"]]
        asked = ", ".join(f"{name} {target:g}" for name, target in settings.budgets[experiment.budget].stated.items())
        yield (
            f"{row['experiment']}: {settings.models[experiment.model].name} on {told_classes(row['classes'])} of "
            f"'{experiment.dataset}'; {row['dense_macs'] / 1e6:,.1f} M multiply-adds per image, "
            f"of which {row['prunable_macs'] / row['dense_macs']:.0%} can be pruned; budget: {asked}"
        )
    yield from looked_at
    seconds = expected_seconds(settings, images)
    yield f"about {told_time(seconds)} on this machine from an empty folder, by the time of one batch of each model"
    yield f"{', '.join(map(str, configs))}: no errors found"


def look_at_images(settings: Config) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Lists the images of every dataset, and decodes some.

    Returns:
        Dataset -> schema ``IMAGES``; and what was looked at, in lines.

    Raises:
        LpvitError: Some cannot be decoded; a line for each dataset.
    """
    images, told, problems = {}, [], []
    for name in sorted({experiment.dataset for experiment in settings.experiments.values()}):
        dataset = settings.datasets[name]
        images[name] = table = list_images(dataset)
        if dataset.root is None:
            continue
        some = table["path"].sample(min(len(table), LOOKED_AT), random_state=0)
        bad = {path: problem for path in some if (problem := find_problem(dataset.folder / path))}
        told.append(f"{name}: {len(some)} of {len(table)} images decoded, to see whether they can be")
        some_can = len(bad) < len(some)
        if bad and not (some_can and dataset.on_bad_image == "skip"):
            remedy = "replace them, or set 'on_bad_image: skip'" if some_can else "replace or convert them"
            first = "; ".join(f"{path}: {problem}" for path, problem in list(bad.items())[:3])
            problems.append(
                f"datasets.{name}: {len(bad)} of {len(some)} images looked at cannot be decoded ({first}); {remedy}"
            )
    if problems:
        raise LpvitError("\n".join(problems))
    return images, told


def told_classes(count: int) -> str:
    """``10 classes``, or what is there instead."""
    return f"{count} classes" if count else "images without classes"


def told_time(seconds: float) -> str:
    """``40 seconds``, ``12 minutes``, ``3 h 20 min``, ``2 days``: no more digits than an estimate has."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    if minutes < 90:
        return f"{minutes:.0f} minutes"
    hours, rest = divmod(round(minutes / 10) * 10, 60)
    return f"{hours} h {rest:02} min" if hours < 36 else f"{hours / 24:.0f} days"
