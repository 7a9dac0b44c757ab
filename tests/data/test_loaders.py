"""Order, shards, seeds and preprocessing of the three loaders."""

import contextlib
import multiprocessing
import random
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from lpvit.data.epochs import EpochPlan
from lpvit.data.index import find_problem, index_images, usable_images
from lpvit.data.loading import ImageFiles, Loader, make_loader
from lpvit.data.preprocessing import Augmentation, Preprocessing
from lpvit.data.settings import ImageSet
from lpvit.errors import LpvitError
from lpvit.strategies import module_names
from lpvit.training.settings import Recipe
from lpvit.training.splits import augmentation_of

LOADERS = tuple(module_names("lpvit.data.loaders"))
SMALL = Preprocessing((3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bicubic", 0.9)
PLAIN = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), horizontal_flip=0.0)
FULL = Augmentation(color_jitter=0.3)
RANDOM = Augmentation(rand_augment="rand-m9-mstd0.5-inc1")
PHOTOGRAPHS = REPOSITORY.parent / "shared" / "data" / "imagenet-sample.tar"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven JPEG files; the grey value of a file is 20 times its number."""
    root = tmp_path_factory.mktemp("images")
    for number in range(11):
        pixels = np.full((24, 32, 3), 20 * number, dtype=np.uint8)
        pixels[:, :16] += np.random.default_rng(number).integers(0, 9, (24, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def images() -> pd.DataFrame:
    numbers = [7, 0, 3, 10, 1, 9, 2, 8, 4, 6, 5]
    return pd.DataFrame({"path": [f"{number}.jpg" for number in numbers], "label": numbers})


def loader_of(
    images: pd.DataFrame,
    root: Path | None,
    loader: str,
    *,
    preprocessing: Preprocessing = SMALL,
    augmentation: Augmentation | None = None,
    batch_size: int = 4,
    threads: int = 1,
    device: str = "cpu",
    **plan: int,
) -> Loader:
    epochs = EpochPlan(len(images), batch_size, training=augmentation is not None, **plan)  # type: ignore[arg-type]
    return make_loader(ImageFiles(images, root, loader), preprocessing, epochs, threads, device, augmentation)


def load(images: pd.DataFrame, root: Path | None, loader: str, epoch: int = 0, **options: Any) -> list:
    batches = loader_of(images, root, loader, **options)
    batches.set_epoch(epoch)
    loaded = list(batches)
    assert len(loaded) == len(batches)
    return loaded


def labels_of(batches: list) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist() if batches else []


def shown_numbers(batches: list) -> list[int]:
    """Which file every image shows, told by its brightness."""
    mean, std = torch.tensor(SMALL.mean).view(3, 1, 1), torch.tensor(SMALL.std).view(3, 1, 1)
    grey = torch.cat([images * std + mean for images, _ in batches]).mean(dim=(1, 2, 3)) * 255
    return ((grey - 2) / 20).round().int().tolist()


def same(first: list, second: list) -> bool:
    return all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("loader", LOADERS)
def test_evaluation_keeps_order_and_labels_and_the_last_partial_batch(
    images: pd.DataFrame, root: Path, loader: str
) -> None:
    batches = load(images, root, loader)
    assert [len(labels) for _, labels in batches] == [4, 4, 3]
    assert labels_of(batches) == shown_numbers(batches) == images["label"].tolist()
    assert batches[0][0].dtype == torch.float32
    assert batches[0][0].shape == (4, 3, 16, 16)
    assert batches[0][1].dtype == torch.int64


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 11), (11, [11]), (20, [11])])
def test_evaluation_gives_every_image_once_at_any_batch_size(
    images: pd.DataFrame, root: Path, loader: str, batch_size: int, sizes: list[int]
) -> None:
    batches = load(images, root, loader, batch_size=batch_size)
    assert [len(labels) for _, labels in batches] == sizes
    assert labels_of(batches) == images["label"].tolist()


@pytest.mark.parametrize("loader", LOADERS)
def test_evaluation_shards_partition_the_images_even_if_one_is_empty(
    images: pd.DataFrame, root: Path, loader: str
) -> None:
    few = images.head(2)
    shards = [labels_of(load(few, root, loader, rank=rank, world_size=3)) for rank in range(3)]
    assert shards == [few["label"].tolist()[:1], few["label"].tolist()[1:], []]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("augmentation", [FULL, RANDOM], ids=["jitter", "RandAugment"])
def test_an_epoch_comes_out_the_same_twice_and_another_epoch_or_seed_differs(
    images: pd.DataFrame, root: Path, loader: str, augmentation: Augmentation
) -> None:
    first = load(images, root, loader, epoch=1, augmentation=augmentation)
    assert same(first, load(images, root, loader, epoch=1, augmentation=augmentation, threads=2))
    assert not same(first, load(images, root, loader, epoch=2, augmentation=augmentation))
    assert not same(first, load(images, root, loader, epoch=1, augmentation=augmentation, seed=1))


@pytest.mark.parametrize("loader", LOADERS)
def test_one_loader_can_replay_an_epoch_after_a_pass_that_was_broken_off(
    images: pd.DataFrame, root: Path, loader: str
) -> None:
    batches = loader_of(images, root, loader, augmentation=FULL)
    batches.set_epoch(3)
    first = list(batches)
    batches.set_epoch(4)
    next(iter(batches))
    batches.set_epoch(3)
    assert same(first, list(batches))


@pytest.mark.parametrize("loader", LOADERS)
def test_training_drops_the_last_incomplete_batch_unless_it_is_the_only_one(
    images: pd.DataFrame, root: Path, loader: str
) -> None:
    batches = load(images, root, loader, augmentation=PLAIN)
    assert [len(labels) for _, labels in batches] == [4, 4]
    assert labels_of(batches) == shown_numbers(batches)
    assert len(set(labels_of(batches))) == 8
    assert labels_of(batches) != images["label"].tolist()[:8]
    assert sorted(labels_of(load(images.head(3), root, loader, augmentation=PLAIN))) == [0, 3, 7]


@pytest.mark.parametrize("loader", LOADERS)
def test_all_loaders_train_in_the_same_order(images: pd.DataFrame, root: Path, loader: str) -> None:
    options = {"augmentation": PLAIN, "epoch": 5, "seed": 2, "rank": 1, "world_size": 2, "batch_size": 2}
    assert labels_of(load(images, root, loader, **options)) == labels_of(load(images, root, "memory", **options))


@pytest.mark.parametrize("augmentation", [None, FULL, RANDOM], ids=["evaluation", "jitter", "RandAugment"])
def test_memory_gives_exactly_what_timm_gives(
    images: pd.DataFrame, root: Path, augmentation: Augmentation | None
) -> None:
    options = {"augmentation": augmentation, "epoch": 2, "seed": 5}
    assert same(load(images, root, "memory", **options), load(images, root, "timm", threads=2, **options))


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("augmentation", [None, RANDOM], ids=["evaluation", "RandAugment"])
def test_a_pass_leaves_the_global_generators_alone(
    images: pd.DataFrame, root: Path, loader: str, augmentation: Augmentation | None
) -> None:
    """Else a training that is resumed, and reads again what it has seen, would go on with other numbers."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    load(images, root, loader, augmentation=augmentation)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: NPY002


def test_augmentation_of_an_image_does_not_depend_on_batches_or_processes(images: pd.DataFrame, root: Path) -> None:
    whole = torch.cat([x for x, _ in load(images, root, "memory", augmentation=FULL, batch_size=10)])
    shards = [
        torch.cat([x for x, _ in load(images, root, "memory", augmentation=FULL, batch_size=5, rank=r, world_size=2)])
        for r in range(2)
    ]
    assert torch.equal(whole, torch.stack(shards, dim=1).flatten(0, 1))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_shards_partition_the_epoch(count: int, batch_size: int, world_size: int, repeats: int, training: bool) -> None:
    if training and count < world_size:
        with pytest.raises(LpvitError, match="use fewer processes"):
            EpochPlan(count, batch_size, training, 0, 0, world_size, repeats)
        return
    plans = [EpochPlan(count, batch_size, training, 0, rank, world_size, repeats, 1) for rank in range(world_size)]
    orders = [plan.order().tolist() for plan in plans]
    drawn = [image for order in orders for image in order]
    for plan, order in zip(plans, orders, strict=True):
        assert [draw.image for batch in plan for draw in batch] == order
        assert len(list(plan)) == len(plan)
    if training:
        assert len({len(order) for order in orders}) == 1, "processes wait for each other"
        assert all(drawn.count(image) <= repeats for image in drawn)
        assert len(orders[0]) > count // world_size - batch_size
    else:
        assert sorted(drawn) == list(range(count))


def test_repeated_augmentation_shows_fewer_images_several_times_and_differently(
    images: pd.DataFrame, root: Path
) -> None:
    batches = load(images, root, "memory", augmentation=FULL, repeats=3, batch_size=11)
    labels = labels_of(batches)
    assert len(labels) == 11
    assert [labels.count(label) for label in dict.fromkeys(labels)] == [3, 3, 3, 2]
    assert not torch.equal(batches[0][0][0], batches[0][0][1])
    plans = [EpochPlan(12, 4, True, 0, rank, 3, 3) for rank in range(3)]
    assert plans[0].order().tolist() == plans[1].order().tolist() == plans[2].order().tolist()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_broken_image_is_named_and_no_other_takes_its_place(
    images: pd.DataFrame, root: Path, tmp_path: Path, loader: str
) -> None:
    for path in images["path"]:
        (tmp_path / path).write_bytes((root / path).read_bytes())
    (tmp_path / "6.jpg").write_bytes(b"garbage" * 100)
    with pytest.raises(LpvitError, match=rf"^{tmp_path / '6.jpg'}: cannot be decoded \(.*\); replace or remove it$"):
        load(images, tmp_path, loader)


GRADIENT = np.linspace(0, 1, 64).reshape(8, 8)
COLOURS = (255 * np.stack([GRADIENT, GRADIENT.T, GRADIENT[::-1]], axis=-1)).round().astype(np.uint8)
GREY = (255 * GRADIENT).round().astype(np.uint8)
EIGHT_BITS = {mode: Image.fromarray(COLOURS).convert(mode) for mode in ("RGB", "L", "1", "P", "CMYK", "RGBA")}
EIGHT_BITS["LA"] = Image.fromarray(np.stack([GREY, GREY[::-1]], axis=-1))  # half transparent
DEEP = {  # file -> image whose pixels are those of GREY
    "16 bits.png": Image.fromarray((65535 * GRADIENT).round().astype(np.uint16)),
    "16 bits.tif": Image.fromarray((65535 * GRADIENT).round().astype(np.uint16)),
    "16 bits, big-endian.tif": Image.fromarray((65535 * GRADIENT).round().astype(">u2")),
    "floats.tif": Image.fromarray(GRADIENT.astype(np.float32)),
}


def pixels(folder: Path, file: str, loader: str, channels: int = 3) -> torch.Tensor:
    """An image as a model gets it, 0 to 1."""
    preprocessing = Preprocessing((channels, 8, 8), (0.0,) * channels, (1.0,) * channels, "bilinear", 1.0)
    table = pd.DataFrame({"path": [file], "label": [0]})
    ((images, _),) = load(table, folder, loader, preprocessing=preprocessing)
    return images[0]


@pytest.mark.parametrize("loader", ["memory", "timm"])
@pytest.mark.parametrize("mode", EIGHT_BITS)
def test_images_of_eight_bits_are_read_as_timm_reads_them(tmp_path: Path, mode: str, loader: str) -> None:
    (tmp_path / "class").mkdir()
    file = f"class/image{'.jpg' if mode == 'CMYK' else '.png'}"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    EIGHT_BITS[mode].save(tmp_path / file, exif=exif)
    expected, _ = timm.data.ImageDataset(str(tmp_path), transform=np.asarray)[0]
    found = pixels(tmp_path, file, loader)
    assert torch.equal((255 * found).round().byte().permute(1, 2, 0), torch.tensor(expected))


@pytest.mark.parametrize("loader", ["memory", "timm"])
@pytest.mark.parametrize("file", DEEP)
def test_deeper_images_are_scaled_to_eight_bits(tmp_path: Path, file: str, loader: str) -> None:
    DEEP[file].save(tmp_path / file)
    for channels in (1, 3):
        found = (255 * pixels(tmp_path, file, loader, channels)).round().byte()
        assert (found.int() - torch.tensor(GREY).int()).abs().max() <= 1
    assert find_problem(tmp_path / file) is None


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_loader_reads_every_kind_of_jpeg_alike_and_ignores_its_orientation(tmp_path: Path, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    EIGHT_BITS[mode].save(tmp_path / "image.jpg", quality=100, subsampling=0, exif=exif)
    found = {loader: pixels(tmp_path, "image.jpg", loader) for loader in LOADERS}
    assert torch.equal(found["memory"], found["timm"])
    assert (found["dali"] - found["timm"]).abs().max() < 0.05


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(100 * GRADIENT.astype(np.float32)), "holds floating-point numbers from 0 to 100, expected 8"),
        (Image.fromarray((GRADIENT - 0.5).astype(np.float32)), "holds floating-point numbers from -0.5 to 0.5, exp"),
        (Image.fromarray(np.full((8, 8), np.nan, np.float32)), "holds floating-point numbers from nan to nan, expec"),
        (Image.fromarray((70000 * GRADIENT).astype(np.int32)), "holds 32-bit integers from 0 to 70000, expected 8 "),
    ],
)
def test_pixels_of_no_known_range_are_refused_by_loaders_and_by_the_index(
    tmp_path: Path, image: Image.Image, message: str
) -> None:
    image.save(tmp_path / "image.tif")
    for loader in ("memory", "timm"):
        with pytest.raises(LpvitError, match=f"^{re.escape(f'{tmp_path}/image.tif: {message}')}"):
            pixels(tmp_path, "image.tif", loader)
    assert str(find_problem(tmp_path / "image.tif")).startswith(message)


def test_the_workers_end_with_a_loader_that_fails(tmp_path: Path) -> None:
    Image.fromarray(100 * GRADIENT.astype(np.float32)).save(tmp_path / "image.tif")
    with contextlib.suppress(LpvitError):
        pixels(tmp_path, "image.tif", "timm")
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("loader", ["memory", "timm"])
def test_digits_come_as_one_normalised_channel(loader: str) -> None:
    images = usable_images(index_images(ImageSet(source="digits")), "validation").head(6)
    preprocessing = Preprocessing((1, 8, 8), (0.5,), (0.5,), "bicubic", 1.0)
    batches = load(images, None, loader, preprocessing=preprocessing)
    assert batches[0][0].shape == (4, 1, 8, 8)
    assert labels_of(batches) == [0] * 6
    assert batches[0][0].min() == -1
    assert batches[0][0].max() == 1
    load(images, None, loader, preprocessing=preprocessing, augmentation=RANDOM)


@pytest.mark.parametrize(
    ("images", "preprocessing", "augmentation", "message"),
    [
        (["a.jpg", "b.png"], SMALL, None, "b.png is none; choose 'loader: timm'"),
        (["a.jpg"], Preprocessing((1, 8, 8), (0.5,), (0.5,)), None, "reads RGB images"),
        (["a.jpg"], Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "hamming"), None, "interpolation 'hamming'"),
        (["a.jpg"], SMALL, Augmentation(rand_augment="rand-m9-t3a"), "full set of operations only"),
    ],
)
def test_dali_says_which_loader_to_use_instead(
    images: list[str], preprocessing: Preprocessing, augmentation: Augmentation | None, message: str
) -> None:
    frame = pd.DataFrame({"path": images, "label": 0})
    with pytest.raises(LpvitError, match=message):
        load(frame, Path(), "dali", preprocessing=preprocessing, augmentation=augmentation)


def test_missing_dali_says_what_to_install(images: pd.DataFrame, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lpvit.data.loaders.dali", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(LpvitError, match=r"pip install 'lpvit\[dali\]'"):
        load(images, root, "dali")


def test_the_loader_in_use_is_logged(images: pd.DataFrame, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        load(images, root, "dali")
    assert "loader 'dali': 11 images for evaluation on cpu, 1 threads" in caplog.text


def test_preprocessing_is_the_models_own() -> None:
    overlay = {"input_size": (1, 8, 8), "mean": (0.3,), "std": (0.6,), "crop_pct": 1.0}
    options = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2, "in_chans": 1}
    model = timm.create_model("vit_tiny_patch16_224", pretrained_cfg_overlay=overlay, **options)
    assert Preprocessing.from_model(model) == Preprocessing((1, 8, 8), (0.3,), (0.6,), "bicubic", 1.0, "center")
    model.pretrained_cfg["mean"] = (0.5, 0.5, 0.5)
    with pytest.raises(LpvitError, match=r"data_config.mean: 3 values for 1 channel"):
        Preprocessing.from_model(model)


def test_augmentation_follows_the_recipe_and_rejects_an_unreadable_policy() -> None:
    for colours in ({"rand_augment": "rand-m9-mstd0.5-inc1"}, {"color_jitter": 0.2}):
        recipe = Recipe(epochs=1, batch_size=2, learning_rate=0.1, **colours)
        assert augmentation_of(recipe) == Augmentation(recipe.crop_scale, recipe.crop_ratio, 0.5, **colours)
    for policy, part in (("rand-m9-q3", "q3"), ("rand-m9.5", "m9.5"), ("auto-m9", "auto-m9")):
        with pytest.raises(LpvitError, match=part):
            Augmentation(rand_augment=policy)


@pytest.mark.parametrize(
    ("input_size", "crop_pct", "crop_mode"),
    [
        ((3, 224, 224), 0.9, "center"),
        ((3, 96, 128), 0.95, "center"),
        ((3, 128, 128), 0.9, "squash"),
        ((3, 128, 128), 0.9, "border"),
    ],
)
def test_evaluation_through_dali_matches_timm_on_real_photographs(
    photographs: Path, input_size: tuple[int, int, int], crop_pct: float, crop_mode: str
) -> None:
    files = sorted(path.relative_to(photographs).as_posix() for path in photographs.rglob("*.JPEG"))[:40]
    images = pd.DataFrame({"path": files, "label": range(len(files))})
    preprocessing = Preprocessing(
        input_size, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "bicubic", crop_pct, crop_mode
    )
    loaded = {
        loader: load(images, photographs, loader, preprocessing=preprocessing, batch_size=16, threads=2)
        for loader in ("dali", "timm")
    }
    assert labels_of(loaded["dali"]) == labels_of(loaded["timm"])
    difference = torch.cat(
        [(dali - timm).abs() for (dali, _), (timm, _) in zip(loaded["dali"], loaded["timm"], strict=True)]
    )
    assert difference.mean() < 0.005
    assert np.quantile(difference.numpy(), 0.99) < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_decoding_on_a_gpu_matches_decoding_on_the_cpu(root: Path, images: pd.DataFrame, crop_mode: str) -> None:
    preprocessing = Preprocessing((3, 64, 48), SMALL.mean, SMALL.std, "bicubic", 0.9, crop_mode)
    on_cpu, on_gpu = (load(images, root, "dali", preprocessing=preprocessing, device=name) for name in ("cpu", "cuda"))
    assert {tensor.device.type for batch in on_gpu for tensor in batch} == {"cuda"}
    assert labels_of(on_cpu) == labels_of(on_gpu)
    difference = torch.cat([(x - y.cpu()).abs() for (x, _), (y, _) in zip(on_cpu, on_gpu, strict=True)])
    assert difference.mean() < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", [FULL, RANDOM], ids=["jitter", "RandAugment"])
def test_augmentation_on_a_gpu_comes_out_the_same_twice_and_like_that_on_the_cpu(
    root: Path, images: pd.DataFrame, augmentation: Augmentation
) -> None:
    first, again = (load(images, root, "dali", augmentation=augmentation, device="cuda") for _ in range(2))
    on_cpu = load(images, root, "dali", augmentation=augmentation)
    assert same(first, again)
    assert labels_of(first) == labels_of(on_cpu)
    difference = torch.cat([(x - y.cpu()).abs() for (x, _), (y, _) in zip(on_cpu, first, strict=True)])
    assert difference.mean() < 0.1  # the same draws, rounded otherwise


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PHOTOGRAPHS.is_file():
        pytest.skip(f"{PHOTOGRAPHS.name} is not beside the repository, in ../shared/data")
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(PHOTOGRAPHS) as archive:
        archive.extractall(folder, filter="data")
    return folder
