"""Formats of images that not every Pillow reads: AVIF, and HEIC, which none reads without an extension."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from layouts import NAMES, SPLITS, jpeg, write
from PIL import Image, features
from test_loaders import LOADERS, load

from lpvit.cli.check import look_at_images
from lpvit.cli.init import survey
from lpvit.config.config import parse_config
from lpvit.data.index import check_images, index_images, usable_images
from lpvit.data.settings import ImageSet
from lpvit.errors import LpvitError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # the beginning of a photograph of a phone
REASON = r"HEIC image, which Pillow [\d.]+ does not read; convert it to JPEG or PNG"


@pytest.fixture
def heic(tmp_path: Path) -> ImageSet:
    write(tmp_path, {f"{split}/{name}/{n}.heic": HEIC for split in SPLITS for name in NAMES for n in range(2)})
    return ImageSet(root=tmp_path)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("loader", LOADERS)
def test_avif_is_read_to_the_pixels_that_pillow_reads_or_refused_in_one_line(tmp_path: Path, loader: str) -> None:
    for split, count in SPLITS.items():
        for name in NAMES:
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(count):
                noise = np.random.default_rng(n).integers(0, 256, (5, 6, 3), dtype=np.uint8)
                file = tmp_path / split / name / f"{n}.avif"
                Image.fromarray(noise).resize((40, 30)).save(file, quality=90)
                (plain := tmp_path / "png" / split / name / f"{n}.png").parent.mkdir(parents=True, exist_ok=True)
                Image.open(file).save(plain)
    assert survey(tmp_path).suffixes.keys() == {".avif"}
    avif, png = (
        usable_images(index_images(ImageSet(root=root)), "validation") for root in (tmp_path, tmp_path / "png")
    )
    assert len(avif) == len(png) == len(NAMES) * SPLITS["val"]
    if loader == "dali":
        with pytest.raises(LpvitError, match=r"reads JPEG files, .*\.avif is none; choose 'loader: timm'") as error:
            load(avif, tmp_path, loader)
        assert "\n" not in str(error.value)
        return
    pairs = zip(load(avif, tmp_path, loader), load(png, tmp_path / "png", loader), strict=True)
    assert all(torch.equal(a, b) for batches in pairs for a, b in zip(*batches, strict=True))


def test_heic_is_named_by_its_content_where_images_are_indexed(heic: ImageSet) -> None:
    images = index_images(heic)
    assert len(images) == 2 * 2 * len(NAMES)
    assert images["problem"].str.fullmatch(REASON).all()
    with pytest.raises(LpvitError, match=f"train/cat/0.heic: {REASON}") as error:
        check_images(images, "error", heic.root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_dataset_of_heic_alone_is_refused_by_init_and_check(heic: ImageSet, on_bad_image: str) -> None:
    with pytest.raises(LpvitError, match=f"none of 12 inspected images can be read, such as .*heic: {REASON}") as error:
        survey(heic.folder)
    assert "\n" not in str(error.value)
    datasets = {"digits": {"root": str(heic.root), "on_bad_image": on_bad_image}}
    config = parse_config({**TINY, "datasets": datasets})
    with pytest.raises(LpvitError, match=f"datasets.digits: 12 of 12 images .*{REASON}.*; replace or convert them"):
        look_at_images(config)


def test_beside_others_heic_is_skipped_or_refused_as_the_config_says(heic: ImageSet) -> None:
    write(heic.folder / "train/cat", {"0.heic": HEIC, "1.jpg": jpeg(1)})
    datasets = {"digits": {"root": str(heic.root), "on_bad_image": "skip"}}
    images, _ = look_at_images(parse_config({**TINY, "datasets": datasets}))
    assert len(images["digits"]) == 2 * 2 * len(NAMES)
    datasets["digits"]["on_bad_image"] = "error"
    with pytest.raises(LpvitError, match=r"11 of 12 images .*; replace them, or set 'on_bad_image: skip'"):
        look_at_images(parse_config({**TINY, "datasets": datasets}))
