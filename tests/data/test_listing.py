"""A changed folder of images is seen without opening a file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lpvit.data.listing import list_files, stamps
from lpvit.data.settings import ImageSet

SPLITS = ("train", "val")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in SPLITS:
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                file = tmp_path / split / name / f"{number}.jpg"
                file.write_bytes(b"12345")
                os.utime(file, (1000, 1000))
    return tmp_path


def add(root: Path) -> None:
    (root / "val/dog/new.jpg").write_bytes(b"1")


def rename_class(root: Path) -> None:
    (root / "val/dog").rename(root / "val/wolf")


def remove_class(root: Path) -> None:
    for split in SPLITS:
        (root / split / "dog").rename(root / f"{split}_dog")


def swap(root: Path) -> None:
    (root / "train/cat/0.jpg").rename(root / "train/dog/3.jpg")


def overwrite(root: Path) -> None:
    (root / "train/cat/0.jpg").write_bytes(b"54321")


def set_back(root: Path) -> None:
    os.utime(root / "train/cat/0.jpg", (10, 10))


def add_deeper(root: Path) -> None:
    (root / "train/cat/more").mkdir()
    (root / "train/cat/more/9.jpg").write_bytes(b"1")


def shard(root: Path) -> None:
    (root / "train/0.tar").write_bytes(b"1")


@pytest.mark.parametrize("change", [add, rename_class, remove_class, swap, overwrite, set_back, add_deeper, shard])
def test_a_change_of_the_folder_changes_its_listing(root: Path, change: Callable[[Path], None]) -> None:
    before = list_files(root, SPLITS)
    change(root)
    assert list_files(root, SPLITS) != before


def hidden(root: Path) -> None:
    (root / "train/cat/.DS_Store").write_bytes(b"1")


def elsewhere(root: Path) -> None:
    (root / "notes.txt").write_bytes(b"1")


def link_to_nothing_and_back(root: Path) -> None:
    (root / "train/cat/9.jpg").symlink_to("nowhere")
    assert list_files(root, SPLITS).files == 13
    (root / "train/cat/9.jpg").unlink()


@pytest.mark.parametrize("change", [hidden, elsewhere, link_to_nothing_and_back])
def test_what_is_no_part_of_the_dataset_does_not_count(root: Path, change: Callable[[Path], None]) -> None:
    before = list_files(root, SPLITS)
    assert before[:2] == (12, 60)
    change(root)
    assert list_files(root, SPLITS) == before


@pytest.mark.parametrize("below", ["", "deeper/"])
def test_of_shards_those_whose_names_begin_like_the_split_are_listed(tmp_path: Path, below: str) -> None:
    root = tmp_path / below
    root.mkdir(exist_ok=True)
    for name in ("train-0.tar", "train-1.tar", "val-0.tar", "other-0.tar"):
        (root / name).write_bytes(b"12345")
    shards = ImageSet(source="tar", root=tmp_path, train=f"{below}train", validation=f"{below}val")
    before = shards.listing()
    assert before[:2] == (3, 15)
    (root / "other-0.tar").write_bytes(b"1")
    assert shards.listing() == before
    os.utime(root / "train-1.tar", (10, 10))
    assert shards.listing() != before


def test_a_folder_that_is_not_there_is_an_empty_listing(tmp_path: Path) -> None:
    assert list_files(tmp_path / "nowhere", SPLITS)[:2] == (0, 0)


def test_an_older_file_in_the_place_of_another_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"12345")
    before = stamps([file])
    os.utime(file, (10, 10))
    assert stamps([file]) != before
