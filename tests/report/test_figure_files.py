"""Files of all figures: the same bytes after a full disk as without one."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_interactive import two_budgets
from test_report import allocation, costs, curves, drawn, evaluations, factors, history, keep_masks, series

from lpvit.errors import LpvitError
from lpvit.report import drawing
from lpvit.report.catalogue import figure_files
from lpvit.report.drawing import save_figure
from lpvit.report.tables.summary import summary
from lpvit.store.artifacts import replace_atomically

SMALL = costs(depth=2)
NAMES = ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
PAIRS = [{"layer": one, "other": other, "distortion": 1 + (one == other)} for one in NAMES for other in NAMES]
TRIED = {"outcome": "points_lost", "target": 1.0, "macs": [0.4, 0.5], "value": [2.0, 0.5], "chosen": [False, True]}
ROWS = {"experiment": ["half", "third"], "dense_top1": 81.2, "published_top1": 80.7, "top1": [80.0, 78.0]}
FASTER = {"sparsity": [0.2, 0.4, 0.8], "speed_up": [0.5, 1.5, 2], "block": "8x8", "dataset": "digits", "model": "vit"}


def timed() -> pd.DataFrame:
    """Speeds of the models, one configuration each."""
    rows = evaluations().drop_duplicates(["experiment", "stage"]).query("experiment == 'half'")
    times = {f"milliseconds{end}": 8 * rows["macs"] / 1e9 for end in ("", "_low", "_high")}
    times |= {f"speed_up{end}": 4e9 / rows["macs"] for end in ("", "_low", "_high")}
    accuracies = {"top1_low": rows["top1"] - 1, "top1_high": rows["top1"] + 1}
    dense = rows["stage"] == "dense"
    configuration = dense.map({True: "dense", False: "sparse"})
    return rows.assign(batch_size=8, reference="dense", configuration=configuration, **times, **accuracies)


def ranks() -> tuple[pd.DataFrame, pd.DataFrame]:
    kept, spectra = (frame[frame["layer"].isin(SMALL["layer"])] for frame in factors())
    return kept, spectra


INPUTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "allocation": lambda: (allocation(SMALL), SMALL),
    "blocks": lambda: (keep_masks(SMALL), SMALL),
    "curves": lambda: (curves(SMALL, points=9), SMALL, "logit² per image"),
    "dense_history": lambda: (history(9),),
    "frontier": two_budgets,
    "history": lambda: (history(9),),
    "interactions": lambda: (pd.DataFrame(PAIRS), SMALL),
    "latency": lambda: (timed(), series(evaluations())),
    "outcomes": lambda: (pd.DataFrame(TRIED | {"low": 0.1, "high": 3.0, "meets": True}),),
    "paper": lambda: (pd.DataFrame(ROWS | {"top1_low": 77.0, "top1_high": 81.0}), False),
    "ranks": lambda: (*ranks(), SMALL, 8),
    "speed_up": lambda: (pd.DataFrame(FASTER),),
    "tradeoff": lambda: (summary(evaluations()), series(evaluations())),
}
QUICK = ("curves", "history", "interactions", "tradeoff")  # with and without colour bars and legends beside the axes


def test_every_figure_is_drawn_here() -> None:
    assert INPUTS.keys() == figure_files().keys()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in INPUTS]
)
def test_files_of_a_figure_are_the_same_after_a_full_disk(name: str, tmp_path: Path, monkeypatch) -> None:
    """Whatever was drawn before the failure: a layout that starts from the last one would move the axes."""
    paths = [tmp_path / "figure.svg", tmp_path / "figure.png"]
    save_figure(drawn(name, *INPUTS[name]()), *paths)
    undisturbed = [path.read_bytes() for path in paths]
    figure = drawn(name, *INPUTS[name]())
    for full_at in paths:
        with monkeypatch.context() as patch:
            patch.setattr(drawing, "replace_atomically", full(full_at))
            with pytest.raises(LpvitError, match="No space left on device"):
                save_figure(figure, *paths)
    assert [path.read_bytes() for path in paths] == undisturbed  # what was there before
    save_figure(figure, *reversed(paths))
    assert [path.read_bytes() for path in paths] == undisturbed
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def full(at: Path) -> Callable[[Path], Any]:
    """Writing as on a disk that is full when this file has been written in part."""

    @contextmanager
    def replace(path: Path) -> Iterator[Path]:
        with replace_atomically(path) as partial:
            yield partial
            if path == at:
                raise OSError(errno.ENOSPC, "No space left on device")

    return replace
