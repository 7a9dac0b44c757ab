"""Rows of a benchmark: printed, and appended to a CSV."""

from pathlib import Path

import pandas as pd


def append(rows: pd.DataFrame, file: Path | None) -> None:
    """Prints rows as a table and appends them to a file, if one is given, in the columns that it has."""
    print(rows.to_markdown(index=False, floatfmt=".4g"), flush=True)
    if file is None:
        return
    if file.exists():
        rows = rows[pd.read_csv(file, nrows=0).columns]
    rows.to_csv(file, mode="a", header=not file.exists(), index=False, float_format="%.6g")
