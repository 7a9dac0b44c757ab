"""Loader `dali`: JPEG files through NVIDIA DALI, on the CPU or with GPU decoding.

N = images of a batch; C, H, W = channels, height and width of the model's input.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from lpvit.data.encoded import first_without_jpeg, is_a_file, read_encoded
from lpvit.data.index import find_problem
from lpvit.data.loading import Loader
from lpvit.data.preprocessing import Augmentation, Preprocessing, RandAugmentPolicy
from lpvit.data.rand_augment import RandAugmentDraws, draw_rand_augment
from lpvit.errors import LpvitError

try:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.data_node import DataNode
    from nvidia.dali.pipeline import Pipeline

    from lpvit.data import dali_graph as graph
except ImportError as error:
    raise LpvitError(
        f"loader 'dali': NVIDIA DALI cannot be imported ({error}); pip install 'lpvit[dali]', or choose 'loader: timm'"
    ) from None

_PREFETCHED_BATCHES = 2


class ImageLoader(Loader):
    """Builds a pipeline for every epoch and feeds it the batches' paths or bytes, so that epochs are independent.

    Evaluation differs from timm's by less than 0.005 on average, in normalised units. Training draws from the same
    distributions, but RandAugment warps by linear interpolation, translates by whole pixels and fills with grey, and
    colour jitter has a fixed order. The random numbers depend on the batch size and the rank, not on the threads.

    Raises:
        LpvitError: An image is not a JPEG file, the model does not take RGB images, or DALI lacks the interpolation or
            RandAugment set.
    """

    def __post_init__(self) -> None:
        table = self.files.table
        _check(Path(self.files.root or ""), table["path"].tolist(), self.preprocessing, self.augmentation)
        self._paths = [str(Path(self.files.root or "") / path) for path in table["path"]]
        self._by_path = all(map(is_a_file, table["path"]))  # DALI reads the files
        self._labels = torch.tensor(table["label"].to_numpy(), dtype=torch.int64)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = [[draw.image for draw in batch] for batch in self.plan]
        if not batches:
            return
        pipeline = self._build_pipeline(batches)
        for _ in range(min(_PREFETCHED_BATCHES, len(batches))):
            pipeline.schedule_run()
        for number, batch in enumerate(batches):
            try:
                (images,) = pipeline.outputs()
            except RuntimeError:  # DALI does not always name the file
                self._blame(itertools.chain(*batches[number : number + _PREFETCHED_BATCHES]))
                raise
            if number + _PREFETCHED_BATCHES < len(batches):
                pipeline.schedule_run()
            yield from_dlpack(images.as_tensor()), self._labels[batch].to(self.device)

    def _build_pipeline(self, batches: list[list[int]]) -> Pipeline:
        on_gpu = self.device.type == "cuda"
        sources = ([self._source(self._paths[image]) for image in batch] for batch in batches)
        pipeline = _pipeline(
            sources,
            self._by_path,
            self.preprocessing,
            self.augmentation,
            "gpu" if on_gpu else "cpu",
            self._rand_augment_draws(batches),
            batch_size=len(batches[0]),
            num_threads=self.threads,
            device_id=_device_index(self.device) if on_gpu else None,
            seed=self.plan.stream_seed(),
            prefetch_queue_depth=_PREFETCHED_BATCHES,
            exec_dynamic=True,  # its outputs stay valid as long as torch holds them
        )
        pipeline.build()
        return pipeline

    def _source(self, path: str) -> np.ndarray:
        """A path, or the bytes at that location, uint8."""
        try:
            return np.frombuffer(path.encode() if self._by_path else read_encoded(path), np.uint8)
        except OSError as error:
            raise LpvitError(f"{path}: cannot be read ({error.strerror}); replace or remove it") from None

    def _rand_augment_draws(self, batches: list[list[int]]) -> Iterator[RandAugmentDraws] | None:
        if self.augmentation is None or self.augmentation.rand_augment is None:
            return None
        policy = RandAugmentPolicy.parse(self.augmentation.rand_augment)
        generator = np.random.default_rng(self.plan.stream_seed())
        size = self.preprocessing.crop_size
        return (draw_rand_augment(policy, len(batch), size, generator) for batch in batches)

    def _blame(self, images: Iterable[int]) -> None:
        for image in images:
            if problem := find_problem(self._paths[image]):
                raise LpvitError(f"{self._paths[image]}: cannot be decoded ({problem}); replace or remove it") from None


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def _pipeline(
    sources: Iterator[list[np.ndarray]],
    by_path: bool,
    preprocessing: Preprocessing,
    augmentation: Augmentation | None,
    device: str,
    rand_augment_draws: Iterator[RandAugmentDraws] | None,
) -> DataNode:
    encoded = fn.external_source(sources, batch=True, dtype=types.UINT8, ndim=1)
    if by_path:
        encoded = fn.io.file.read(encoded)
    if augmentation is None:
        images = graph.evaluation_images(encoded, preprocessing, device)
        return graph.normalise(images, preprocessing)
    images = graph.random_crops(encoded, preprocessing, augmentation, device)
    if rand_augment_draws is not None:
        nodes = fn.external_source(rand_augment_draws, num_outputs=len(RandAugmentDraws._fields), batch=True)
        layers = RandAugmentPolicy.parse(str(augmentation.rand_augment)).layers
        images = graph.rand_augment(images, RandAugmentDraws(*nodes), layers, preprocessing)
    elif augmentation.color_jitter:
        images = graph.jitter_colors(images, augmentation.color_jitter)
    # RandAugment is symmetric, so the flip may come last, where it costs nothing
    mirror = fn.random.coin_flip(probability=augmentation.horizontal_flip)
    return graph.normalise(images, preprocessing, mirror)


def _check(root: Path, paths: Sequence[str], preprocessing: Preprocessing, augmentation: Augmentation | None) -> None:
    if (other := first_without_jpeg(root, paths)) is not None:
        raise LpvitError(f"loader 'dali': reads JPEG files, {other} is none; choose 'loader: timm' or 'memory'")
    if preprocessing.input_size[0] != 3:
        raise LpvitError(
            "loader 'dali': reads RGB images, the model takes 1 channel; choose 'loader: timm' or 'memory'"
        )
    graph.interpolation_type(preprocessing.interpolation)
    policy = augmentation.rand_augment if augmentation else None
    if policy is not None and RandAugmentPolicy.parse(policy).operations is not None:
        raise LpvitError(
            f"loader 'dali': knows RandAugment's full set of operations only, not '{policy}'; choose 'loader: timm'"
        )


def _device_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
