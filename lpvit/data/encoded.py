"""The encoded bytes of images: where they are stored, and how they are read.

The path of an image gives the location and ends with a readable name:

- ``train/cat/1.jpg``: a file;
- ``train-0.tar@1536+40960/1.jpg``: 40,960 bytes from byte 1,536 of a file that holds many;
- ``train-0.parquet@17/1.jpg``: row 17 of a table.
"""

import re
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")

_BYTES = re.compile(r"(.+\.(?:tar|images))@(\d+)\+(\d+)/", re.DOTALL)
_ONE_AT_A_TIME = Lock()  # else threads that read in order would all read the same row group
_ROW = re.compile(r"(.+\.parquet)@(\d+)/", re.DOTALL)


def is_a_file(path: str) -> bool:
    """Whether an image is a file of its own."""
    return not (_BYTES.match(path) or _ROW.match(path))


def file_of(path: str) -> str:
    """The file that contains an image."""
    place = _BYTES.match(path) or _ROW.match(path)
    return place[1] if place else path


def name_of(path: str) -> str:
    """A path without the location within a file."""
    return re.sub(r"(\.(?:tar|images|parquet))@[\d+]+/", r"\1/", path)


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
        return _read_row(place[1], int(place[2]))
    return Path(path).read_bytes()


def image_column(schema: pa.Schema) -> str | None:
    """The column of a parquet file that holds images, as Hugging Face writes them: a struct with a field ``bytes``."""
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    return None


def _read_row(file: str, row: int) -> bytes:
    starts = _row_starts(file)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    with _ONE_AT_A_TIME:
        found: bytes | None = _row_group(file, group)[row - int(starts[group])].as_py()
    return found or b""


@lru_cache(maxsize=1024)
def _row_starts(file: str) -> np.ndarray:
    """First row of each row group."""
    metadata = pq.read_metadata(file)
    return np.cumsum([0] + [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups - 1)])


@lru_cache(maxsize=2)  # in order, each is read once; out of order, often
def _row_group(file: str, group: int) -> pa.ChunkedArray:
    with pq.ParquetFile(file) as table:
        column = image_column(table.schema_arrow)
        images = table.read_row_group(group, columns=[f"{column}.bytes"], use_threads=False)[column]
        return pc.struct_field(images, "bytes")
