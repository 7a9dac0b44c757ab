"""Figures to zoom show the numbers of the tables."""

import json
from pathlib import Path

import pandas as pd
import pytest

from lpvit.report.panels import allocation_panels, curve_panels, history_panels, panels_of
from lpvit.store.schemas import CURVES, write_parquet

NAMES = ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"]
LAYERS = pd.DataFrame(
    {
        "layer": NAMES,
        "role": ["patch_embed", "qkv", "fc1", "qkv", "fc1"],
        "blocks": [0, 4, 8, 4, 8],
        "blocks_kept": [0, 2, 8, 1, 4],
    }
)
CURVE = {"sparsity": [0, 0.5, 1.0], "blocks_pruned": [0, 2, 4], "weights_pruned": [0, 8, 16]}
ALL_CURVES = pd.concat(
    pd.DataFrame({"layer": name, **CURVE, "distortion": [0.0, 0.001 * depth, 0.123456 * depth]})
    for depth, name in enumerate(NAMES[1:], 1)
)


def test_curves_have_a_panel_a_role_and_a_line_a_layer_without_what_has_no_logarithm() -> None:
    figure = curve_panels(ALL_CURVES, LAYERS, "logit")
    assert [(line["name"], line["xaxis"]) for line in figure["data"]] == [
        *((name, "x") for name in (NAMES[1], NAMES[3])),
        *((name, "x2") for name in (NAMES[2], NAMES[4])),
    ]
    assert figure["data"][0]["x"] == [50, 100]
    assert figure["data"][0]["y"] == [0.001, 0.1235]
    colors = [line["line"]["color"] for line in figure["data"]]
    assert colors[0] == colors[2] != colors[1] == colors[3]  # by depth
    assert [title["text"] for title in figure["layout"]["annotations"]] == ["qkv", "fc1"]
    assert figure["layout"]["yaxis2"]["matches"] == "y"


def test_bars_are_what_layers_keep_and_the_line_is_what_all_blocks_do() -> None:
    data = allocation_panels(LAYERS)["data"]
    assert [(bars["x"], bars["y"]) for bars in data[::2]] == [([1, 2], [50, 25]), ([1, 2], [100, 50])]
    assert {tuple(line["y"]) for line in data[1::2]} == {(62.5, 62.5)}


def test_a_fine_tuning_begins_with_the_pruned_model() -> None:
    numbers = {"epoch": [1, 2], "train_loss": [3.0, 2], "validation_loss": [2.0, 1], "top1": [10.0, 20]}
    history = pd.DataFrame({**numbers, "learning_rate": [0.1, 0]})
    before = pd.DataFrame({"loss": [4.0], "top1": [5.0]})
    lines = {line["name"]: (line["x"], line["y"]) for line in history_panels(history, before)["data"]}
    assert lines["validation"] == ([0, 1, 2], [4, 2, 1])
    assert lines["top-1"] == ([0, 1, 2], [5, 10, 20])
    assert lines["training"] == ([1, 2], [3, 2])
    assert {line["x"][0] for line in history_panels(history)["data"]} == {1}


@pytest.mark.parametrize("name", ["curves", "allocation", "blocks"])
def test_figures_of_numbers_become_panels_and_pictures_stay(name: str, tmp_path: Path) -> None:
    write_parquet(ALL_CURVES, tmp_path / "curves.parquet", CURVES)
    figure = panels_of(str(tmp_path / f"{name}.svg"), LAYERS, "logit", "")
    assert (figure is None) == (name == "blocks")
    json.dumps(figure)
