"""Layout `parquet`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from pydantic import Field

from lpvit.data.layouts import Found, Layout, Split
from lpvit.data.shards import recognise_shards, require_shards, shards_of
from lpvit.errors import LpvitError, one_line, printable, some_of

if TYPE_CHECKING:
    import pyarrow as pa


class Parquet(Layout):
    """Shards of images, bytes or a struct with `bytes`, and labels, numbers or text (Hugging Face)."""

    name: Literal["parquet"] = "parquet"
    image_column: str | None = Field(None, description="null is the only column of images, or `image`, or `img`")
    label_column: str | None = Field(None, description="null is `label`, or the only column of numbers with names")

    def read(self, root: Path, split: str) -> Split:
        paths: list[str] = []
        classes: list[str] = []
        names: Sequence[str] | None = None
        for number, shard in enumerate(require_shards(root, split, ".parquet")):
            part = self._read_shard(root, shard)
            if number and part.names != names:
                raise LpvitError(
                    f"{root / shard}: names of classes differ from those of the shard before; write them again"
                )
            paths.extend(part.paths)
            classes.extend(part.classes)
            names = part.names
        return Split(paths, classes, names)

    def watched(self, root: Path, split: str) -> list[str]:
        return shards_of(root, split, ".parquet")

    @classmethod
    def recognise(cls, folder: Path) -> Found | None:
        splits = recognise_shards(folder, ".parquet")
        return None if splits is None else Found(cls(), folder, *splits)

    def _read_shard(self, root: Path, shard: str) -> Split:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from lpvit.data.encoded import image_column

        place = str(root / shard)
        try:
            with pq.ParquetFile(root / shard) as file:
                schema = file.schema_arrow
                images, label = self._image_column(schema, place), self._label_column(schema, place)
                kind = schema.field(images).type
                named = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
                table = file.read(columns=[label, *([f"{images}.path"] if named else [])])
        except (pa.ArrowException, OSError) as error:
            raise LpvitError(f"{place}: cannot be read as a parquet file ({one_line(error)}); replace it") from None
        files = [(entry or {}).get("path") for entry in table[images].to_pylist()] if named else [None] * len(table)
        column = "" if images == image_column(schema) else f":{quote(images, safe='')}"
        paths = [f"{shard}@{row}{column}/{file or row}" for row, file in enumerate(files)]
        names = _names(schema, label)
        return Split(
            paths, [_class(value, names, place, row) for row, value in enumerate(table[label].to_pylist())], names
        )

    def _image_column(self, schema: "pa.Schema", place: str) -> str:
        from lpvit.data.encoded import image_columns

        found = image_columns(schema)
        chosen = self.image_column or next((name for name in ("image", "img") if name in found), None)
        if chosen is None and len(found) == 1:
            chosen = found[0]
        if chosen in found:
            return str(chosen)
        if chosen is None and found:
            raise LpvitError(
                f"{place}: has images in {some_of(found)}; choose by "
                f"'source: {{name: parquet, image_column: {found[0]}}}'"
            )
        asked = f" '{chosen}'" if chosen else ""
        raise LpvitError(
            f"{place}: columns {', '.join(schema.names)}; expected a column{asked} of images, bytes or a struct "
            "with a field 'bytes'"
        )

    def _label_column(self, schema: "pa.Schema", place: str) -> str:
        named = [name for name in schema.names if _names(schema, name)]
        chosen = self.label_column or ("label" if "label" in schema.names else None)
        if chosen is None and len(named) == 1:
            chosen = named[0]
        if chosen in schema.names:
            return str(chosen)
        asked = "'label', or another one" if chosen is None else f"'{chosen}'"
        raise LpvitError(
            f"{place}: columns {', '.join(schema.names)}; expected class numbers or names in {asked}; choose by "
            f"'source: {{name: parquet, label_column: {(named or schema.names)[0]}}}'"
        )


def _class(value: Any, names: Sequence[str] | None, place: str, row: int) -> str:
    """The class of a row; a number becomes its name, if the classes have names."""
    if isinstance(value, int) and 0 <= value < (len(names) if names else value + 1):
        return names[value] if names else str(value)
    if isinstance(value, str) and value:
        return value
    raise LpvitError(f"{place}: row {row}: label {printable(value)}, expected the number or name of a class")


def _names(schema: "pa.Schema", column: str) -> Sequence[str] | None:
    """Names of the classes, from Hugging Face's metadata of a column of class numbers."""
    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = written.get("info", {}).get("features", {}).get(column, {})
    names: Sequence[str] | None = feature.get("names") if isinstance(feature, dict) else None
    return names
