"""Shards and copies hold what a folder holds: the same images and labels through every loader."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_loaders import FULL, LOADERS, labels_of, load, same

from lpvit.data.encoded import is_a_file, name_of, read_encoded
from lpvit.data.index import check_images, index_images, usable_images
from lpvit.data.loading import image_files
from lpvit.data.scratch import copy_to_scratch, scratch_folder
from lpvit.data.settings import Dataset, ImageSet
from lpvit.errors import LpvitError
from lpvit.store.schemas import IMAGES
from lpvit.store.tables import read_parquet, write_parquet

NAMES = ["cat", "dog", "owl"]
SPLITS = {"train": 7, "val": 3}  # images of each class


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images three times: `folder`, `tar` and `parquet`, two shards a split, classes in turn."""
    root = tmp_path_factory.mktemp("sets")
    generator = np.random.default_rng(0)
    for split, count in SPLITS.items():
        samples = []
        for number in range(count):
            for label, name in enumerate(NAMES):
                pixels = Image.fromarray(generator.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize((40, 30))
                (file := root / "folder" / split / name / f"{number}.jpg").parent.mkdir(parents=True, exist_ok=True)
                pixels.save(file, quality=95)
                samples.append((f"{name}/{number}.jpg", file.read_bytes(), label))
        for shard, part in enumerate((samples[:5], samples[5:])):
            write_tar(root / "tar" / split / f"{shard:05}.tar", part)
            write_table(root / "parquet" / f"{split}-{shard:05}-of-00002.parquet", part)
    return root


def write_tar(path: Path, samples: list[tuple[str, bytes, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content, label in samples:
            for member, value in ((name, content), (name.replace(".jpg", ".cls"), str(label).encode())):
                info = tarfile.TarInfo(member)
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value))


def write_table(path: Path, samples: list[tuple[str, bytes, object]], names: list[str] | None = NAMES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = [{"bytes": content, "path": name} for name, content, _ in samples]
    table = pa.table({"image": image, "label": [label for _, _, label in samples]})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=4)


def index(root: Path, source: str, **options: Any) -> pd.DataFrame:
    return index_images(ImageSet(source=source, root=root / source, **options), threads=2)


def as_in_folder(images: pd.DataFrame) -> pd.DataFrame:
    """In the order of classes and files, as a folder is listed."""
    return images.sort_values(
        ["label", "path"], key=lambda c: c.map(name) if c.name == "path" else c, ignore_index=True
    )


def name(path: str) -> str:
    return Path(name_of(path)).name


@pytest.mark.parametrize("source", ["tar", "parquet"])
def test_shards_list_the_images_and_labels_of_the_folder_in_the_order_of_the_shards(root: Path, source: str) -> None:
    images, folder = index(root, source), index(root, "folder")
    assert images["problem"].isna().all()
    for split in ("train", "validation"):
        of_split = images[images["split"] == split]
        assert of_split["label"].head(6).tolist() == [0, 1, 2, 0, 1, 2]
        ordered, expected = as_in_folder(of_split), folder[folder["split"] == split].reset_index(drop=True)
        assert ordered["label"].tolist() == expected["label"].tolist()
        assert ordered["path"].map(name).tolist() == expected["path"].map(name).tolist()
        contents = [read_encoded(root / source / path) for path in ordered["path"]]
        assert contents == [(root / "folder" / path).read_bytes() for path in expected["path"]]
    assert sorted(images["class_name"].unique()) == (NAMES if source == "parquet" else ["0", "1", "2"])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("source", ["tar", "parquet"])
@pytest.mark.parametrize("augmentation", [None, FULL], ids=["evaluation", "training"])
def test_every_loader_gives_the_pixels_of_the_folder(
    root: Path, loader: str, source: str, augmentation: object
) -> None:
    folder = usable_images(index(root, "folder"), "train")
    images = as_in_folder(usable_images(index(root, source), "train"))
    options = {"augmentation": augmentation, "threads": 2, "epoch": 1}
    assert same(load(images, root / source, loader, **options), load(folder, root / "folder", loader, **options))


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("source", ["tar", "parquet"])
def test_processes_share_the_images_of_shards_without_gap_or_overlap(root: Path, loader: str, source: str) -> None:
    images = usable_images(index(root, source), "validation").assign(label=range(9))
    parts = [labels_of(load(images, root / source, loader, rank=rank, world_size=4)) for rank in range(4)]
    assert sorted(label for part in parts for label in part) == list(range(9))
    assert [len(part) for part in parts] == [3, 2, 2, 2]


def test_shards_that_are_not_split_give_a_share_of_each_class_to_validation(root: Path, tmp_path: Path) -> None:
    images = index(root, "tar", validation_share=0.3)
    counts = images.groupby(["split", "label"]).size()
    assert (counts["train"] == 5).all()
    assert (counts["validation"] == 2).all()
    assert images["path"].is_unique
    write_parquet(images, tmp_path / "images.parquet", IMAGES)
    assert read_parquet(tmp_path / "images.parquet", IMAGES)["path"].tolist() == images["path"].tolist()


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("write", [write_tar, write_table])
def test_a_broken_image_in_a_shard_is_found_and_named(
    root: Path, tmp_path: Path, loader: str, write: Callable[..., None]
) -> None:
    good = (root / "folder/val/cat/0.jpg").read_bytes()
    source = "tar" if write is write_tar else "parquet"
    for split in ("train", "val"):
        samples = [(f"{i}.jpg", good, i % 2) for i in range(6)]
        samples[3] = ("wrong.jpg", good[: len(good) // 2] if split == "val" else good, 1)
        write(tmp_path / f"{split}-0.{source}", samples)
    images = index_images(ImageSet(source=source, root=tmp_path))
    bad = images[images["problem"].notna()]
    assert len(bad) == 1
    assert bad["path"].item().startswith(f"val-0.{source}@")
    with pytest.raises(LpvitError, match=rf"{tmp_path}/val-0\.{source}@[\d+]+/wrong\.jpg: .*[Tt]runcated"):
        check_images(images, "error", tmp_path)
    table = images[images["split"] == "validation"][["path", "label"]].reset_index(drop=True)
    with pytest.raises(LpvitError, match=rf"^{tmp_path}/val-0\.{source}@[\d+]+/wrong\.jpg: cannot be decoded"):
        load(table, tmp_path, loader)


def spoilt(content: bytes, label: object = 0) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        write_tar(root / "train-0.tar", [("a.jpg", content, label)])
        write_tar(root / "val-0.tar", [("a.jpg", content, 0)])

    return spoil


def cut(root: Path) -> None:
    spoilt(b"x" * 5000)(root)
    (root / "train-0.tar").write_bytes((root / "train-0.tar").read_bytes()[:3000])


@pytest.mark.parametrize(
    ("source", "spoil", "message"),
    [
        ("tar", lambda root: None, r"no train/\*\.tar, train-\*\.tar or train\.tar"),
        ("tar", spoilt(b"x", " "), r"train-0\.tar: a\.cls: found '', expected the number"),
        ("tar", spoilt(b"x", 3), r"train alone has '3'"),
        ("tar", cut, r"train-0\.tar: cannot be read as a tar file"),
        ("parquet", lambda root: (root / "train-0.parquet").write_bytes(b"PAR1"), r"cannot be read as a parquet file"),
        (
            "parquet",
            lambda root: pq.write_table(pa.table({"a": [1]}), root / "train-0.parquet"),
            r"columns a; expected",
        ),
        ("parquet", lambda root: write_table(root / "train-0.parquet", [("a", b"x", 3)]), r"row 0: label 3"),
        ("parquet", lambda root: write_table(root / "train-0.parquet", [("a", b"x", -1)], None), r"row 0: label -1"),
    ],
)
def test_a_wrong_shard_is_named_in_one_line(
    tmp_path: Path, source: str, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(tmp_path)
    with pytest.raises(LpvitError, match=message) as error:
        index_images(ImageSet(source=source, root=tmp_path))
    assert "\n" not in str(error.value)


def test_a_member_without_a_class_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("lone.jpg"))
    with pytest.raises(LpvitError, match=r"train-0\.tar: lone\.cls: missing, expected the number"):
        index_images(ImageSet(source="tar", root=tmp_path))


def test_a_folder_that_is_named_like_a_shard_is_a_folder() -> None:
    assert is_a_file("a.tar/b@1+2/c.jpg")
    assert name_of("a.parquet@17/b@1.jpg") == "a.parquet/b@1.jpg"


def test_a_dataset_in_shards_needs_a_root_as_others_do() -> None:
    with pytest.raises(LpvitError, match=r"source 'tar' needs the folder"):
        Dataset(source="tar")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("source", ["folder", "tar", "parquet"])
def test_images_on_scratch_are_those_of_the_dataset(root: Path, tmp_path: Path, loader: str, source: str) -> None:
    images = usable_images(index(root, source), "train")
    files = image_files(images, {"root": root / source, "loader": loader}, tmp_path / "scratch")
    assert files.root == tmp_path / "scratch"
    assert not any(map(is_a_file, files.table["path"]))
    expected = load(images, root / source, loader, augmentation=FULL)
    assert same(load(files.table, files.root, loader, augmentation=FULL), expected)


def test_a_copy_is_made_once_and_anew_when_the_images_change(root: Path, tmp_path: Path) -> None:
    paths = usable_images(index(root, "folder"), "validation")["path"].tolist()
    originals = tmp_path / "originals"
    for path in paths:
        (originals / path).parent.mkdir(parents=True, exist_ok=True)
        (originals / path).write_bytes((root / "folder" / path).read_bytes())
    scratch = scratch_folder(tmp_path / "scratch")
    first = copy_to_scratch(paths, originals, scratch)
    (copy,) = scratch.glob("*.images")
    made = copy.stat().st_mtime_ns
    assert copy_to_scratch(paths, originals, scratch) == first
    assert copy.stat().st_mtime_ns == made
    (originals / paths[0]).write_bytes(b"other")
    second = copy_to_scratch(paths, originals, scratch)
    assert read_encoded(scratch / second[0]) == b"other"
    assert second[0] != first[0]
    (originals / paths[1]).unlink()
    with pytest.raises(LpvitError, match=rf"^{originals / paths[1]}: cannot be read \(No such file"):
        copy_to_scratch(paths, originals, scratch)


def test_scratch_is_filled_in_from_the_environment_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAST_DISK", str(tmp_path))
    assert scratch_folder(Path("$FAST_DISK/lpvit")) == tmp_path / "lpvit"
    with pytest.raises(LpvitError, match=r"^compute\.scratch: \$SLOW_DISK/x: the variable is not set"):
        scratch_folder(Path("$SLOW_DISK/x"))
    (tmp_path / "file").touch()
    with pytest.raises(LpvitError, match=r"^compute\.scratch: .*file/x: .*; choose another folder"):
        scratch_folder(tmp_path / "file/x")
