"""Tables and figures of speed, from frames by hand."""

import math

import pandas as pd
import pytest
from test_report import drawn

from lpvit.measure.intervals import wilson
from lpvit.report.tables.speed import (
    break_even,
    energy_ranking,
    speed_markdown,
    speed_summary,
    speed_up_by_sparsity,
)
from lpvit.store.schemas import ENERGY, METRICS, SPEED

FACTS = {"device": "cpu", "device_name": "Abacus", "threads": 2, "dtype": "float32", "kernel": "avx2", "torch": "2.15"}
# experiment -> (speed-up at batch 1, at batch 8), top-1 and joules per image of the sparse setup
EXPERIMENTS = {"half": ((1.5, 2.0), 80.0, 0.3), "third": ((2.0, 3.0), 70.0, 0.2), "busy": ((1.25, 1.6), 81.0, 0.4)}

IMAGES, IMAGES_OF_ENGINE = 400, 50


def names(experiment: str) -> dict[str, str]:
    return {"dataset": "digits", "model": "vit", "experiment": experiment}


@pytest.fixture
def speed() -> pd.DataFrame:
    rows = []
    for experiment, (speed_ups, _, _) in EXPERIMENTS.items():
        load = 3 if experiment == "busy" else 1  # of the machine while it was timed
        for batch_size, speed_up in zip((1, 8), speed_ups, strict=True):
            for setup, faster in {"dense": 1.0, "masked": 0.9, "sparse": speed_up}.items():
                time = load * 10 * batch_size / faster
                row = {
                    "stage": "finetuned",
                    "configuration": setup,
                    "batch_size": batch_size,
                    "rounds": 9,
                    "reference": "dense",
                }
                row |= {"top1": float("nan"), "images": float("nan")}
                row |= {"milliseconds": time, "milliseconds_low": time - 1, "milliseconds_high": time + 2}
                row |= {"milliseconds_min": time - 2, "milliseconds_max": time + 9}
                row |= {"speed_up": faster, "speed_up_low": faster - 0.1, "speed_up_high": faster + 0.2}
                rows.append(names(experiment) | row | {"images_per_second": 1e3 * batch_size / time} | FACTS)
    assert set(rows[0]) == {column.name for column in SPEED.columns} | names("").keys()
    return pd.DataFrame(rows)


@pytest.fixture
def metrics() -> pd.DataFrame:
    rows = []
    for experiment, (_, top1, joules) in EXPERIMENTS.items():
        empty = names(experiment) | {column.name: 1 for column in METRICS.columns} | {"images": IMAGES}
        rows.append(empty | {"stage": "dense", "top1": 85.0, "power_term": 1.0, "energy": 1.0})
        # The power term has two models in the wrong order.
        term = {"half": 0.4, "third": 0.5, "busy": 0.8}[experiment]
        rows.append(empty | {"stage": "finetuned", "top1": top1, "power_term": term, "energy": 2 * joules})
    return pd.DataFrame(rows)


@pytest.fixture
def energy() -> pd.DataFrame:
    rows = []
    for experiment, (_, _, joules) in EXPERIMENTS.items():
        for setup, per_image in {"dense": 0.5, "masked": 0.51, "sparse": joules}.items():
            for repeat, factor in enumerate((1.0, 0.9, 1.4), start=1):
                row = {
                    "configuration": setup,
                    "source": "rapl",
                    "reason": None,
                    "repeat": repeat,
                    "images": 100,
                    "seconds": 10.0,
                }
                row |= {"joules": 999.0, "idle_watts": 5.0, "joules_net": 100 * factor * per_image}
                rows.append(names(experiment) | row)
    assert set(rows[0]) == {column.name for column in ENERGY.columns} | names("").keys()
    return pd.DataFrame(rows)


@pytest.fixture
def no_energy(energy: pd.DataFrame) -> pd.DataFrame:
    nothing = energy[energy["repeat"] == 1].assign(repeat=0, images=0, source=None, reason="no counter")
    return nothing.assign(seconds=math.nan, joules=math.nan, idle_watts=math.nan, joules_net=math.nan)


def test_every_arm_stands_beside_the_accuracy_and_joules_of_the_model_that_it_runs(speed, metrics, energy) -> None:
    table = speed_summary(speed, metrics, energy)
    assert len(table) == len(speed)
    half = table[table["experiment"] == "half"].set_index(["configuration", "batch_size"])
    assert half["top1"].to_dict() == {(setup, size): 85 if setup == "dense" else 80 for setup, size in half.index}
    assert half["joules"].xs(8, level="batch_size").to_dict() == pytest.approx(
        {"dense": 0.5, "masked": 0.51, "sparse": 0.3}
    )
    assert half["joules"].xs(1, level="batch_size").isna().all()  # measured with the largest batch only


def test_the_interval_of_an_accuracy_is_of_the_images_that_it_was_counted_on(speed, metrics, energy) -> None:
    own = {
        "configuration": "sparse",
        "top1": 78.0,
        "images": IMAGES_OF_ENGINE,
    }  # as an engine that rounds to int8 has it
    rounded = speed[speed["configuration"] == "masked"].assign(**own)
    table = speed_summary(pd.concat([speed[speed["configuration"] != "sparse"], rounded]), metrics, energy).set_index(
        "configuration"
    )
    for setup, top1, images in (("masked", table.loc["masked", "top1"], IMAGES), ("sparse", 78.0, IMAGES_OF_ENGINE)):
        rows = table.loc[[setup]]
        low, high = wilson(rows["top1"], pd.Series(images, rows.index))
        assert (rows["top1"] == top1).all()
        assert rows["top1_low"].tolist() == pytest.approx(low.tolist())
        assert rows["top1_high"].tolist() == pytest.approx(high.tolist())


def test_models_are_ranked_by_joules_where_these_were_measured(speed, metrics, energy, no_energy) -> None:
    ranking = energy_ranking(speed_summary(speed, metrics, energy))
    assert ranking["models"].tolist() == [4]  # the dense one once
    assert ranking["energy"].tolist() == pytest.approx([1])
    assert ranking["power_term"].tolist() == pytest.approx([1 - 6 * 2 / (4 * 15)])  # Spearman's sum of squared ranks
    assert energy_ranking(speed_summary(speed, metrics, no_energy)).empty
    two = speed_summary(speed, metrics, energy).query("experiment == 'half'")
    assert energy_ranking(two).empty


def test_the_table_for_people_says_the_machine_and_the_energy_or_why_there_is_none(
    speed, metrics, energy, no_energy
) -> None:
    text = speed_markdown(speed_summary(speed, metrics, energy), energy)
    assert text.startswith("Abacus, 2 threads, float32, kernel avx2, torch 2.15\n\n| dataset |")
    assert "| sparse        |          8 |" in text
    assert "3.00 (2.90 to 3.20) | 70.00 % |          200 |" in text
    assert "power term 0.80, energy model 1.00." in text
    assert speed_markdown(speed_summary(speed, metrics, no_energy), no_energy).endswith(
        "\nEnergy: not measured: no counter.\n"
    )


def test_a_model_stands_where_its_speed_up_places_it_however_busy_the_machine_was(speed, metrics, no_energy) -> None:
    figure = drawn("latency", speed_summary(speed, metrics, no_energy), {name: name for name in EXPERIMENTS})
    first, second = figure.axes
    marks = [[line for line in axes.lines if line.get_marker() in "*os^Dv"] for axes in (first, second)]
    places = [{tuple(line.get_xydata()[0]) for line in of_panel} for of_panel in marks]
    assert places[0] == {(10, 85), (10 / 1.5, 80), (10 / 2, 70), (10 / 1.25, 81)}
    assert places[1] == {(10, 85), (10 / 2, 80), (10 / 3, 70), (10 / 1.6, 81)}
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["digits, batch size 1", "digits, batch size 8"]


def test_a_model_stands_with_the_intervals_of_its_time_and_of_its_accuracy(speed, metrics, no_energy) -> None:
    axes = drawn("latency", speed_summary(speed, metrics, no_energy), {name: name for name in EXPERIMENTS}).axes[0]
    lines = [bars.get_segments() for bars in axes.collections]
    accuracies = {tuple(line[:, 1]) for segments in lines for line in segments if line[0, 0] == line[1, 0]}
    top1 = pd.Series([85.0, *(top1 for _, top1, _ in EXPERIMENTS.values())])
    low, high = wilson(top1, pd.Series(IMAGES, top1.index))
    assert sorted(low for low, _ in accuracies) == pytest.approx(sorted(low))
    assert sorted(high for _, high in accuracies) == pytest.approx(sorted(high))
    times = sorted(tuple(line[:, 0]) for segments in lines for line in segments if line[0, 1] == line[1, 1])
    assert len(times) == 4
    assert times[0] == pytest.approx((10 / 2.2, 10 / 1.9))


def latency(
    points: dict[tuple[int, int], list[tuple[float, float]]], block: tuple[int, int] = (16, 16)
) -> pd.DataFrame:
    rows = [(*shape, 5, *block, *point) for shape, of_shape in points.items() for point in of_shape]
    names = ["out_features", "in_features", "tokens", "block_rows", "block_columns", "sparsity", "milliseconds"]
    return pd.DataFrame(rows, columns=names)


def test_speed_up_counts_every_layer_as_often_as_it_occurs() -> None:
    costs = pd.DataFrame([(32, 32, 5)] * 3 + [(64, 32, 5)], columns=["out_features", "in_features", "tokens"])
    table = latency({(32, 32): [(0, 1), (0.2, 2), (0.8, 0.5)], (64, 32): [(0, 3), (0.1, 3), (0.8, 1.5)]})
    curve = speed_up_by_sparsity(table, costs)
    assert set(curve["block"]) == {"16x16"}
    assert curve["sparsity"].iloc[[0, -1]].tolist() == pytest.approx([0.2, 0.8])  # where both were measured
    assert curve["speed_up"].iloc[-1] == pytest.approx((3 * 1 + 3) / (3 * 0.5 + 1.5))
    assert curve["speed_up"].iloc[0] == pytest.approx((3 * 1 + 3) / (3 * 2 + 3 - 1.5 / 7))


@pytest.mark.parametrize(
    ("speed_ups", "expected"),
    [([0.5, 1.5, 2], 0.3), ([1.2, 0.9, 1.1], 0.6), ([1, 2, 3], 0.2), ([0.1, 0.2, 0.9], math.nan)],
)
def test_break_even_is_where_sparse_becomes_faster_for_good(speed_ups: list[float], expected: float) -> None:
    curve = pd.DataFrame({"sparsity": [0.2, 0.4, 0.8], "speed_up": speed_ups})
    assert break_even(curve) == pytest.approx(expected, nan_ok=True)


def test_each_block_shape_is_drawn_with_its_break_even() -> None:
    curves = [
        pd.DataFrame({"sparsity": [0.2, 0.4, 0.8], "speed_up": ups}).assign(block=block, dataset="digits", model="vit")
        for block, ups in {"16x16": [0.5, 1.5, 2], "32x32": [1.1, 2, 3], "8x8": [0.1, 0.2, 0.3]}.items()
    ]
    (axes,) = drawn("speed_up", pd.concat(curves)).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["16x16: 30 %", "32x32: ≤ 20 %", "8x8: none"]
    marks = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert marks[0] == [[pytest.approx(30), 1]]
