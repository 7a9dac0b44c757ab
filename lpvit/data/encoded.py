"""The encoded bytes of images: where they are stored, and how they are read.

The path of an image gives the location and ends with a readable name:

- ``train/cat/1.jpg``: a file;
- ``train-0.tar@1536+40960/1.jpg``: 40,960 bytes from byte 1,536 of a file that holds many;
- ``train-0.parquet@17/1.jpg``: row 17 of a table; ``@17:photo/1.jpg``: in its column ``photo``, of several.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jfif")

_BYTES = re.compile(r"(.+\.(?:tar|images))@(\d+)\+(\d+)/", re.DOTALL)
_ONE_AT_A_TIME = Lock()  # else threads that read in order would all read the same row group
_ROW = re.compile(r"(.+\.parquet)@(\d+)(?::([^/]+))?/", re.DOTALL)
_LOOKED_AT = 64  # images whose names say no format, evenly spaced


def is_a_file(path: str) -> bool:
    """Whether an image is a file of its own."""
    return not (_BYTES.match(path) or _ROW.match(path))


def file_of(path: str) -> str:
    """The file that contains an image."""
    place = _BYTES.match(path) or _ROW.match(path)
    return place[1] if place else path


def name_of(path: str) -> str:
    """A path without the location within a file."""
    return re.sub(r"(\.(?:tar|images|parquet))@[\d+]+(?::[^/]+)?/", r"\1/", path)


def read_encoded(path: str | Path) -> bytes:
    """The bytes of an image file.

    Args:
        path: As above, below the folder of this process.

    Raises:
        OSError: The file cannot be read.
        pyarrow.ArrowException: It is not a valid parquet file.
    """
    if place := _BYTES.match(str(path)):
        with Path(place[1]).open("rb") as file:
            file.seek(int(place[2]))
            return file.read(int(place[3]))
    if place := _ROW.match(str(path)):
        return _read_row(place[1], int(place[2]), unquote(place[3] or ""))
    return Path(path).read_bytes()


def first_without_jpeg(root: Path, paths: Sequence[str]) -> str | None:
    """The first image that is no JPEG file, by its content if its name does not say that it is one.

    Of many such names, only some are opened.
    """
    unsaid = [path for path in paths if not path.lower().endswith(JPEG_SUFFIXES)]
    for path in unsaid[:: max(1, len(unsaid) // _LOOKED_AT)]:
        try:
            if not read_encoded(root / path).startswith(b"\xff\xd8\xff"):
                return path
        except (OSError, pa.ArrowException):
            return path
    return None


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns of a parquet file that may hold images: bytes, or structs with a field ``bytes`` (Hugging Face)."""
    return [
        str(field.name)
        for field in schema
        if (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
        or pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
    ]


def image_column(schema: pa.Schema) -> str | None:
    """The column that holds the images where a path names none."""
    return next(iter(image_columns(schema)), None)


def _read_row(file: str, row: int, column: str) -> bytes:
    starts = _row_starts(file)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    with _ONE_AT_A_TIME:
        found: bytes | None = _row_group(file, group, column)[row - int(starts[group])].as_py()
    return found or b""


@lru_cache(maxsize=1024)
def _row_starts(file: str) -> np.ndarray:
    """First row of each row group."""
    metadata = pq.read_metadata(file)
    return np.cumsum([0] + [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups - 1)])


@lru_cache(maxsize=2)  # in order, each is read once; out of order, often
def _row_group(file: str, group: int, column: str) -> pa.ChunkedArray:
    with pq.ParquetFile(file) as table:
        name = column or image_column(table.schema_arrow)
        is_struct = pa.types.is_struct(table.schema_arrow.field(name).type)
        columns = [f"{name}.bytes" if is_struct else name]
        images = table.read_row_group(group, columns=columns, use_threads=False)[name]
        return pc.struct_field(images, "bytes") if is_struct else images
