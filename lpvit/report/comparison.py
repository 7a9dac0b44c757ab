"""A page about two models on the same images: agreement, classes, calibration, robustness, images that changed.

Frames in, HTML out. n = images; K = classes.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lpvit import __version__
from lpvit.measure.intervals import paired, wilson
from lpvit.report.formats import interval
from lpvit.report.results import signed
from lpvit.report.style import BLACK, COLORS, GREY, STYLE

TEMPLATE = Path(__file__).parent / "template"
BINS, RESAMPLES, WORST = 15, 200, 15
KINDS = ("right, now wrong", "wrong, now right", "wrong in another way", "another class")


@dataclass(frozen=True)
class Comparison:
    """What two models say of the same images.

    Attributes:
        names: Files of the dense and of the compressed model.
        folder: Of the images.
        predictions: One row per image: ``path``, ``label`` (class name, empty if not known), and for ``dense`` and
            ``compressed`` the predicted class name and, with ``_share``, its probability.
        spoilt: One row per way of spoiling images (``how``), with ``images``, how many ``dense`` and ``compressed``
            were right about (NaN without labels), and ``alike``.
        thumbnails: Path -> data URI, of images that changed.
    """

    names: tuple[str, str]
    folder: str
    predictions: pd.DataFrame
    spoilt: pd.DataFrame
    thumbnails: Mapping[str, str]

    @property
    def labelled(self) -> bool:
        return bool((self.predictions["label"] != "").all())


def changed(predictions: pd.DataFrame) -> pd.DataFrame:
    """Images whose class changed, with ``kind``: those that the dense model had right first."""
    rows = predictions[predictions["dense"] != predictions["compressed"]]
    right = [rows[name] == rows["label"] for name in ("dense", "compressed")]
    rank = np.select([right[0], right[1], rows["label"] != ""], [0, 1, 2], 3)
    sure = rows.assign(kind=[KINDS[number] for number in rank], rank=rank)
    return sure.sort_values(["rank", "compressed_share"], ascending=[True, False]).drop(columns="rank")


def verdict(comparison: Comparison) -> list[str]:
    """Agreement and accuracy in sentences, with 95 % intervals."""
    rows = comparison.predictions
    alike = rows["dense"] == rows["compressed"]
    lines = [f"The models give {_share(int(alike.sum()), len(rows))} of the images the same class."]
    if not comparison.labelled:
        return [*lines, "The folder has no class folders, so nothing is said of accuracy."]
    right = [rows[name] == rows["label"] for name in ("dense", "compressed")]
    told = [_share(int(each.sum()), len(rows)) for each in right]
    lines.append(f"Top-1: dense {told[0]}, compressed {told[1]}.")
    lost, low, high = paired(*right)
    significant = "not significant" if low <= 0 <= high else "significant"
    lines.append(f"Difference: {signed(lost)} points ({signed(low)} to {signed(high)}), {significant}.")
    return lines


def calibration_error(right: NDArray[np.bool_], shares: NDArray[np.float64]) -> float:
    """Expected calibration error (Guo et al., 2017) over `BINS` equal bins, in points."""
    at = np.minimum((shares * BINS).astype(int), BINS - 1)
    sums = np.bincount(at, right - shares, BINS)
    return float(100 * np.abs(sums).sum() / len(shares))


def by_class(predictions: pd.DataFrame) -> pd.DataFrame:
    """Per class: ``class``, ``images``, hits of both models, and the paired difference; the greatest loss first."""
    rows = []
    for name, of_class in predictions.groupby("label"):
        right = [of_class[model] == name for model in ("dense", "compressed")]
        rows.append((name, len(of_class), int(right[0].sum()), int(right[1].sum()), *paired(*right)))
    columns = ["class", "images", "dense", "compressed", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns).sort_values(["difference", "class"], ignore_index=True)


def render(comparison: Comparison) -> str:
    """The page, self-contained."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    rows = comparison.predictions
    others = changed(rows)
    shown = others[others["path"].isin(comparison.thumbnails)]
    labelled: dict[str, Any] = {"classes": None}
    if comparison.labelled:
        table = by_class(rows)
        labelled = {
            "classes": _classes_shown(table),
            "losing": int((table["difference"] < 0).sum()),
            "counted": len(table),
            "ece": [_error_told(rows, name) for name in ("dense", "compressed")],
            "calibration": _calibration(rows),
        }
    return environment.get_template("compare.html").render(
        names=comparison.names,
        folder=comparison.folder,
        images=len(rows),
        written=f"{datetime.now():%d %B %Y, %H:%M}",
        version=__version__,
        verdict=verdict(comparison),
        robustness=_robustness_shown(comparison.spoilt),
        spoilt=int(comparison.spoilt["images"].max()),
        changed=len(others),
        photos=[_photo(row, comparison.thumbnails) for row in shown.to_dict("records")],
        **labelled,
    )


def _photo(row: Mapping[Any, Any], thumbnails: Mapping[str, str]) -> dict[str, str]:
    told = {name: f"{row[name]} {row[f'{name}_share']:.1%}" for name in ("dense", "compressed")}
    kind = f"{row['kind']}{': is ' + row['label'] if row['label'] else ''}"
    return {"image": thumbnails[row["path"]], "path": row["path"], "kind": kind, **told}


def _classes_shown(table: pd.DataFrame) -> pd.DataFrame:
    shown = table.head(WORST)
    ends = zip(shown["low"].map(signed), shown["high"].map(signed), strict=True)
    return pd.DataFrame(
        {
            "class": shown["class"],
            "images": shown["images"].astype(str),
            **{name: [*map(_share, shown[name], shown["images"])] for name in ("dense", "compressed")},
            "difference": shown["difference"].map(signed),
            "95 % interval": [f"{low} to {high}" for low, high in ends],
        }
    )


def _robustness_shown(spoilt: pd.DataFrame) -> pd.DataFrame:
    columns: dict[str, Any] = {"images are": spoilt["how"]}
    if spoilt["dense"].notna().all():
        columns |= {
            f"top-1, {name}": [*map(_share, spoilt[name], spoilt["images"])] for name in ("dense", "compressed")
        }
    return pd.DataFrame({**columns, "agreement": [*map(_share, spoilt["alike"], spoilt["images"])]})


def _share(count: float, images: int) -> str:
    low, high = wilson(100 * count / images, float(images))
    return f"{100 * count / images:.2f} % ({interval(low, high)})"


def _error_told(rows: pd.DataFrame, name: str) -> str:
    right, shares = (rows[name] == rows["label"]).to_numpy(), rows[f"{name}_share"].to_numpy()
    random = np.random.default_rng(0)
    drawn = [random.integers(0, len(rows), len(rows)) for _ in range(RESAMPLES)]
    low, high = np.quantile([calibration_error(right[index], shares[index]) for index in drawn], [0.025, 0.975])
    return f"{calibration_error(right, shares):.2f} ({low:.2f} to {high:.2f})"


@matplotlib.rc_context(STYLE)
def _calibration(rows: pd.DataFrame) -> str:
    figure = Figure(figsize=(4.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1, label="calibrated")
    looks: Sequence[tuple[str, str, str]] = (("dense", BLACK, "*"), ("compressed", COLORS[0], "o"))
    for name, color, marker in looks:
        at = np.minimum((rows[f"{name}_share"] * BINS).astype(int), BINS - 1)
        binned = rows.assign(right=rows[name] == rows["label"], share=rows[f"{name}_share"]).groupby(at)
        axes.plot(100 * binned["share"].mean(), 100 * binned["right"].mean(), color=color, marker=marker, label=name)
    axes.set(xlabel="probability of the first class (%)", ylabel="right (%)", xlim=(0, 100), ylim=(0, 100))
    axes.legend(loc="upper left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
