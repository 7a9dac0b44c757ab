"""Layout `csv`."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from lpvit.data.layouts import Found, Layout, Split, split_names, subfolders
from lpvit.data.listing import IMAGE_SUFFIXES
from lpvit.errors import LpvitError, one_line, printable

PATHS = (
    *(
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "filepaths",
        "image",
        "image_path",
        "img",
        "img_path",
    ),
    *("image_id", "imageid", "id", "name"),
)
LABELS = (
    "label",
    "labels",
    "class",
    "class_name",
    "target",
    "category",
    "species",
    "breed",
    "class_id",
    "label_id",
    "y",
)


class _Table(NamedTuple):
    """Columns of a table: name or path of each image, and its class."""

    images: list[str]
    classes: list[str]


class Csv(Layout):
    """A table for each split, `<split>.csv`, with a column of paths or names of images and one of classes."""

    rank: ClassVar[int] = 2

    name: Literal["csv"] = "csv"
    path_column: str | None = Field(None, description="null is found by its title: `path`, `file`, `image`, `id`, ...")
    label_column: str | None = Field(None, description="null is found by its title: `label`, `class`, `target`, ...")
    images: str | None = Field(
        None, description="folder below `root` that the paths are relative to; null is found by the first row"
    )

    def read(self, root: Path, split: str) -> Split:
        file = root / _table_of(split)
        table = self._read_table(file)
        folder, suffix = self._place(root, split, table.images, file)
        paths = [str(Path(folder, f"{name}{suffix}")) for name in table.images]
        missing = [path for path in paths if not (root / path).is_file()]
        if missing:
            raise LpvitError(
                f"{file}: {len(missing)} of its images are missing, such as {printable(root / missing[0])}"
            )
        return Split(paths, table.classes)

    def watched(self, root: Path, split: str) -> Iterator[str]:
        yield _table_of(split)
        try:
            table = self._read_table(root / _table_of(split))
            folder, suffix = self._place(root, split, table.images, root / split)
        except LpvitError:  # reported when it is read
            return
        yield from (str(Path(folder, f"{name}{suffix}")) for name in table.images)

    @classmethod
    def recognise(cls, folder: Path) -> Found | None:
        tables = {path.name: path for path in sorted(folder.glob("*.csv")) if cls._fits(folder, path)}
        if not tables:
            return None
        starts = split_names(Path(name).stem for name in tables)
        exact = starts is not None and f"{starts[0]}.csv" in tables
        train, validation = starts if starts is not None and exact else (Path(next(iter(tables))).stem, None)
        return Found(cls(), folder, train, validation if f"{validation}.csv" in tables else None)

    @classmethod
    def _fits(cls, folder: Path, table: Path) -> bool:
        """Whether a table names images and their classes."""
        layout = cls()
        try:
            images = layout._read_table(table, rows=1).images
            return bool(layout._place(folder, table.stem, images, table))
        except LpvitError:
            return False

    def _read_table(self, file: Path, rows: int | None = None) -> _Table:
        try:
            with file.open(newline="", encoding="utf-8-sig") as lines:
                header = lines.readline()
                delimiter = max(",;\t", key=header.count)
                titles = next(csv.reader([header], delimiter=delimiter), [])
                path = _column(titles, self.path_column, PATHS, file, "path_column")
                label = _column(titles, self.label_column, LABELS, file, "label_column")
                table = _Table([], [])
                for number, row in enumerate(csv.reader(lines, delimiter=delimiter), start=2):
                    if not row:
                        continue
                    if len(row) != len(titles) or not row[path] or not row[label].strip():
                        raise LpvitError(f"{file}, line {number}: expected {len(titles)} columns with path and class")
                    table.images.append(row[path])
                    table.classes.append(row[label].strip())
                    if len(table.images) == rows:
                        break
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise LpvitError(
                f"{file}: cannot be read as a table ({one_line(error)}); correct 'root', 'train' or 'validation'"
            ) from None
        if not table.images:
            raise LpvitError(f"{file}: has no rows; expected one for each image")
        return table

    def _place(self, root: Path, split: str, images: Sequence[str], file: Path) -> tuple[str, str]:
        """Folder of the images below the root, and the suffix that their names lack, by the first one."""
        near = [split, f"{split}_images", f"{split}-images", "images", "train", "train_images", *_visible(root)]
        for folder in [self.images] if self.images is not None else ["", *near]:
            for suffix in ("", *IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES), ".JPEG"):
                if (root / folder / f"{images[0]}{suffix}").is_file():
                    return folder, suffix
        raise LpvitError(
            f"{file}: its first image, '{printable(images[0])}', is not found below {root}; choose the folder by "
            "'source: {name: csv, images: ...}'"
        )


def _visible(root: Path) -> list[str]:
    return subfolders(root) if root.is_dir() else []


def _table_of(split: str) -> str:
    return split if split.endswith(".csv") else f"{split}.csv"


def _column(titles: Sequence[str], chosen: str | None, known: Sequence[str], file: Path, key: str) -> int:
    """Position of a column, by the title that is chosen or by known ones."""
    plain = [title.strip().lower() for title in titles]
    place = {title.strip(): number for number, title in reversed(list(enumerate(titles)))}
    number = place.get(chosen) if chosen is not None else next((plain.index(n) for n in known if n in plain), None)
    if number is None:
        what = f"'{chosen}'" if chosen is not None else f"one titled {known[0]}, {known[1]}, ..."
        columns = printable(", ".join(titles))
        raise LpvitError(f"{file}: columns {columns}; expected {what}; choose by 'source: {{name: csv, {key}: ...}}'")
    return number
