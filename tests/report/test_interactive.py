"""Figures to zoom are those for papers: the same numbers, colours and axes."""

import json

import pandas as pd
import pytest
from test_report import allocation, costs, curves, drawn, history, keep_masks

from lpvit.report.interactive import interactive


def test_a_line_keeps_its_numbers_colour_name_and_panel() -> None:
    figure = drawn("curves", curves(costs()), costs(), "logit")
    zoomed = interactive(figure)
    assert zoomed is not None
    lines = [line for axes in figure.axes[:4] for line in axes.lines]
    assert [trace["name"] for trace in zoomed["data"]] == [line.get_label() for line in lines]
    for trace, line in zip(zoomed["data"], lines, strict=True):
        assert trace["x"] == pytest.approx(line.get_xdata(), rel=1e-3)
        assert trace["y"] == pytest.approx(line.get_ydata(), rel=1e-3)
    first, deeper = zoomed["data"][0], zoomed["data"][1]
    assert first["line"]["color"] != deeper["line"]["color"]
    assert [title["text"] for title in zoomed["layout"]["annotations"]] == ["qkv", "proj", "fc1", "fc2"]
    assert zoomed["layout"]["yaxis"]["type"] == "log"
    assert zoomed["layout"]["yaxis2"]["matches"] == "y"
    assert "logit" in first["hovertemplate"]


def test_bars_keep_heights_and_names_and_a_line_across_the_panel_its_level() -> None:
    frame = allocation(costs())
    zoomed = interactive(drawn("allocation", frame, costs()))
    assert zoomed is not None
    bars = [trace for trace in zoomed["data"] if trace.get("type") == "bar"]
    kept = frame.set_index("layer")["keep_ratio"]
    for trace in bars:
        for told, height in zip(trace["customdata"], trace["y"], strict=True):
            assert height == pytest.approx(100 * kept[told.partition(":")[0]], abs=0.01)
    mean = 100 * frame["blocks_kept"].sum() / frame["blocks"].sum()
    across = [trace for trace in zoomed["data"] if "type" not in trace]
    assert [trace["y"] for trace in across] == [[pytest.approx(mean, abs=0.01)] * 2] * 4
    assert all(trace["x"][0] <= 1 and trace["x"][1] >= 12 for trace in across)


def test_a_fine_tuning_begins_with_the_pruned_model() -> None:
    before = pd.DataFrame({"loss": [4.0], "top1": [5.0]})
    zoomed = interactive(drawn("history", history(), before))
    assert zoomed is not None
    marks = [trace for trace in zoomed["data"] if trace["name"] == "before training"]
    assert [(trace["x"], trace["y"]) for trace in marks] == [([0], [4]), ([0], [5])]
    assert "matches" not in zoomed["layout"]["yaxis2"]


def test_pictures_and_intervals_stay_as_they_are() -> None:
    assert interactive(drawn("blocks", keep_masks(costs()), costs())) is None
    assert json.dumps(interactive(drawn("curves", curves(costs()), costs(), "logit")))
