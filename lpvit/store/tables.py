"""Parquet tables with a schema: columns, units and meaning, checked when read and when written."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lpvit.errors import LpvitError
from lpvit.store.artifacts import replace_atomically
from lpvit.store.digest import BLANK, seal, verify


@dataclass(frozen=True)
class Column:
    name: str
    dtype: pa.DataType
    unit: str
    description: str
    nullable: bool = False


@dataclass(frozen=True)
class Schema:
    """A table: one row per ``row``, written as ``file``."""

    file: str
    row: str
    columns: tuple[Column, ...]

    def arrow(self) -> pa.Schema:
        return pa.schema(
            pa.field(c.name, c.dtype, c.nullable, {"unit": c.unit, "description": c.description}) for c in self.columns
        )


def write_parquet(frame: pd.DataFrame, path: str | Path, schema: Schema) -> None:
    """Writes a frame whose columns are exactly those of the schema, in any order, atomically.

    Raises:
        ValueError: Columns, types or missing values do not fit the schema.
        LpvitError: The disk is full or the folder cannot be written.
    """
    names = [column.name for column in schema.columns]
    if set(frame.columns) != set(names):
        raise ValueError(f"{path}: columns {sorted(frame.columns)} are not those of {schema.file}: {sorted(names)}")
    table = pa.Table.from_pandas(frame[names], schema=schema.arrow(), preserve_index=False, safe=True)
    with replace_atomically(path) as partial:
        with pq.ParquetWriter(partial, table.schema) as file:
            file.write_table(table)
            file.add_key_value_metadata({"digest": BLANK})
        seal(partial)


def empty_frame(schema: Schema) -> pd.DataFrame:
    """No rows, all columns."""
    frame: pd.DataFrame = schema.arrow().empty_table().to_pandas()
    return frame


def read_parquet(path: str | Path, schema: Schema) -> pd.DataFrame:
    """Reads a table that `write_parquet` wrote.

    Raises:
        LpvitError: The file is missing, damaged or of another schema.
    """
    verify(path)
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise LpvitError(
            f"{path}: cannot be read as parquet ({str(error).splitlines()[0]}); delete it and rerun"
        ) from None
    if not table.schema.equals(schema.arrow()):
        raise LpvitError(f"{path}: not a table of this version of lpvit ({schema.file}); delete it and rerun")
    frame: pd.DataFrame = table.to_pandas()
    return frame
