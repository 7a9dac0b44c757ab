import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpvit.errors import LpvitError
from lpvit.store import schemas
from lpvit.store.schemas import ALL, IMAGES, SAMPLES
from lpvit.store.tables import Column, Schema, read_parquet, write_parquet

MIXED = Schema(
    "mixed.parquet",
    "row",
    (
        Column("name", pa.string(), "", "text"),
        Column("count", pa.int64(), "1/image", "whole number"),
        Column("share", pa.float64(), "%", "number"),
        Column("flag", pa.bool_(), "", "yes or no"),
        Column("note", pa.string(), "", "may be missing", nullable=True),
    ),
)


def mixed(**changes):
    columns = {"name": ["a", "b"], "count": [1, 2], "share": [0.5, 1.0], "flag": [True, False], "note": ["x", None]}
    return pd.DataFrame(columns | changes)


def written(frame, path, schema=MIXED):
    write_parquet(frame, path, schema)
    return read_parquet(path, schema)


def test_a_table_comes_back_as_it_was_written(tmp_path):
    back = written(mixed(), tmp_path / "deep" / "folder" / "mixed.parquet")
    pd.testing.assert_frame_equal(back, mixed(), check_dtype=False)
    assert back["note"].isna().tolist() == [False, True]


def test_columns_come_back_in_the_order_of_the_schema(tmp_path):
    back = written(mixed()[["note", "flag", "share", "count", "name"]], tmp_path / "t.parquet")
    assert back.columns.tolist() == ["name", "count", "share", "flag", "note"]


def test_the_index_of_a_frame_is_not_written(tmp_path):
    back = written(mixed().set_index(pd.Index([7, 7])), tmp_path / "t.parquet")
    assert back.index.tolist() == [0, 1]


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    back = written(mixed().iloc[:0], tmp_path / "t.parquet")
    assert len(back) == 0
    assert back.columns.tolist() == mixed().columns.tolist()


def test_units_and_descriptions_travel_with_the_file(tmp_path):
    write_parquet(mixed(), tmp_path / "t.parquet", MIXED)
    field = pq.read_schema(tmp_path / "t.parquet").field("count")
    assert field.metadata == {b"unit": b"1/image", b"description": b"whole number"}
    assert not field.nullable


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (mixed().drop(columns="share"), "columns"),
        (mixed(extra=[1, 2]), "columns"),
        (mixed().rename(columns={"name": "nome"}), "columns"),
        (mixed(name=["a", None]), "name.*1 null value"),
        (mixed(share=[0.5, np.nan]), "share.*1 null value"),
        (mixed(count=[1.5, 2]), "truncat"),
        (mixed(count=["one", "two"]), "convert|type"),
        (mixed(name=[1, 2]), "string"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path, frame, message):
    with pytest.raises((ValueError, TypeError), match=f"(?is){message}"):
        write_parquet(frame, tmp_path / "t.parquet", MIXED)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_frame_leaves_the_old_file_alone(tmp_path):
    write_parquet(mixed(), tmp_path / "t.parquet", MIXED)
    with pytest.raises(ValueError, match="columns"):
        write_parquet(mixed(extra=[1, 2]), tmp_path / "t.parquet", MIXED)
    pd.testing.assert_frame_equal(read_parquet(tmp_path / "t.parquet", MIXED), mixed(), check_dtype=False)


def damage_missing(path):
    path.unlink()


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-20])


def damage_empty(path):
    path.write_bytes(b"")


def damage_text(path):
    path.write_text("layer,macs\n")


@pytest.mark.parametrize("damage", [damage_missing, damage_truncated, damage_empty, damage_text])
def test_a_missing_or_damaged_file_is_named_in_one_line(tmp_path, damage):
    path = tmp_path / "t.parquet"
    write_parquet(mixed(), path, MIXED)
    damage(path)
    with pytest.raises(LpvitError, match=r"t\.parquet: cannot be read .*delete it and rerun") as error:
        read_parquet(path, MIXED)
    assert "\n" not in str(error.value)


def test_a_table_of_another_schema_is_refused(tmp_path):
    write_parquet(mixed(), tmp_path / "t.parquet", MIXED)
    with pytest.raises(LpvitError, match=r"not a table of this version of lpvit \(samples\.parquet\)"):
        read_parquet(tmp_path / "t.parquet", SAMPLES)


def test_a_reworded_description_does_not_outdate_a_file(tmp_path):
    write_parquet(mixed(), tmp_path / "t.parquet", MIXED)
    reworded = Schema(
        MIXED.file, MIXED.row, (*MIXED.columns[:4], Column("note", pa.string(), "s", "other words", True))
    )
    read_parquet(tmp_path / "t.parquet", reworded)


def test_images_may_lack_a_problem_but_not_a_label(tmp_path):
    image = {"split": "train", "path": "a/b.jpg", "label": 0, "class_name": "a", "problem": None}
    assert written(pd.DataFrame([image]), tmp_path / "t.parquet", IMAGES)["problem"].isna().all()
    with pytest.raises(ValueError, match=r"label.*1 null value"):
        write_parquet(pd.DataFrame([image | {"label": None}]), tmp_path / "t.parquet", IMAGES)


def test_every_schema_is_listed_once_and_described():
    declared = [value for value in vars(schemas).values() if isinstance(value, Schema)]
    assert sorted(schema.file for schema in declared) == sorted(schema.file for schema in ALL)
    assert len({schema.file for schema in ALL}) == len(ALL)
    for schema in ALL:
        names = [column.name for column in schema.columns]
        assert len(set(names)) == len(names)
        assert all(column.description for column in schema.columns)
        assert schema.row
