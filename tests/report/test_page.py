"""What the page says, from frames by hand; how it behaves is tested in a browser."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_report import evaluations, series

from lpvit.report.charts import chart_data
from lpvit.report.environment import commit, durations, machine, versions
from lpvit.report.page import Report, render, up_to_date
from lpvit.report.results import COLUMNS, best, structure_cell, verdict
from lpvit.report.tables.speed import read_speed
from lpvit.report.tables.summary import summary
from lpvit.store.records import write_record
from lpvit.store.schemas import LAYERS
from lpvit.store.tables import empty_frame

TIMES = {"half": (2.0, 5.0), "third": (2.5, 4.0)}  # speed-up, milliseconds of the dense model for 2 images


@pytest.fixture
def table() -> pd.DataFrame:
    return summary(evaluations().query("experiment in ['half', 'third']"))


@pytest.fixture
def speed(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for experiment, (speed_up, milliseconds) in TIMES.items():
        names = {"dataset": "imagenet", "model": "deit_s", "experiment": experiment, "batch_size": 2}
        facts = {"device_name": "Abacus", "threads": "2", "dtype": "float32", "kernel": "avx2", "torch": "2.15"}
        own = table[(table["experiment"] == experiment) & (table["stage"] == "finetuned")]
        for stage, of, faster in (("dense", table[table["stage"] == "dense"], 1.0), ("finetuned", own, speed_up)):
            time = milliseconds / faster
            row = (
                names
                | facts
                | {"stage": stage, "configuration": "dense" if stage == "dense" else "sparse", "reference": "dense"}
            )
            row |= {"milliseconds": time, "milliseconds_low": time, "milliseconds_high": time, "images_per_second": 9.0}
            row |= {"speed_up": faster, "speed_up_low": faster - 0.1, "speed_up_high": faster + 0.1}
            row |= {name: of[name].iloc[0] for name in ("top1", "top1_low", "top1_high", "energy")}
            rows.append(row | {"model_top1": row["top1"], "joules": 0.5 / faster})
    return pd.DataFrame(rows)


def page(table: pd.DataFrame, speed: pd.DataFrame, **changes: Any) -> str:
    experiment = {"name": "half", "decisions": {"budget": {"name": "<half>", "settings": "macs: 0.5"}}, "figures": []}
    experiment |= {"structure": "blocks 16x16", "allocation": None, "rank_multiple": None, "methods": "<Half> was."}
    given = {
        "name": "main",
        "summary": table,
        "speed": speed,
        "series": series(evaluations()),
        "experiments": [{**experiment, "layers": empty_frame(LAYERS)}],
        "chance": {"imagenet": 0.1},
        "command": "lpvit prune it.yaml",
        "tradeoff": "",
        "paper": None,
        "facts": {"versions": versions()},
        "durations": durations([]),
        "config": "a: <b>",
        "written": "today",
    }
    return render(Report(**given | changes))


def rows(macs: list[float], top1: list[float], reach: float = 0.1) -> pd.DataFrame:
    """Final models with intervals of +- reach."""
    frame = pd.DataFrame({"macs": macs, "top1": top1}, list("abcde")[: len(macs)])
    return frame.assign(top1_low=frame["top1"] - reach, top1_high=frame["top1"] + reach, macs_ratio=frame["macs"] / 200)


def test_a_model_is_best_if_none_with_as_many_macs_or_fewer_is_as_accurate() -> None:
    of_macs = [100, 100, 50, 60, 100.4], [80.0, 79, 70, 69, 81]
    assert best(rows(*of_macs)).to_dict() == {"a": False, "b": False, "c": True, "d": False, "e": True}


def test_no_star_stands_within_the_interval_of_another_model_nor_at_chance() -> None:
    assert best(rows([100, 100], [80.0, 81], reach=1)).tolist() == [False, False]
    assert best(rows([100, 50], [81.0, 80], reach=1)).tolist() == [False, True]
    assert best(rows([100], [11.0], reach=2), chance=10).tolist() == [False]


def test_what_is_said_of_accuracies_is_what_the_interval_allows() -> None:
    dense = rows([200], [82.0], reach=1).iloc[0]
    told = " ".join(verdict(rows([100, 60, 50], [81.5, 81, 70], reach=1), dense, chance=10))
    assert "Highest top-1: a with 81.50 % (80.5 to 82.5) at 50.0 % of the MACs." in told
    assert "the difference of \u22120.50 points (\u22121.91 to +0.91) is not significant" in told
    assert "Not significantly less accurate than a: b." in told
    assert "At chance" not in told
    told = " ".join(verdict(rows([100], [77.0], reach=1), dense, chance=10))
    assert "points (\u22126.41 to \u22123.59) is significant" in told


def test_a_dense_model_at_chance_is_said_to_be_at_chance_and_nothing_is_praised() -> None:
    dense = rows([200], [29.0], reach=15).iloc[0]
    (told,) = verdict(rows([100], [35.0], reach=15), dense, chance=25.0)
    assert told.startswith("The dense model is at chance: 29.00 % (14.0 to 44.0)")


def test_the_page_says_what_the_layers_keep_and_what_each_column_is(table: pd.DataFrame, speed: pd.DataFrame) -> None:
    kept = pd.DataFrame({"layer": list("abc"), "blocks": 4, "blocks_kept": [1, 4, 3], "macs_dense": 100})
    kept["macs_kept"] = 25 * kept["blocks_kept"]
    assert structure_cell("blocks 8x8", kept, None).note == "keep 25 to 100 %"
    assert structure_cell("factors", kept, 8).note == "ranks 8 to 24, 1 dense"
    text = page(table, speed)
    assert "blocks 16x16" in text
    assert "&lt;Half&gt; was." in text
    assert all(f'title="{told}"' in text.replace("&#39;", "'") for told in COLUMNS.values())


def test_hints_name_the_command_of_this_run(table: pd.DataFrame) -> None:
    assert "<code>lpvit prune it.yaml --benchmark</code>" in page(table, read_speed("none.csv"))


def test_every_model_stands_at_its_costs_counted_and_measured(table: pd.DataFrame, speed: pd.DataFrame) -> None:
    data = chart_data(table, speed, series(evaluations()))
    models = {(model["name"], model["stage"]): model for model in data["datasets"]["imagenet"]}
    assert len(models) == len(table)
    half = models["half", "finetuned"]
    row = table[(table["experiment"] == "half") & (table["stage"] == "finetuned")].iloc[0]
    assert half["places"]["macs"] == {"x": row["macs"], "told": "2.12 G"}
    assert (half["low"], half["high"]) == (row["top1_low"], row["top1_high"])
    dense = models["deit_s, dense", "dense"]["places"]["milliseconds_2"]
    assert dense["x"] == pytest.approx((5.0 + 4.0) / 2 / 2)  # the median of both, per image
    assert half["places"]["milliseconds_2"]["x"] == pytest.approx(dense["x"] / 2.0)
    assert half["places"]["joules"]["x"] == 0.25
    assert "milliseconds_2" not in models["half", "pruned"]["places"]  # only final models are timed
    assert {model["series"] for model in models.values()} <= set(data["looks"])
    assert all(key in data["axes"] for model in models.values() for key in model["places"])


def test_an_engine_that_rounds_by_itself_stands_at_its_own_accuracy(table: pd.DataFrame, speed: pd.DataFrame) -> None:
    own = {"configuration": "masked_openvino_int8", "speed_up": 9.0, "top1": 61.0, "top1_low": 60.0, "top1_high": 62.0}
    rounded = speed[(speed["experiment"] == "half") & (speed["stage"] == "finetuned")].assign(**own)
    fresh, stale = up_to_date(pd.concat([speed, rounded], ignore_index=True), table)
    assert stale == []
    data = chart_data(table, fresh, series(evaluations()))
    (half,) = (m for m in data["datasets"]["imagenet"] if (m["name"], m["stage"]) == ("half", "finetuned"))
    expected = {"top1": 61.0, "low": 60.0, "high": 62.0, "told": "61.00 % (60.0 to 62.0)"}
    assert half["places"]["milliseconds_2"]["accuracy"] == expected
    assert half["top1"] == table.loc[(table["experiment"] == "half") & (table["stage"] == "finetuned"), "top1"].item()


def test_a_speed_measured_before_its_model_changed_is_left_out_and_named(
    table: pd.DataFrame, speed: pd.DataFrame
) -> None:
    assert up_to_date(speed, table)[1] == []
    changed = table.assign(top1=table["top1"].where(table["experiment"] != "half", 50.0))
    fresh, stale = up_to_date(speed, changed)
    assert stale == ["half"]
    assert set(fresh["experiment"]) == {"third"}
    assert "left out: half" in page(changed, speed)


def test_speed_survives_csv_and_is_empty_where_nothing_was_measured(
    tmp_path: Path, table: pd.DataFrame, speed: pd.DataFrame
) -> None:
    speed.to_csv(tmp_path / "speed.csv", index=False)
    pd.testing.assert_frame_equal(read_speed(tmp_path / "speed.csv"), speed)
    speed.drop(columns="model_top1").to_csv(tmp_path / "older.csv", index=False)
    assert read_speed(tmp_path / "older.csv").empty
    nothing = read_speed(tmp_path / "none.csv")
    assert nothing.empty
    text = page(table, nothing)
    assert "were not measured" in text
    assert 'id="speed"' not in text


def test_the_page_loads_nothing_and_escapes_what_it_is_given(table: pd.DataFrame, speed: pd.DataFrame) -> None:
    text = page(table, speed)
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)  # what plotly may name is no link
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", own)
    assert "&lt;half&gt;" in own
    assert "a: &lt;b&gt;" in own
    (data,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data)["axes"]["macs"]


def test_the_table_gives_intervals_differences_and_speed(table: pd.DataFrame, speed: pd.DataFrame) -> None:
    text = re.sub(r"<[^>]+>|\s+", " ", page(table, speed).partition("<main>")[2].partition("</table>")[0])
    half = re.sub(" +", " ", text[text.index(" fine-tuned ") : text.index(" third ")])
    cells = "80.40 % ★ best 79.6 to 81.2", "\u22120.80 \u22121.89 to +0.29", "61.00 % 60.0 to 62.0", "2.12 G 50.0 %"
    for cell in (*cells, "2.00\u00d7 1.90 to 2.10", "96.08 % 95.7 to 96.4"):
        assert cell in half, cell


def test_facts_tell_versions_machine_commit_and_what_stages_took(tmp_path: Path) -> None:
    assert {"lpvit", "python", "torch", "timm"} <= set(versions())
    assert machine()["cores"].isdigit()
    assert commit(tmp_path) == ""
    write_record(tmp_path / "curves.log", "rule", {}, seconds=61.5, mebibytes=1024.0)
    write_record(tmp_path / "cached.log", "rule", {})
    names = ("curves.log", "cached.log", "missing.log")
    timed = [{"stage": "curves", "of": "half", "log": str(tmp_path / name)} for name in names]
    assert durations(timed).to_dict("records") == [
        {"stage": "curves", "of": "half", "seconds": 61.5, "mebibytes": 1024.0}
    ]
