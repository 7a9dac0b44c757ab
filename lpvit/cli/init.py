"""Inspects a folder of images and writes a commented config for it. Imports no torch."""

import io
import json
import os
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image

from lpvit.cli.run import snakefile
from lpvit.data.encoded import first_without_jpeg, is_a_file, name_of, read_encoded
from lpvit.data.index import class_names, find_problem, list_images
from lpvit.data.layouts import Found, recognise
from lpvit.data.listing import IMAGE_SUFFIXES
from lpvit.data.settings import ImageSet
from lpvit.errors import LpvitError
from lpvit.lazy import is_installed
from lpvit.store.artifacts import write_text

DEFAULTS = (("train", "train"), ("validation", "val"))  # of a dataset
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
        dataset: Where they are, as the config will say.
        classes: Their number; 0 without classes.
        count: Images of the training and of the validation split.
        suffixes: Suffix -> number of images.
        jpeg: Whether all are JPEG files, as far as looked at.
        size: Median width and height in pixels.
        looked_at: Number of decoded images.
        bad: Images that cannot be decoded, with the reason.
        imagenet: Whether the classes are those of ImageNet-1k, which timm's weights know.
    """

    dataset: ImageSet
    classes: int
    count: tuple[int, int]
    suffixes: Counter[str]
    jpeg: bool
    size: tuple[int, int]
    looked_at: int
    bad: dict[str, str]
    imagenet: bool = False


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
    if model is not None:
        _require_model(model)
    images = survey(folder)
    yield from _found(images)
    choice = choose(images, model, epochs)
    yield choice.why
    if epochs is None and not has_gpu():
        yield "no GPU found: trainings are short, for a first model in minutes; raise 'epochs' for a better one"
    write_text(_config(images, choice), output)
    argument = "" if str(output) == "lpvit.yaml" else f" {output}"
    yield f"wrote {output}; next: lpvit check{argument}, then lpvit prune{argument}"


def _found(images: Images) -> Iterator[str]:
    """What is in the folder, line by line."""
    formats = ", ".join(f"{count} {suffix}" for suffix, count in images.suffixes.most_common())
    dataset = images.dataset
    kind = "" if dataset.source.name in ("folder", "unlabelled") else f", stored as '{dataset.source.name}'"
    yield f"{dataset.root}: {_classes(images)}, {sum(images.count)} images ({formats}){kind}"
    train, validation = images.count
    if dataset.validation_share:
        of_which = " of every class" if images.classes else ""
        yield f"no validation split: {validation} images, {SHARE:.0%}{of_which}, for validation"
    else:
        yield f"{train} training images in '{dataset.train}', {validation} validation images in '{dataset.validation}'"
    yield f"size: median {images.size[0]} x {images.size[1]} pixels"
    if images.bad:
        first = "; ".join(f"{file}: {problem}" for file, problem in list(images.bad.items())[:3])
        yield f"{len(images.bad)} of {images.looked_at} inspected images cannot be read and will be skipped: {first}"


def _classes(images: Images) -> str:
    return f"{images.classes} classes" if images.classes else "no classes"


def _source_of(model: str) -> str:
    """The key of the config that names a model."""
    return "transformers" if Path(model, "config.json").is_file() else "timm"


def _require_model(name: str) -> None:
    """Refuses a model that cannot be compressed, before any image is read.

    Raises:
        LpvitError: Its source does not know it, or it is no Vision Transformer.
    """
    import torch  # takes seconds, so only where a model is named

    from lpvit.models.analysis.layers import matrix_layers, prunable_layers
    from lpvit.models.settings import Model
    from lpvit.models.sources.dense import configured_source
    from lpvit.structures.factors.settings import Factors

    try:
        source = configured_source(Model.model_validate({_source_of(name): name}), 2)
        with torch.device("meta"):
            prunable_layers(matrix_layers(source.build()), Factors().layers)
    except LpvitError as error:
        raise LpvitError(f"--model: {str(error).removeprefix('models: ').removeprefix('model: ')}") from None


def survey(folder: Path) -> Images:
    """Finds the layout, splits and classes of a folder, and decodes some of its images.

    Raises:
        LpvitError: Nothing is recognised, or something is missing that only the user can give.
    """
    if not folder.is_dir():
        raise LpvitError(f"{folder}: folder not found; give the folder of your images")
    found = recognise(folder)
    if found is None:
        raise LpvitError(
            f"{folder}: holds no folders of images; expected {folder}/<class>/*.jpg, or {folder}/train/<class>/*.jpg "
            f"and {folder}/val/<class>/*.jpg, or shards or tables, {folder}/train-*.tar, .parquet or .csv; or "
            f"{folder}/*.jpg, images without classes"
        )
    dataset = _image_set(found)
    table = list_images(dataset)
    names = class_names(table)
    if len(names) == 1:
        place = found.root / found.train
        raise LpvitError(
            f"{place}: holds one class, '{names[0]}'; a classifier needs two, and images without classes lie in the "
            "folder itself"
        )
    paths = table["path"].sample(min(len(table), LOOKED_AT), random_state=0)
    bad = {path: problem for path in paths if (problem := find_problem(found.root / path))}
    if len(bad) == len(paths):
        path, problem = next(iter(bad.items()))
        raise LpvitError(f"{found.root}: none of {len(paths)} inspected images can be read, such as {path}: {problem}")
    sizes = [_size(found.root / path) for path in paths if path not in bad]
    counts = table["split"].value_counts()
    return Images(
        dataset,
        len(names),
        (int(counts["train"]), int(counts["validation"])),
        Counter(map(_suffix, table["path"])),
        first_without_jpeg(found.root, table["path"].tolist()) is None,
        (int(median(width for width, _ in sizes)), int(median(height for _, height in sizes))),
        len(paths),
        bad,
        len(names) == 1000 and bool(table["class_name"].str.fullmatch(r"n\d{8}").all()),
    )


def _image_set(found: Found) -> ImageSet:
    share = {} if found.validation else {"validation_share": SHARE}
    validation = {"validation": found.validation} if found.validation else {}
    return ImageSet(source=found.layout, root=found.root, train=found.train, **validation, **share)


def _suffix(path: str) -> str:
    suffix = Path(path if is_a_file(path) else name_of(path)).suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else "without suffix"


def _size(file: Path) -> tuple[int, int]:
    with Image.open(io.BytesIO(read_encoded(file))) as image:
        return image.size


def choose(images: Images, model: str | None, epochs: int | None) -> Choice:
    """Chooses loader, model and lengths of trainings for images."""
    pixels = images.size[0] * images.size[1]
    if 3 * pixels * sum(images.count) < MEMORY:
        loader = "memory"
    elif images.jpeg and is_installed("nvidia.dali"):
        loader = "dali"
    else:
        loader = "timm"
    train, side, gpu = max(1, images.count[0] - len(images.bad)), min(images.size), has_gpu()
    batch_size = max(1, min(64, train // 4))
    if model is None and not images.classes:
        raise LpvitError(f"{images.dataset.root}: has no classes to train a model on; name one by --model")
    if model is None and side > SMALL and _has_weights(PRETRAINED[gpu]):
        model = PRETRAINED[gpu]
    source = _source_of(model or "")
    lines = f"    {source}: {model}\n    weights: pretrained"
    if model is not None and not images.classes:
        why = f"{model} with its own weights, whose outputs are kept"
    elif model is not None and images.imagenet and source == "timm":
        why = f"{model} with timm's weights, which know these classes"
    elif model is not None:
        lines, why = f"{lines}\n{_TRAINED}", f"{model} with its own weights, trained further on these classes"
    else:
        lines, why = _small_model(side, PRETRAINED[gpu])
    first = epochs or max(4 - 2 * bool(model), min(100, round(PASSES[gpu][bool(model)] / train)))
    calibration = min(train, 128 if model and not gpu else 512)
    short = max(1, first // 3) if images.classes else first
    return Choice(loader, lines, f"model: {why}", (first, short), calibration, batch_size)


def _small_model(side: int, pretrained: str) -> tuple[str, str]:
    """A ViT of 64 tokens or less that is trained from scratch, for images of a size."""
    size = 32 if side <= 40 else 64 if side <= SMALL else 112
    options = f"{{img_size: {size}, patch_size: {max(size // 8, 4)}, embed_dim: 128, depth: 6, num_heads: 4}}"
    reason = "" if side <= SMALL else f" (the weights of {pretrained} are not cached, huggingface.co does not respond)"
    lines = f"    timm: vit_tiny_patch16_224\n    options: {options}\n    weights: train\n{_TRAINED}"
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
    dataset = images.dataset
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", dataset.folder.resolve().name).lstrip("_.+-") or "images"
    name = "images" if name == "report" else name
    given = dataset.model_dump(mode="json", exclude_unset=True, exclude={"source"})
    source = {} if dataset.source.name == "folder" else {"source": dataset.source.name}
    skip = {"on_bad_image": "skip"} if images.bad else {}
    shown = {key: value for key, value in (source | given | skip).items() if (key, value) not in DEFAULTS}
    lines = "\n".join(f"    {key}: {_plain(value)}" for key, value in shown.items())
    lines += (
        "" if images.classes else "\n    # probe: NAME  # of a dataset with classes, which the outputs then classify"
    )
    return _TEMPLATE.format(
        schema=snakefile().parent / "config/schema.json",
        root=dataset.root,
        found=f"{_classes(images)}, {images.count[0]} training and {images.count[1]} validation images",
        name=name,
        dataset=lines,
        loader=choice.loader,
        model=choice.model,
        calibration=choice.calibration,
        recipes=_recipes(choice, trains="recipe:" in choice.model, labelled=bool(images.classes)),
    )


def _recipes(choice: Choice, trains: bool, labelled: bool) -> str:
    """The recipes: of the dense model, if it is trained, and after pruning."""
    dense, short = choice.epochs
    pretrained, warmup = "pretrained" in choice.model, min(1, dense // 3)
    settings, crop = f"batch_size: {choice.batch_size}, learning_rate", "crop_scale: [0.6, 1.0]"
    of_dense = "1.0e-4" if pretrained else f"1.0e-3, {crop}"
    first = f"  dense: {{epochs: {dense}, {settings}: {of_dense}, warmup_epochs: {warmup}}}\n" if trains else ""
    rate = "2.0e-5" if pretrained else "1.0e-4"  # more makes a pretrained model worse than its refit left it
    distillation, how = ("soft", "distilled from") if labelled else ("features", "follows the outputs of")
    return (
        f"{first}  short:  # after pruning, {how} the dense model; `recipe: null` in an experiment skips it\n"
        f"    {{epochs: {short}, {settings}: {rate}, {crop}, distillation: {distillation}, teacher: dense}}"
    )


def _plain(value: object) -> str:
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value)


_TRAINED = "    recipe: dense  # trains it on these images"
_TEMPLATE = """\
# yaml-language-server: $schema={schema}
# Written by `lpvit init` for {root}. Run it: lpvit prune FILE. Editors show every key by the schema above.
# {found}
report: {name}

datasets:
  {name}:
{dataset}
    loader: {loader}  # memory: decoded once, kept in memory; dali: fast, JPEG only; timm: all formats of Pillow

models:
  vit:
{model}

calibrations:
  few: {{images: {calibration}}}  # of the training split; more images give more accurate models

prunings:
  factors: {{structure: factors}}  # low-rank factors: a layer becomes two smaller ones, fast in every engine
  # blocks: {{block_shape: [32, 32], saliency: gauss_newton, distortion: gauss_newton}}  # skipped by our kernels

budgets:  # share of the multiply-adds to keep, the remaining weights refitted; for blocks add `steps: 4`
  half: {{macs: 0.5, reconstruction: least_squares}}
  third: {{macs: 0.35, reconstruction: least_squares}}

recipes:  # more epochs give better models and take longer
{recipes}

experiments:  # one name from each section; shared stages run once
  half: {{dataset: {name}, model: vit, calibration: few, pruning: factors, budget: half, recipe: short}}
  third: {{dataset: {name}, model: vit, calibration: few, pruning: factors, budget: third, recipe: short}}
"""
