"""Predicts the classes of images with a model from a file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lpvit.api.arguments import require_file
from lpvit.cli.opened import open_model
from lpvit.data.decoding import read_image
from lpvit.data.transforms import create_transform


def predicted(path: Path, images: Sequence[Path], top: int) -> Iterator[str]:
    """A line for every image with its best classes and their probabilities.

    Args:
        path: Of the model.
        images: Files.
        top: Number of classes to tell.

    Raises:
        LpvitError: The model or an image cannot be read, or the model gives features.
    """
    opened = open_model(path)
    description = opened.require_classes(path)
    transform = create_transform(description.preprocessing, None)
    channels = description.preprocessing.input_size[0]
    for file in images:
        require_file(file)
        image = transform(read_image(file.parent, file.name, channels))
        shares = opened.run(image[None])[0].softmax(0)
        best = torch.topk(shares, min(top, len(shares)))
        named = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield f"{file}: " + ", ".join(f"{description.name(label)} {share:.1%}" for label, share in named)
