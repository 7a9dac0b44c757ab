"""The index of a dataset, the check for bad images, and the calibration draw."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lpvit.data.calibration import sample_calibration
from lpvit.data.index import check_images, count_skipped, index_images, usable_images
from lpvit.data.settings import ImageSet
from lpvit.errors import LpvitError
from lpvit.store.schemas import IMAGES, SAMPLES
from lpvit.store.tables import read_parquet, write_parquet


def write_jpeg(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=90)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits of classes a and b: three training images and two validation images each."""
    for split, count in (("train", 3), ("val", 2)):
        for class_name in "ab":
            for number in range(count):
                write_jpeg(tmp_path / split / class_name / f"{number}.jpg", number)
    return tmp_path


def index(root: Path) -> pd.DataFrame:
    return index_images(ImageSet(root=root), threads=2)


def balanced(images_per_class: dict[str, int]) -> pd.DataFrame:
    rows = [
        ("train", f"train/{class_name}/{number}.jpg", label, class_name, None)
        for label, (class_name, count) in enumerate(images_per_class.items())
        for number in range(count)
    ]
    return pd.DataFrame(rows, columns=["split", "path", "label", "class_name", "problem"])


def test_images_are_listed_in_lexical_order_with_the_rank_of_their_class_as_label(root: Path) -> None:
    for name in ("10", "9", "B"):
        write_jpeg(root / "train" / name / "x.JPEG")
        write_jpeg(root / "val" / name / "x.png")
    images = index(root)
    train = images[images["split"] == "train"]
    assert train["class_name"].drop_duplicates().tolist() == ["10", "9", "B", "a", "b"]
    assert train["label"].drop_duplicates().tolist() == [0, 1, 2, 3, 4]
    assert train["path"].tolist()[2:5] == ["train/B/x.JPEG", "train/a/0.jpg", "train/a/1.jpg"]
    assert images["problem"].isna().all()


def test_folders_within_that_of_a_class_belong_to_it_and_what_is_no_image_is_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_jpeg(root / "train/a/more/far/5.jpg")
    write_jpeg(root / "train/a/.hidden/6.jpg")
    (root / "train/a/notes.txt").write_text("")
    images = index(root)
    of_class = images[(images["split"] == "train") & (images["class_name"] == "a")]["path"].tolist()
    assert of_class == ["train/a/0.jpg", "train/a/1.jpg", "train/a/2.jpg", "train/a/more/far/5.jpg"]
    assert "train: ignored, as not named like images: 'a/notes.txt'" in caplog.text


def test_images_without_a_split_are_parted_by_their_names(tmp_path: Path) -> None:
    for name, count in {"a": 10, "b": 5, "c": 2}.items():
        for number in range(count):
            write_jpeg(tmp_path / name / f"{number}.jpg", number)
    images = index_images(ImageSet(root=tmp_path, train=".", validation_share=0.2))
    shares = pd.crosstab(images["class_name"], images["split"])
    assert shares["validation"].tolist() == [2, 1, 1]
    assert shares["train"].tolist() == [8, 4, 1]
    assert (tmp_path / images["path"][0]).is_file()
    validating = set(images.loc[images["split"] == "validation", "path"])
    write_jpeg(tmp_path / "a/new.jpg")
    later = index_images(ImageSet(root=tmp_path, train=".", validation_share=0.2))
    assert len(validating - set(later.loc[later["split"] == "validation", "path"])) <= 1
    (tmp_path / "c/1.jpg").unlink()
    with pytest.raises(LpvitError, match="class 'c' has one image, which cannot both train and validate"):
        index_images(ImageSet(root=tmp_path, train=".", validation_share=0.2))


def test_index_and_samples_fit_their_schemas(root: Path, tmp_path: Path) -> None:
    (root / "train/a/1.jpg").write_bytes(b"")
    images = index(root)
    write_parquet(images, tmp_path / "images.parquet", IMAGES)
    read = read_parquet(tmp_path / "images.parquet", IMAGES)
    assert count_skipped(read, "train") == 1
    write_parquet(sample_calibration(read, 4, 0), tmp_path / "samples.parquet", SAMPLES)


def test_digits_are_split_into_four_fifths_and_one_fifth_of_every_class() -> None:
    images = index_images(ImageSet(source="digits"))
    assert len(images) == 1797
    assert images["path"].is_unique
    shares = pd.crosstab(images["class_name"], images["split"])
    assert (shares["validation"] == (shares.sum(axis=1)) // 5).all()
    assert usable_images(images, "validation")["label"].tolist() == sorted(usable_images(images, "validation")["label"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "val").rename(root / "test"), "val: folder not found"),
        (lambda root: [p.rename(root / p.name) for p in (root / "val").iterdir()], "val: holds no class folders"),
        (lambda root: (root / "train/c").mkdir(), "train/c: holds no images"),
        (lambda root: write_jpeg(root / "train/c/0.jpg"), "train alone has 'c'"),
        (lambda root: write_jpeg(root / "val/c/0.jpg"), "validation alone has 'c'"),
        (lambda root: [p.unlink() for p in (root / "train/b").iterdir()], "train/b: holds no images"),
    ],
    ids=[
        "missing split",
        "empty split",
        "new class",
        "class only in training",
        "class only in validation",
        "empty class",
    ],
)
def test_a_wrong_folder_is_named_in_one_line(root: Path, spoil: object, message: str) -> None:
    spoil(root)  # type: ignore[operator]
    with pytest.raises(LpvitError, match=message) as error:
        index(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda good: good[: len(good) // 2], "truncated"),
        (lambda good: good[:-30], "truncated"),
        (lambda good: b"not an image" * 50, "no image, or of a format"),
        (lambda good: b"", "empty file"),
    ],
    ids=["half a body", "last bytes missing", "garbage", "no bytes"],
)
def test_a_broken_image_is_named_with_its_reason(root: Path, content: object, reason: str) -> None:
    broken = root / "train/b/1.jpg"
    broken.write_bytes(content(broken.read_bytes()))  # type: ignore[operator]
    images = index(root)
    assert reason in images.loc[images["path"] == "train/b/1.jpg", "problem"].item()
    assert images["problem"].notna().sum() == 1
    with pytest.raises(LpvitError, match=rf"{broken}: .*{reason}.*on_bad_image: skip"):
        check_images(images, "error", root)


def test_skipped_images_are_left_out_and_counted(root: Path) -> None:
    (root / "train/b/1.jpg").write_bytes(b"garbage")
    images = index(root)
    check_images(images, "skip", root)
    assert "train/b/1.jpg" not in usable_images(images, "train")["path"].tolist()
    assert (len(usable_images(images, "train")), count_skipped(images, "train")) == (5, 1)
    assert (len(usable_images(images, "validation")), count_skipped(images, "validation")) == (4, 0)


def test_skipping_every_image_of_a_class_is_an_error(root: Path) -> None:
    for number in range(2):
        (root / f"val/b/{number}.jpg").write_bytes(b"garbage")
    with pytest.raises(LpvitError, match="validation: no image of class 'b'"):
        check_images(index(root), "skip", root)


@pytest.mark.parametrize("count", [1, 7, 10, 29, 30])
def test_calibration_counts_differ_by_at_most_one(count: int) -> None:
    images = balanced({"a": 10, "b": 10, "c": 10})
    samples = sample_calibration(images, count, seed=3)
    per_class = [int((samples["label"] == label).sum()) for label in range(3)]
    assert sum(per_class) == count
    assert max(per_class) - min(per_class) <= 1
    assert samples["path"].is_unique


def test_calibration_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    images = balanced({"a": 20, "b": 20, "c": 20})
    samples = sample_calibration(images, 10, seed=0)
    pd.testing.assert_frame_equal(samples, sample_calibration(images.sample(frac=1, random_state=1), 10, seed=0))
    assert not samples.equals(sample_calibration(images, 10, seed=1))
    extra = {Counter(sample_calibration(images, 10, seed)["label"]).most_common(1)[0][0] for seed in range(20)}
    assert extra == {0, 1, 2}, "which class gets one more is up to the seed"


def test_calibration_fills_up_for_classes_that_run_out() -> None:
    samples = sample_calibration(balanced({"a": 1, "b": 10, "c": 5}), 13, seed=0)
    assert samples["label"].value_counts().sort_index().tolist() == [1, 7, 5]


def test_calibration_takes_usable_training_images_alone(root: Path) -> None:
    (root / "train/a/0.jpg").write_bytes(b"garbage")
    images = index(root)
    assert set(sample_calibration(images, 5, 0)["path"]) == set(usable_images(images, "train")["path"])
    with pytest.raises(LpvitError, match="6 images asked for, the training split has 5"):
        sample_calibration(images, 6, 0)
