"""Images in shards: tar files in WebDataset layout, parquet files in Hugging Face layout."""

import glob
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lpvit.data.encoded import IMAGE_SUFFIXES, image_column
from lpvit.errors import LpvitError, one_line

SOURCES = ("tar", "parquet")


def list_shards(source: str, root: Path, split: str) -> pd.DataFrame:
    """Lists the images of a split in the order of its shards.

    Args:
        source: ``tar``: images and class numbers, ``<key>.jpg`` and ``<key>.cls``. ``parquet``: a struct column with
            the bytes of the images, and the column ``label``; the names of the classes are in its metadata, or are
            their numbers.
        root: Folder of the dataset.
        split: A folder of shards below it, ``<split>/*.tar``, or a prefix of their names, ``<split>-*.tar``.

    Returns:
        Columns ``path`` (see `lpvit.data.encoded`), ``label`` and ``class_name``.

    Raises:
        LpvitError: There are no shards, one cannot be read, or an image has no class number.
    """
    read = _members_of_tar if source == "tar" else _rows_of_parquet
    rows = [row for shard in _shards(root, split, f".{source}") for row in read(root, shard)]
    images = pd.DataFrame(rows, columns=["path", "label", "class_name"])
    labels = sorted(images["label"].unique())
    if labels != list(range(len(labels))) or not labels:
        missing = next(number for number in range(len(labels) + 1) if number not in labels)
        raise LpvitError(f"{root / split}: no image of class {missing}; classes are numbered from 0 on without gaps")
    return images


def _shards(root: Path, split: str, suffix: str) -> list[str]:
    """Paths below ``root``, in lexical order."""
    start = glob.escape(split)
    shards = sorted(root.glob(f"{start}/*{suffix}")) or sorted(root.glob(f"{start}-*{suffix}"))
    if not shards:
        raise LpvitError(
            f"{root}: no {split}/*{suffix} and no {split}-*{suffix}; correct 'root', 'train' or 'validation'"
        )
    return [shard.relative_to(root).as_posix() for shard in shards]


def _members_of_tar(root: Path, shard: str) -> Iterator[tuple[str, int, str]]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(root / shard, "r:") as archive:
            for member in filter(tarfile.TarInfo.isfile, archive):
                folder, slash, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                samples.setdefault(f"{folder}{slash}{key}", {})[f".{extension.lower()}"] = member
            for key, members in samples.items():
                for image in (member for extension, member in members.items() if extension in IMAGE_SUFFIXES):
                    label = _class_number(archive, members.get(".cls"), f"{root / shard}: {key}.cls")
                    yield f"{shard}@{image.offset_data}+{image.size}/{image.name}", label, str(label)
    except (tarfile.TarError, OSError) as error:
        raise LpvitError(f"{root / shard}: cannot be read as a tar file ({error}); replace it") from None


def _class_number(archive: tarfile.TarFile, member: tarfile.TarInfo | None, place: str) -> int:
    content = archive.extractfile(member) if member is not None else None
    text = b"" if content is None else content.read(32).strip()
    if not text.isdigit():
        found = "missing" if content is None else f"found {text.decode(errors='replace')!r}"
        raise LpvitError(f"{place}: {found}, expected the number of the image's class")
    return int(text)


def _rows_of_parquet(root: Path, shard: str) -> Iterator[tuple[str, int, str]]:
    try:
        with pq.ParquetFile(root / shard) as file:
            schema = file.schema_arrow
            column = image_column(schema)
            if column is None or "label" not in schema.names or not pa.types.is_integer(schema.field("label").type):
                raise LpvitError(
                    f"{root / shard}: columns {', '.join(schema.names)}; expected a struct of images with a field "
                    "'bytes', and 'label' with class numbers"
                )
            has_names = schema.field(column).type.get_field_index("path") >= 0
            table = file.read(columns=["label", *([f"{column}.path"] if has_names else [])])
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error)
        raise LpvitError(f"{root / shard}: cannot be read as a parquet file ({reason}); replace it") from None
    classes = _class_names(schema)
    names = [entry["path"] for entry in table[column].to_pylist()] if has_names else [None] * len(table)
    for row, (label, name) in enumerate(zip(table["label"].to_pylist(), names, strict=True)):
        if label is None or not 0 <= label < (len(classes) or label + 1):
            raise LpvitError(f"{root / shard}: row {row}: label {label}, expected the number of a class")
        yield f"{shard}@{row}/{name or row}", label, classes[label] if classes else str(label)


def _class_names(schema: pa.Schema) -> list[str]:
    """Class names from Hugging Face's metadata of the column ``label``; empty without them."""
    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names: list[str] = written.get("info", {}).get("features", {}).get("label", {}).get("names", [])
    return names
