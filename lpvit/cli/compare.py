"""Compares two models on images: what a person asks before putting a compressed model to work.

N = images of a batch; C, H, W = channels, height and width of a model's input; K = classes.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from lpvit.cli.opened import Opened, open_model
from lpvit.data.decoding import read_image
from lpvit.data.listing import IMAGE_SUFFIXES
from lpvit.data.transforms import create_transform
from lpvit.errors import LpvitError, nearest
from lpvit.export.description import Description
from lpvit.progress import bar
from lpvit.report.comparison import Comparison, changed, render, verdict
from lpvit.store.artifacts import write_text

BATCH, SPOILT, SHOWN, THUMBNAIL = 32, 500, 60, 160  # images of a pass, of the robustness, on the page; pixels
MODELS = ("dense", "compressed")

Spoil = Callable[[Tensor], Tensor]  # images (N, C, H, W) in 0 to 1 -> the same, worse


def compared(dense: Path, compressed: Path, folder: Path, output: Path, limit: int) -> Iterator[str]:
    """Writes the page; yields what it says in short.

    Args:
        dense: File of a model.
        compressed: File of the other, with the same classes.
        folder: Images, in class folders if their classes are known.
        output: The page.
        limit: Most images, spread evenly over the folder.

    Raises:
        LpvitError: A file cannot be read, or classes, images and models do not belong together.
    """
    opened = dict(zip(MODELS, map(open_model, (dense, compressed)), strict=True))
    paths = dict(zip(MODELS, (dense, compressed), strict=True))
    described = {name: opened[name].require_classes(path) for name, path in paths.items()}
    _require_same_classes(described, (dense, compressed))
    files, labels = labelled_images(folder, described["dense"])
    chosen = np.unique(np.linspace(0, len(files) - 1, min(limit, len(files))).astype(int))
    files, labels = [files[at] for at in chosen], [labels[at] for at in chosen]
    predictions = _predictions(opened, described, folder, files).assign(label=labels)
    shown = changed(predictions)["path"].head(SHOWN)
    names = tuple(str(path) for path in (dense, compressed))
    comparison = Comparison(
        names=(names[0], names[1]),
        folder=str(folder),
        predictions=predictions,
        spoilt=_robustness(opened, described, folder, files, labels),
        thumbnails={path: _thumbnail(folder / path) for path in shown},
    )
    write_text(render(comparison), output)
    yield from verdict(comparison)
    yield f"wrote {output}"


def labelled_images(folder: Path, description: Description) -> tuple[list[str], list[str]]:
    """Images below a folder with the names of their classes, which are empty if it has no class folders.

    Raises:
        LpvitError: There are none, or a folder is none of the classes.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "folder not found"
        raise LpvitError(f"{folder}: {problem}; give a folder of images")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    files = [str(path.relative_to(folder)) for path in found if not path.name.startswith(".")]
    if not files:
        raise LpvitError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    if all("/" not in file for file in files) or not description.classes:
        return files, [""] * len(files)
    labels = [file.partition("/")[0] for file in files]
    for name in dict.fromkeys(labels):
        if name not in description.classes:
            raise LpvitError(
                f"{folder}: '{name}' is no class of the model{nearest(name, description.classes)}; give the folder "
                "that holds the class folders, such as that of the validation split"
            )
    return files, labels


def spoils() -> Mapping[str, Spoil]:
    """Ways of spoiling images."""
    blurs = {f"blurred by {100 * share:g} % of the side": _blur(share) for share in (0.005, 0.01, 0.02)}
    noises = {f"noisy by {100 * level:g} % of the range": _noise(level) for level in (0.05, 0.1, 0.2)}
    jpegs = {f"JPEG of quality {quality}": _jpeg(quality) for quality in (50, 20, 10)}
    return {"as they are": lambda images: images, **blurs, **noises, **jpegs}


def _blur(share: float) -> Spoil:
    def blurred(images: Tensor) -> Tensor:
        sigma = share * min(images.shape[-2:])
        size = 2 * max(1, round(3 * sigma)) + 1
        worse: Tensor = gaussian_blur(images, [size, size], [sigma, sigma])
        return worse

    return blurred


def _noise(level: float) -> Spoil:
    def noisy(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)  # the same noise for both models
        return (images + level * torch.randn(images.shape, generator=generator)).clamp(0, 1)

    return noisy


def _jpeg(quality: int) -> Spoil:
    def encoded(images: Tensor) -> Tensor:
        spoilt = []
        for image in (255 * images).round().byte():
            buffer = io.BytesIO()
            pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
            again = np.asarray(Image.open(buffer), np.float32) / 255
            spoilt.append(torch.from_numpy(again).reshape(*pixels.shape[:2], -1).permute(2, 0, 1))
        return torch.stack(spoilt)

    return encoded


def _predictions(
    opened: Mapping[str, Opened], described: Mapping[str, Description], folder: Path, files: Sequence[str]
) -> pd.DataFrame:
    """Columns of `Comparison.predictions` but for the label."""
    columns: dict[str, list[object]] = {"path": list(files)}
    for name in MODELS:
        shares = _shares(opened[name], described[name], folder, files, name)
        columns[name] = [described["dense"].name(label) for label in shares.argmax(1).tolist()]
        columns[f"{name}_share"] = shares.amax(1).tolist()
    return pd.DataFrame(columns)


def _robustness(
    opened: Mapping[str, Opened],
    described: Mapping[str, Description],
    folder: Path,
    files: Sequence[str],
    labels: Sequence[str],
) -> pd.DataFrame:
    """Columns of `Comparison.spoilt`."""
    chosen = np.unique(np.linspace(0, len(files) - 1, min(SPOILT, len(files))).astype(int))
    some, known = [files[at] for at in chosen], np.array([labels[at] for at in chosen])
    rows = []
    for how, spoil in spoils().items():
        found = {}
        for name in MODELS:
            shares = _shares(opened[name], described[name], folder, some, f"{name}, {how}", spoil)
            found[name] = np.array([described["dense"].name(label) for label in shares.argmax(1).tolist()])
        right = {name: (found[name] == known).sum() if known.all() else np.nan for name in MODELS}
        rows.append({"how": how, "images": len(some), **right, "alike": (found["dense"] == found["compressed"]).sum()})
    return pd.DataFrame(rows)


def _shares(
    opened: Opened,
    description: Description,
    folder: Path,
    files: Sequence[str],
    told: str,
    spoil: Spoil | None = None,
) -> Tensor:
    """Probabilities of all classes, (images, K)."""
    preprocessing = description.preprocessing
    transform = create_transform(preprocessing, None)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    shares = []
    for batch in bar(batches, told, "batch", leave=False):
        images = torch.stack([transform(read_image(folder, file, preprocessing.input_size[0])) for file in batch])
        if spoil is not None:
            images = (spoil((images * std + mean).clamp(0, 1)) - mean) / std
        shares.append(opened.run(images).softmax(1))
    return torch.cat(shares)


def _require_same_classes(described: Mapping[str, Description], paths: Sequence[Path]) -> None:
    first, second = (described[name].classes for name in MODELS)
    if first and second and first != second:
        raise LpvitError(f"{paths[1]}: its classes are not those of {paths[0]}; compare models of the same classes")


def _thumbnail(file: Path) -> str:
    image = read_image(file.parent, file.name, 3)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
