"""The paper's table: its own count of multiply-accumulates, and rows with and without published numbers."""

import pandas as pd
import pytest
import timm
import torch
from test_report import drawn

from lpvit.costs.cost import layer_table, measure_costs
from lpvit.report.tables.paper import DISTILLED, PROXY, paper_macs, paper_markdown, paper_table


@pytest.mark.parametrize(
    ("name", "window_tokens", "published_formula"),
    [
        # linear layers and their biases at 197 tokens, 196 in the patch embedding, the classifier 1000 times
        ("deit_tiny_patch16_224", None, 1.2708),
        # of a window's 49 tokens in attention, 3136, 784, 196 and 49 in mlps
        ("swin_tiny_patch4_window7_224", 49, 3.5),
    ],
)
def test_macs_as_the_published_code_counts_them(name: str, window_tokens: int | None, published_formula: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    costs = measure_costs(model)
    counted = paper_macs(layer_table("dense", costs), costs, window_tokens)
    by_hand = 0
    tokens = dict(zip(costs["layer"], costs["tokens"], strict=True))
    for layer, module in model.named_modules():
        if layer in tokens:
            bias = 0 if module.bias is None else module.bias.numel()
            seen = window_tokens if window_tokens and ".attn." in layer else tokens[layer]
            by_hand += (module.weight.numel() + bias) * seen * (1000 if "head" in layer else 1)
    assert counted == by_hand
    assert counted / 1e9 == pytest.approx(published_formula, rel=0.001 if window_tokens is None else 0.2)


@pytest.fixture
def table() -> pd.DataFrame:
    def metrics(top1: float, share: float) -> pd.Series:
        return pd.Series({"top1": top1, "images": 50, "macs": 4.2e9 * share, "macs_all": 4.2e9 * share + 0.36e9})

    rows = [
        {"experiment": "small", "row": "DeiT-S B", "top1": 80.69, "gmacs": 2.3, "final": metrics(80.0, 0.46)},
        {"experiment": "mine", "row": "DeiT-S blocks", "top1": None, "gmacs": None, "final": metrics(81.0, 0.46)},
    ]
    recipe = {"epochs": 300, "teacher": "regnety_160"}
    return paper_table(
        {**row, "dense": metrics(81.2, 1), "paper_macs": 2e9, "recipe": recipe if row["top1"] else None} for row in rows
    )


def test_a_row_shows_what_was_published_and_what_was_reached(table: pd.DataFrame) -> None:
    assert table["difference"].round(2).tolist()[0] == -0.69
    assert table["gmacs_all"].round(3).tolist() == [2.292, 2.292]
    text = paper_markdown(table, proxy=False)
    assert text.startswith(DISTILLED)
    first, second = text.splitlines()[-2:]
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        *("DeiT-S B", "small", "80.69 %", "80.00 %", "67.0 to 88.8", "-0.69", "81.20 %"),
        *("2.30 G", "2.29 G", "1.93 G", "2.00 G", "300", "regnety_160"),
    ]
    assert [cell.strip() for cell in second.strip("|").split("|")] == [
        *("DeiT-S blocks", "mine", "-", "81.00 %", "68.1 to 89.5", "-", "81.20 %"),
        *("-", "2.29 G", "1.93 G", "2.00 G", "0", "-"),
    ]


def test_a_proxy_says_so_and_claims_no_difference(table: pd.DataFrame) -> None:
    text = paper_markdown(table, proxy=True)
    assert text.startswith(PROXY)
    assert "-0.69" not in text
    assert "80.69" not in text
    assert "80.00 %" in text


@pytest.mark.parametrize(("proxy", "marks"), [(False, 3), (True, 2)])
def test_the_figure_draws_every_row(table: pd.DataFrame, proxy: bool, marks: int) -> None:
    axes = drawn("paper", table, proxy).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "mine"]
    assert len(axes.collections) == marks
    (bars,) = [bars for bars in axes.collections if hasattr(bars, "get_segments")]
    assert [segment[:, 0].round(1).tolist() for segment in bars.get_segments()] == [[67.0, 88.8], [68.1, 89.5]]
    assert ("proxy" in axes.get_title(loc="left")) == proxy
