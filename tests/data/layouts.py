"""The same labelled images in every layout that people hold them in."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ("cat", "dog", "owl")
SPLITS = {"train": 4, "val": 2}  # images of each class


class Sample(NamedTuple):
    """An image: its split, class, name without suffix, and JPEG bytes."""

    split: str
    of_class: str
    name: str
    content: bytes

    @property
    def label(self) -> int:
        return NAMES.index(self.of_class)


Files = dict[str, bytes]


class Layout(NamedTuple):
    """How samples are stored: the files, and the dataset's keys besides ``root``."""

    files: Callable[[list[Sample]], Files]
    keys: dict[str, Any]
    names: tuple[str, ...] = NAMES  # of the classes


def samples() -> list[Sample]:
    return [
        Sample(split, name, f"{split}{number}{name}", jpeg(hash_of(split, name, number)))
        for split, count in SPLITS.items()
        for number in range(count)
        for name in NAMES
    ]


def hash_of(*parts: object) -> int:
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(repr(parts)))


def jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((40, 30)).save(buffer := io.BytesIO(), "JPEG", quality=95)
    return buffer.getvalue()


def write(root: Path, files: Files) -> None:
    """Makes a folder hold these files; what is there already stays untouched."""
    for path in (path for path in root.rglob("*") if path.is_file() and str(path.relative_to(root)) not in files):
        path.unlink()
    for name, content in files.items():
        path = root / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def in_folders(given: list[Sample], train: str = "train", val: str = "val", suffix: str = "jpg") -> Files:
    place = {"train": train, "val": val}
    return {f"{place[s.split]}/{s.of_class}/{s.name}.{suffix}": s.content for s in given}


def archive(members: list[tuple[str, bytes]]) -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as opened:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def in_tars(key: str, suffix: str, label: Callable[[Sample], str]) -> Callable[[list[Sample]], Files]:
    """Two shards a split; ``key`` may hold the fields of a sample."""

    def files(given: list[Sample]) -> Files:
        made = {}
        for split in SPLITS:
            of_split = [sample for sample in given if sample.split == split]
            for shard, part in enumerate((of_split[:3], of_split[3:])):
                members = []
                for sample in part:
                    start = key.format(**sample._asdict())
                    members.append((f"{start}.jpg", sample.content))
                    members += [(f"{start}{suffix}", label(sample).encode())] if suffix else []
                made[f"{split}-{shard:05}.tar"] = archive(members)
        return made

    return files


def in_tables(
    image: str, label: str, folder: str = "", form: str = "struct", labels: str = "names"
) -> Callable[[list[Sample]], Files]:
    """One parquet file a split."""

    def files(given: list[Sample]) -> Files:
        made = {}
        for split in SPLITS:
            part = [sample for sample in given if sample.split == split]
            images: list[Any] = [sample.content for sample in part]
            if form != "bytes":
                names = [f"{s.name}.jpg" if form == "struct" else None for s in part]
                images = [{"bytes": s.content, "path": name} for s, name in zip(part, names, strict=True)]
            masks = [{"bytes": b"a mask", "path": None}] * len(part)
            values = [sample.of_class if labels == "text" else sample.label for sample in part]
            content = {"mask": masks, "other": values[::-1], image: images, label: values}
            table = pa.table(content if form == "masked" else {image: images, label: values})
            feature = {"_type": "ClassLabel", "names": list(NAMES)}
            if labels == "names":
                written = {"info": {"features": {label: feature}}}
                table = table.replace_schema_metadata({"huggingface": json.dumps(written)})
            pq.write_table(table, buffer := io.BytesIO(), row_group_size=4)
            made[f"{folder}{split}-00000-of-00001.parquet"] = buffer.getvalue()
        return made

    return files


def in_csv(header: str, row: str, image: str) -> Callable[[list[Sample]], Files]:
    """One table a split; ``row`` and ``image`` hold the fields of a sample."""

    def files(given: list[Sample]) -> Files:
        made = {image.format(**s._asdict()): s.content for s in given}
        for split in SPLITS:
            rows = [row.format(**s._asdict(), label=s.label) for s in given if s.split == split]
            made[f"{split}.csv"] = "\n".join([header, *rows, ""]).encode()
        return made

    return files


def as_kaggle(given: list[Sample]) -> Files:
    base = "ILSVRC/Data/CLS-LOC"
    files = {f"{base}/train/{s.of_class}/{s.name}.JPEG": s.content for s in given if s.split == "train"}
    validation = [sample for sample in given if sample.split == "val"]
    files |= {f"{base}/val/{sample.name}.JPEG": sample.content for sample in validation}
    files |= {f"{base}/test/{number}.JPEG": jpeg(number) for number in range(2)}
    rows = [f"{s.name},{s.of_class} 85 1 499 272 {s.of_class} 131 0 499 254" for s in validation]
    files["LOC_val_solution.csv"] = "\n".join(["ImageId,PredictionString", *rows, ""]).encode()
    return files


NUMBERS = ("0", "1", "2")
LAYOUTS = {
    "folder": Layout(in_folders, {}),
    "folder, other names": Layout(
        lambda s: in_folders(s, "Training", "dev", "jfif"), {"train": "Training", "validation": "dev"}
    ),
    "folder, validate": Layout(lambda s: in_folders(s, "train", "validate"), {"validation": "validate"}),
    "tar, cls": Layout(in_tars("{name}", ".cls", lambda s: str(s.label)), {"source": "tar"}, NUMBERS),
    "tar, names": Layout(in_tars("{name}", ".txt", lambda s: s.of_class), {"source": "tar"}),
    "tar, json": Layout(in_tars("{name}", ".json", lambda s: json.dumps({"label": s.of_class})), {"source": "tar"}),
    "tar, folders": Layout(in_tars("set/{of_class}/{name}", "", lambda s: ""), {"source": "tar"}),
    "tar, dots": Layout(in_tars("img.{name}", ".cls", lambda s: s.of_class), {"source": "tar"}),
    "tar, recurring key": Layout(in_tars("same", ".cls", lambda s: s.of_class), {"source": "tar"}),
    "parquet": Layout(in_tables("image", "label"), {"source": "parquet"}),
    "parquet, CIFAR-100": Layout(
        in_tables("img", "fine_label", "cifar100/"),
        {"source": "parquet", "train": "cifar100/train", "validation": "cifar100/val"},
    ),
    "parquet, text": Layout(in_tables("image", "label", labels="text"), {"source": "parquet"}),
    "parquet, bytes": Layout(
        in_tables("picture", "label", form="bytes", labels="numbers"), {"source": "parquet"}, NUMBERS
    ),
    "parquet, no paths": Layout(in_tables("image", "label", form="nameless"), {"source": "parquet"}),
    "parquet, chosen columns": Layout(
        in_tables("photo/x", "kind", form="masked", labels="text"),
        {"source": {"name": "parquet", "image_column": "photo/x", "label_column": "kind"}},
    ),
    "csv": Layout(in_csv("path,label", "pictures/{name}.jpg,{of_class}", "pictures/{name}.jpg"), {"source": "csv"}),
    "csv, Kaggle": Layout(in_csv("id;breed;x", "{name};{of_class};", "{split}_images/{name}.jpg"), {"source": "csv"}),
    "csv, numbers": Layout(
        in_csv("image,label", "{name}.jpg,{label}", "images/{name}.jpg"), {"source": "csv"}, NUMBERS
    ),
    "Kaggle's ImageNet": Layout(as_kaggle, {"source": "kaggle_imagenet"}),
}
