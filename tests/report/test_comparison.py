"""The page about two models, from frames by hand."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lpvit.measure.intervals import paired
from lpvit.report.comparison import KINDS, Comparison, by_class, calibration_error, changed, render, verdict


@pytest.fixture
def comparison() -> Comparison:
    """Four kinds of change among twenty images; the compressed model loses on cats."""
    rows = [("cat", "cat", "cat")] * 6 + [("dog", "dog", "dog")] * 8
    rows += [("cat", "cat", "dog")] * 3 + [("dog", "cat", "dog")] * 2 + [("dog", "cat", "<eel>")]
    predictions = pd.DataFrame(rows, columns=["label", "dense", "compressed"])
    predictions = predictions.assign(
        path=[f"{i}.png" for i in predictions.index], dense_share=0.9, compressed_share=0.8
    )
    spoilt = pd.DataFrame({"how": ["as they are"], "images": [20], "dense": [17], "compressed": [16], "alike": [14]})
    thumbnails = {f"{number}.png": "data:image/jpeg;base64,AA" for number in range(14, 20)}
    return Comparison(("dense.pt", "small.onnx"), "photos", predictions, spoilt, thumbnails)


def test_images_that_the_dense_model_had_right_come_first(comparison: Comparison) -> None:
    found = changed(comparison.predictions)
    assert found["kind"].tolist() == [KINDS[0]] * 3 + [KINDS[1]] * 2 + [KINDS[2]]
    assert set(changed(comparison.predictions.assign(label=""))["kind"]) == {KINDS[3]}


def test_the_paired_interval_counts_only_images_that_changed() -> None:
    before, after = pd.Series([True] * 90 + [False] * 10), pd.Series([True] * 89 + [False] * 10 + [True])
    lost, low, high = paired(before, after)
    assert lost == 0
    assert (low, high) == pytest.approx((-3.33, 3.33), abs=0.01)  # 1.96 * sqrt(1.5 + 1.5) / 102
    same = paired(before, before)
    assert same[1] == -same[2]
    assert same[2] < 2


def test_a_model_whose_probabilities_are_its_frequencies_is_calibrated() -> None:
    shares = np.repeat([0.55, 0.95], 1000)
    right = np.concatenate([np.arange(1000) < 550, np.arange(1000) < 950])
    assert calibration_error(right, shares) == pytest.approx(0)
    assert calibration_error(right, np.full(2000, 1.0)) == pytest.approx(25)


def test_the_class_that_loses_most_stands_first(comparison: Comparison) -> None:
    table = by_class(comparison.predictions)
    assert table["class"].tolist() == ["cat", "dog"]
    assert table["difference"].tolist() == pytest.approx([-100 * 3 / 9, 100 * 2 / 11])
    assert (table["low"] < table["difference"]).all()


def test_what_is_said_has_its_interval_and_its_significance(comparison: Comparison) -> None:
    told = " ".join(verdict(comparison))
    assert "70.00 % (48.1 to 85.5) of the images the same class" in told
    assert "Top-1: dense 85.00 % (64.0 to 94.8), compressed 80.00 % (58.4 to 91.9)." in told
    assert "not significant" in told
    assert "accuracy" in " ".join(verdict(replace(comparison, predictions=comparison.predictions.assign(label=""))))


def test_the_page_is_self_contained_escapes_names_and_shows_what_changed(comparison: Comparison) -> None:
    page = render(comparison)
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "&lt;eel&gt;" in page
    assert page.count("<figcaption>") == 6
    assert "right, now wrong: is cat" in page
    bare = render(replace(comparison, predictions=comparison.predictions.assign(label="")))
    assert "Calibration" not in bare
