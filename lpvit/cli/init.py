"""Inspects a folder of images and writes a commented config for it. Imports no torch."""

import json
import os
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from PIL import Image

from lpvit.data.index import find_problem, images_below, list_images
from lpvit.errors import LpvitError
from lpvit.store.artifacts import write_text

TRAINING = ("train", "training")
VALIDATION = ("val", "valid", "validation", "test", "testing")
SHARE = 0.2  # of images without splits, used for validation
LOOKED_AT = 2000  # images that are decoded, sampled at random
SMALL = 64  # pixels of the shorter side up to which a small model is trained from scratch
MEMORY = 2e9  # most bytes of decoded images
PRETRAINED = {False: "deit_tiny_patch16_224", True: "deit_small_patch16_224"}  # without and with a GPU
PASSES = {  # of an image in the dense model's training: (from scratch, from timm's weights); minutes on a CPU
    False: (24_000, 1_600),
    True: (192_000, 38_400),
}


@dataclass(frozen=True)
class Images:
    """Content of a folder of images.

    Attributes:
        root: Folder of the splits.
        train: Training split, below ``root``.
        validation: Validation split; None without one.
        classes: Their number.
        count: Images of the training and of the validation split.
        suffixes: Suffix -> number of images.
        size: Median width and height in pixels.
        looked_at: Number of decoded images.
        bad: Images that cannot be decoded, with the reason.
    """

    root: Path
    train: str
    validation: str | None
    classes: int
    count: tuple[int, int]
    suffixes: Counter[str]
    size: tuple[int, int]
    looked_at: int
    bad: dict[str, str]

    @property
    def jpeg(self) -> bool:
        return set(self.suffixes) <= {".jpg", ".jpeg"}


@dataclass(frozen=True)
class Choice:
    """Settings of the config to write.

    Attributes:
        loader: Of the images.
        model: Lines of the config's model.
        why: Reason for the model.
        epochs: Of the dense model and of the pruned one.
        calibration: Number of calibration images.
        batch_size: Of a training.
    """

    loader: str
    model: str
    why: str
    epochs: tuple[int, int]
    calibration: int
    batch_size: int


def write_config(folder: Path, output: Path, model: str | None, epochs: int | None, force: bool) -> Iterator[str]:
    """Inspects a folder and writes a config; yields findings and choices, line by line.

    Raises:
        LpvitError: No images were found, or the config exists.
    """
    if output.exists() and not force:
        raise LpvitError(f"{output}: exists; give another name by --output, or overwrite it with --force")
    images = survey(folder)
    formats = ", ".join(f"{count} {suffix}" for suffix, count in images.suffixes.most_common())
    yield f"{images.root}: {images.classes} classes, {sum(images.count)} images ({formats})"
    train, validation = images.count
    if images.validation is None:
        yield f"no validation split: {validation} images, {SHARE:.0%} of every class, for validation"
    else:
        yield f"{train} training images in '{images.train}', {validation} validation images in '{images.validation}'"
    yield f"size: median {images.size[0]} x {images.size[1]} pixels"
    if images.bad:
        first = "; ".join(f"{file}: {problem}" for file, problem in list(images.bad.items())[:3])
        yield f"{len(images.bad)} of {images.looked_at} inspected images cannot be read and will be skipped: {first}"
    choice = choose(images, model, epochs)
    yield choice.why
    if epochs is None and not has_gpu():
        yield "no GPU found: trainings are short, for a first model in minutes; raise 'epochs' for a better one"
    write_text(_config(images, choice), output)
    argument = "" if str(output) == "lpvit.yaml" else f" {output}"
    yield f"wrote {output}; next: lpvit check{argument}, then lpvit prune{argument}"


def survey(folder: Path) -> Images:
    """Finds the splits and classes of a folder, and decodes some of its images.

    Raises:
        LpvitError: It is missing, has no class folders, or one of them is empty.
    """
    root, train, validation = _splits(folder)
    share = 0.0 if validation else SHARE
    table = list_images("folder", root, train, validation or "val", share)
    if table["label"].nunique() < 2:
        raise LpvitError(f"{root / train}: holds one class, '{table['class_name'].iloc[0]}'; a classifier needs two")
    files = table["path"].sample(min(len(table), LOOKED_AT), random_state=0)
    bad = {file: problem for file in files if (problem := find_problem(root / file))}
    sizes = [_size(root / file) for file in files if file not in bad] or [(0, 0)]
    counts = table["split"].value_counts()
    return Images(
        root,
        train,
        validation,
        table["label"].nunique(),
        (int(counts["train"]), int(counts["validation"])),
        Counter(Path(file).suffix.lower() for file in table["path"]),
        (int(median(width for width, _ in sizes)), int(median(height for _, height in sizes))),
        len(files),
        bad,
    )


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def _splits(folder: Path) -> tuple[Path, str, str | None]:
    """The folder that holds the splits, and their names; without a validation split, the third is None."""
    if not folder.is_dir():
        raise LpvitError(f"{folder}: folder not found; give the folder of your images")
    inside = {entry.name.lower(): entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."}
    train = next((inside[name] for name in TRAINING if name in inside), None)
    validation = next((inside[name] for name in VALIDATION if name in inside), None)
    if train is not None:
        return folder, train, validation
    if len(inside) == 1:  # common in archives
        (only,) = inside.values()
        if any(entry.is_dir() for entry in os.scandir(folder / only)):
            return _splits(folder / only)
    if not any(images_below(folder / name)[0] for name in inside.values()):
        raise LpvitError(
            f"{folder}: holds no folders of images; expected {folder}/<class>/*.jpg, or {folder}/train/<class>/*.jpg "
            f"and {folder}/val/<class>/*.jpg"
        )
    return folder, ".", None


def choose(images: Images, model: str | None, epochs: int | None) -> Choice:
    """Chooses loader, model and lengths of trainings for images."""
    pixels = images.size[0] * images.size[1]
    if 3 * pixels * sum(images.count) < MEMORY:
        loader = "memory"
    elif images.jpeg and find_spec("nvidia") and find_spec("nvidia.dali"):
        loader = "dali"
    else:
        loader = "timm"
    train, side, gpu = max(1, images.count[0] - len(images.bad)), min(images.size), has_gpu()
    batch_size = max(1, min(64, train // 4))
    if model is None and side > SMALL and _has_weights(PRETRAINED[gpu]):
        model = PRETRAINED[gpu]
    if model is not None:
        lines = f"    timm: {model}\n    weights: pretrained"
        why = f"{model} with timm's weights, trained further on these classes"
    else:
        lines, why = _small_model(side, PRETRAINED[gpu])
    first = epochs or max(4 - 2 * bool(model), min(100, round(PASSES[gpu][bool(model)] / train)))
    calibration = min(train, 128 if model and not gpu else 512)
    return Choice(loader, lines, f"model: {why}", (first, max(1, first // 3)), calibration, batch_size)


def _small_model(side: int, pretrained: str) -> tuple[str, str]:
    """A ViT of 64 tokens or less that is trained from scratch, for images of a size."""
    size = 32 if side <= 40 else 64 if side <= SMALL else 112
    options = f"{{img_size: {size}, patch_size: {max(size // 8, 4)}, embed_dim: 128, depth: 6, num_heads: 4}}"
    reason = "" if side <= SMALL else f" (the weights of {pretrained} are not cached, huggingface.co does not respond)"
    lines = f"    timm: vit_tiny_patch16_224\n    options: {options}\n    weights: train"
    return lines, f"a small ViT for {size} x {size} pixels, trained from scratch{reason}"


def has_gpu() -> bool:
    """Whether a GPU driver is loaded; asking torch would take seconds of import."""
    return Path("/dev/nvidiactl").exists()


def _has_weights(model: str) -> bool:
    """Whether a model's weights are cached or can be downloaded."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))
    if any(cache.glob(f"models--timm--{model}*/snapshots/*/model.safetensors")):
        return True
    try:
        with urllib.request.urlopen(urllib.request.Request("https://huggingface.co", method="HEAD"), timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _config(images: Images, choice: Choice) -> str:
    """The text of the config."""
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", images.root.resolve().name).lstrip("_.+-") or "images"
    name = "images" if name == "report" else name
    split = [f"train: {json.dumps(images.train)}"] if images.train != "train" else []
    if images.validation is None:
        split.append(f"validation_share: {SHARE}")
    elif images.validation != "val":
        split.append(f"validation: {json.dumps(images.validation)}")
    if images.bad:
        split.append("on_bad_image: skip")
    dataset = "\n".join(f"    {line}" for line in [f"root: {json.dumps(str(images.root))}", *split])
    dense, short = choice.epochs
    return _TEMPLATE.format(
        root=images.root,
        found=f"{images.classes} classes, {images.count[0]} training and {images.count[1]} validation images",
        name=name,
        dataset=dataset,
        loader=choice.loader,
        model=choice.model,
        calibration=choice.calibration,
        dense=dense,
        short=short,
        batch=choice.batch_size,
        rate="1.0e-4" if "pretrained" in choice.model else "1.0e-3",
        warmup=min(1, dense // 3),
        more="" if "pretrained" in choice.model else ", crop_scale: [0.6, 1.0]",
    )


_TEMPLATE = """\
# Written by `lpvit init` for {root}. Run it: lpvit prune FILE; every key: docs/configuration.md
# {found}
report: {name}

datasets:
  {name}:
{dataset}
    loader: {loader}  # memory: decoded once, kept in memory; dali: fast, JPEG only; timm: all formats of Pillow

models:
  vit:
{model}
    recipe: dense  # trains it on these images

calibrations:
  few: {{images: {calibration}}}  # of the training split; more images give more accurate models

prunings:
  factors: {{structure: factors}}  # low-rank factors: a layer becomes two smaller ones, fast in every engine
  # blocks: {{block_shape: [32, 32], saliency: gauss_newton, distortion: gauss_newton}}  # skipped by our kernels

budgets:  # share of the multiply-adds to keep, the remaining weights refitted; for blocks add `steps: 4`
  half: {{macs: 0.5, reconstruction: least_squares}}
  third: {{macs: 0.35, reconstruction: least_squares}}

recipes:  # more epochs give better models and take longer
  dense: {{epochs: {dense}, batch_size: {batch}, learning_rate: {rate}, warmup_epochs: {warmup}{more}}}
  short:  # after pruning, distilled from the dense model; `recipe: null` in an experiment skips it
    {{epochs: {short}, batch_size: {batch}, learning_rate: 1.0e-4, distillation: soft, teacher: dense}}

experiments:  # one name from each section; shared stages run once
  half: {{dataset: {name}, model: vit, calibration: few, pruning: factors, budget: half, recipe: short}}
  third: {{dataset: {name}, model: vit, calibration: few, pruning: factors, budget: third, recipe: short}}
"""
