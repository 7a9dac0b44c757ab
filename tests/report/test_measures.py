"""What tables and figures show where images have no classes: probes, else the same class, else the cosine."""

import math

import pandas as pd
import pytest

from lpvit.measure.intervals import wilson
from lpvit.report.charts import chart_data
from lpvit.report.figures.tradeoff import draw
from lpvit.report.measures import MEASURES, with_measure
from lpvit.report.results import Cell, result_tables
from lpvit.report.tables.speed import read_speed
from lpvit.report.tables.summary import WITHOUT_CLASSES, read_summary, summary, to_markdown

NONE = float("nan")
OF_MEASURE = {
    "cosine": {"cosine": 1.0, "relative_error": 0.0},
    "same_class": {"cosine": 1.0, "relative_error": 0.0, "same_class": 100.0},
    "linear": {"cosine": 1.0, "relative_error": 0.0, "probe_images": 50, "knn": 70.0, "linear": 80.0},
}
WORSE = {"cosine": 0.9, "relative_error": 0.2, "same_class": 90.0, "probe_images": 50, "knn": 60.0, "linear": 70.0}


def table(measure: str) -> pd.DataFrame:
    """Of a dense model and two experiments."""
    rows = []
    for name, stage, share in (("half", "dense", 1.0), ("half", "pruned", 0.5), ("third", "pruned", 0.3)):
        known = OF_MEASURE.get(measure, {})
        found = known if stage == "dense" else {key: WORSE[key] for key in known}
        accuracy = dict.fromkeys(("top1", "top5", "loss"), 60.0 if measure == "top1" else NONE)
        costs = {"macs": int(100 * share), "macs_all": int(120 * share), "parameters": 9, "energy": share}
        names = {"experiment": name, "dataset": "photos", "model": "vit", "stage": stage}
        others = {"images": 200, "images_skipped": 0, "sparsity": 0.5, "power_term": 1.0}
        rows.append({**names, **dict.fromkeys(WITHOUT_CLASSES, NONE), **found, **accuracy, **costs, **others})
    return summary(pd.DataFrame(rows))


@pytest.mark.parametrize("measure", MEASURES)
def test_what_stands_for_accuracy_is_named_and_has_its_own_interval(measure: str) -> None:
    shown = with_measure(table(measure))
    assert set(shown["measure"]) == {measure}
    pruned = shown[shown["stage"] == "pruned"].iloc[0]
    expected = {"top1": 60.0, "linear": 70.0, "same_class": 90.0, "cosine": 90.0}[measure]
    assert pruned["top1"] == pytest.approx(expected)
    if measure == "cosine":
        assert math.isnan(pruned["top1_low"])
    else:
        low, high = wilson(expected, 50 if measure == "linear" else 200)
        assert (pruned["top1_low"], pruned["top1_high"]) == pytest.approx((low, high))


@pytest.mark.parametrize("measure", MEASURES)
def test_tables_charts_and_figures_say_what_is_shown(measure: str, tmp_path: object) -> None:
    told, series = table(measure), {"half": "half", "third": "third"}
    (found,) = result_tables(told, read_speed("nowhere.csv"), {"half": Cell("a", "a")}, {})
    assert found["measure"] == MEASURES[measure].heading in found["columns"]
    assert ("top-5" in found["columns"]) == (measure == "top1")
    assert found["images"] == (50 if measure == "linear" else 200)
    assert ("Nearest to the dense model: third" in found["verdict"][0]) == (measure in ("cosine", "same_class"))
    chart = chart_data(told, read_speed("nowhere.csv"), series)
    assert chart["measures"] == {"photos": MEASURES[measure].title}
    assert not any(math.isnan(model["low"]) for model in chart["datasets"]["photos"])
    assert draw(told, series).axes[0].get_ylabel() == MEASURES[measure].title
    assert ("top-1" in to_markdown(told)) == (measure == "top1")
    assert "nan" not in to_markdown(told)


def test_the_summary_is_read_back_without_accuracies(tmp_path: object) -> None:
    told = table("linear")
    told.to_csv(f"{tmp_path}/summary.csv", index=False)
    pd.testing.assert_frame_equal(read_summary(f"{tmp_path}/summary.csv"), told, check_dtype=False)
