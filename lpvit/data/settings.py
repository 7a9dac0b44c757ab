"""Settings of images: datasets and calibration sets."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lpvit.data.layouts import Layout
from lpvit.data.listing import Listing, list_files
from lpvit.settings import LocalPath, Section, Share
from lpvit.strategies import NameIn

LOADERS = "lpvit.data.loaders"


class ImageSet(Section):
    """Where images are, their splits and their classes, if they have some."""

    source: Annotated[Layout, Layout.registry] = Field(
        "folder", validate_default=True, description="how the images are stored"
    )
    root: LocalPath | None = Field(None, description="folder that holds the splits (none for `digits`)")
    train: str = Field(
        "train",
        description="training split: a folder below `root`; of shards and tables also the beginning of their names",
    )
    validation: str = Field("val", description="validation split, likewise")
    validation_share: Share = Field(
        0.0,
        description="above 0, the share of every class of `train` used for validation, instead of `validation`; for "
        "images without splits set `train` to `.`: the class folders or shards are in `root` itself",
    )
    class_order: Literal["name", "natural"] | LocalPath | None = Field(
        None,
        description="labels: by `name` (0, 1, 10, 2), `natural` (0, 1, 2, 10), or as in a file of names, one a line; "
        "null is the dataset's own numbers, else by name, and asks where names are numbers that are not padded",
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error", description="an image that cannot be decoded stops the run, or is skipped and counted"
    )

    @model_validator(mode="after")
    def _source_has_its_root(self) -> "ImageSet":
        if self.source.name != "digits" and self.root is None:
            raise ValueError(
                f"root: missing; a dataset with source '{self.source.name}' needs the folder that holds its splits"
            )
        if self.source.name == "digits" and self.root is not None:
            raise ValueError("source 'digits' takes no root")
        if self.source.name == "digits":
            fixed = ("train", "validation", "validation_share", "on_bad_image")
            self.without(*fixed, because="source 'digits' has its own splits of good images")
        if not self.source.labelled:
            self.without("class_order", because=f"source '{self.source.name}' has no classes")
        if self.validation_share:
            self.without("validation", because="'validation_share' of 'train' is used instead")
        return self

    @property
    def folder(self) -> Path:
        """The root; the present folder without one."""
        return self.root or Path()

    def listing(self) -> Listing:
        """Fingerprint of all files that the images and their classes depend on; opens no image."""
        splits = [self.train] if self.validation_share else [self.train, self.validation]
        watched = [path for split in splits for path in self.source.watched(self.folder, split)]
        if isinstance(self.class_order, Path):
            watched.append(str(self.class_order.absolute()))
        return list_files(self.folder, watched)


class Dataset(ImageSet):
    """Images with a training and a validation split, and how they are loaded."""

    loader: Annotated[str, NameIn(LOADERS)] = Field(
        "dali", description="`dali`: JPEG files; `memory`: small sets, decoded once; `timm`: all formats Pillow reads"
    )

    probe: str | None = Field(
        None,
        description="of images without classes: name in `datasets` of some with classes, which the outputs of every "
        "model also classify, by nearest neighbours and a linear classifier",
    )

    @model_validator(mode="after")
    def _probes_where_there_are_no_classes(self) -> "Dataset":
        if self.source.labelled:
            self.without("probe", because="is for images without classes, 'source: unlabelled'")
        return self

    @model_validator(mode="after")
    def _digits_are_in_memory(self) -> "Dataset":
        if self.source.name == "digits" and self.loader != "memory":
            raise ValueError("source 'digits' needs 'loader: memory'")
        return self


class Calibration(Section):
    """Training images that the statistics and curves are measured on."""

    images: int = Field(gt=0, description="number of images, class-balanced")
    seed: int = Field(0, ge=0, description="seed of the random sample")
