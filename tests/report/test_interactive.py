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
    *traces, bar = zoomed["data"]
    assert [trace["name"] for trace in traces] == [line.get_label() for line in lines]
    for trace, line in zip(traces, lines, strict=True):
        assert trace["x"] == pytest.approx(line.get_xdata(), rel=1e-3)
        assert trace["y"] == pytest.approx(line.get_ydata(), rel=1e-3)
    first, deeper = zoomed["data"][0], zoomed["data"][1]
    assert first["line"]["color"] != deeper["line"]["color"]
    scale = bar["marker"]["colorscale"]
    assert (first["line"]["color"], traces[11]["line"]["color"]) == (scale[0][1], scale[-1][1])
    assert bar["marker"]["colorbar"]["title"]["text"] == "transformer block"
    assert (bar["marker"]["cmin"], bar["marker"]["cmax"]) == (-0.5, 11.5)
    texts = [title["text"] for title in zoomed["layout"]["annotations"]]
    assert texts == ["qkv", "proj", "fc1", "fc2", "share of the layer removed (%)"]
    assert zoomed["layout"]["yaxis"]["type"] == "log"
    assert zoomed["layout"]["yaxis2"]["matches"] == "y"
    assert "logit" in first["hovertemplate"]


def test_bars_keep_heights_and_names_and_a_line_across_the_panel_its_level() -> None:
    frame = allocation(costs())
    zoomed = interactive(drawn("allocation", frame, costs()))
    assert zoomed is not None
    bars = [trace for trace in zoomed["data"] if trace.get("type") == "bar"]
    kept = frame.set_index("layer")["macs_kept"] / frame.set_index("layer")["macs_dense"]
    for trace in bars:
        for told, height in zip(trace["customdata"], trace["y"], strict=True):
            assert height == pytest.approx(100 * kept[told.partition(":")[0]], abs=0.01)
    mean = 100 * frame["macs_kept"].sum() / frame["macs_dense"].sum()
    across = [trace for trace in zoomed["data"] if "type" not in trace]
    assert [trace["y"] for trace in across] == [[pytest.approx(mean, abs=0.01)] * 2] * 4
    assert all(trace["x"][0] <= 0 and trace["x"][1] >= 11 for trace in across)


def test_a_fine_tuning_begins_with_the_pruned_model() -> None:
    before = pd.DataFrame({"loss": [4.0], "top1": [5.0]})
    zoomed = interactive(drawn("history", history(), before))
    assert zoomed is not None
    marks = [trace for trace in zoomed["data"] if trace["name"] == "before training"]
    assert [(trace["x"], trace["y"]) for trace in marks] == [([0], [4]), ([0], [5])]
    assert "matches" not in zoomed["layout"]["yaxis2"]


def test_a_legend_names_every_kind_of_line_once() -> None:
    before = pd.DataFrame({"loss": [4.0], "top1": [5.0]})
    without = interactive(drawn("curves", curves(costs()), costs(), "logit"))
    assert without is not None
    assert without["layout"]["showlegend"] is False
    zoomed = interactive(drawn("frontier", *two_budgets()))
    assert zoomed is not None
    named = [trace["name"] for trace in zoomed["data"] if trace["showlegend"]]
    assert len(set(named)) == len(named) == 4
    assert interactive(drawn("history", history(), before))["layout"]["showlegend"] is False  # titles name its lines


def two_budgets() -> tuple[pd.DataFrame, pd.DataFrame]:
    lines = pd.DataFrame({"level": [1, 1, 2, 2], "first": [0.4, 0.5, 0.3, 0.4], "second": [0.5, 0.4, 0.4, 0.3]})
    met = {"second_budget": "energy", "second_target": 0.5, "second_achieved": 0.49}
    return lines, allocation(costs()).assign(**met)


def test_pictures_and_intervals_stay_as_they_are() -> None:
    assert interactive(drawn("blocks", keep_masks(costs()), costs())) is None
    assert json.dumps(interactive(drawn("curves", curves(costs()), costs(), "logit")))
