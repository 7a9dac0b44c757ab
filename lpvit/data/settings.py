"""Settings of images: datasets and calibration sets."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lpvit.settings import Section, Share
from lpvit.strategies import NameIn

LOADERS = "lpvit.data.loaders"


class Dataset(Section):
    """Labelled images with a training and a validation split."""

    source: Literal["folder", "tar", "parquet", "digits"] = Field(
        "folder",
        description="`folder`: one folder of images per class; `tar`: shards of `<key>.jpg` and `<key>.cls` "
        "(WebDataset); `parquet`: shards with images and labels (Hugging Face); `digits`: the set of scikit-learn",
    )
    root: Path | None = Field(None, description="folder that holds the splits (none for `digits`)")
    train: str = Field(
        "train",
        description="training split, a folder below `root`; of shards also a prefix of their names: `train-*`",
    )
    validation: str = Field("val", description="validation split, a folder below `root`")
    validation_share: Share = Field(
        0.0,
        description="above 0, the share of every class of `train` used for validation, instead of `validation`; for "
        "images without splits set `train` to `.`: the class folders are in `root` itself",
    )
    loader: Annotated[str, NameIn(LOADERS)] = Field(
        "dali", description="`dali`: JPEG files; `memory`: small sets, decoded once; `timm`: all formats Pillow reads"
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error", description="an image that cannot be decoded stops the run, or is skipped and counted"
    )

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> "Dataset":
        if self.source != "digits" and self.root is None:
            raise ValueError(
                f"root: missing; a dataset with source '{self.source}' needs the folder that holds its splits"
            )
        if self.source == "digits" and (self.root is not None or self.loader != "memory"):
            raise ValueError("source 'digits' takes no root and needs 'loader: memory'")
        if self.source == "digits":
            fixed = ("train", "validation", "validation_share", "on_bad_image")
            self.without(*fixed, because="source 'digits' has its own splits of good images")
        if self.validation_share:
            self.without("validation", because="'validation_share' of 'train' is used instead")
        return self


class Calibration(Section):
    """Training images that the statistics and curves are measured on."""

    images: int = Field(gt=0, description="number of images, class-balanced")
    seed: int = Field(0, ge=0, description="seed of the random sample")
