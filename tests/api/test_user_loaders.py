"""Loaders of users that are not what they seem: streams that run dry, images of other sizes, lengths that lie."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from tiny import VIT, dense_model, photographs
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import lpvit

BLOCK_SHAPE = (8, 4)
RECIPE = lpvit.Recipe(epochs=2, batch_size=8, learning_rate=1e-3)
ONE_PASS = lpvit.Blocks(block_shape=BLOCK_SHAPE, saliency="l1", distortion="taylor")


class Stream(IterableDataset):
    """Gives its images once, in whatever pass asks for them."""

    def __init__(self, items: list[Any]) -> None:
        self.items = iter(items)

    def __iter__(self) -> Iterator[Any]:
        return self.items


class Sized(Stream):
    def __len__(self) -> int:
        return 3


def labelled(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    labels = torch.arange(len(images)) % 5
    return list(zip(images.split(8), labels.split(8), strict=True))


@pytest.fixture(scope="module")
def pruned() -> lpvit.Pruned:
    return lpvit.prune(dense_model("vit"), photographs("vit").split(8), budget=0.5, block_shape=BLOCK_SHAPE)


def test_a_stream_that_runs_dry_is_refused_and_one_that_is_read_once_loses_no_image() -> None:
    images = photographs("vit")
    line = r"^loader: yields 24 images in its first pass and 0 in a later one; give a DataLoader or a list of batches"
    for stream in (Stream(images.split(8)), DataLoader(Stream(list(images)), batch_size=8)):
        with pytest.raises(lpvit.LpvitError, match=line):
            lpvit.prune(dense_model("vit"), stream, budget=0.5, block_shape=BLOCK_SHAPE)
    budget = lpvit.Budget(macs=0.5)
    found, expected = (
        lpvit.prune(dense_model("vit"), given, budget=budget, pruning=ONE_PASS)
        for given in (Stream(images.split(8)), images.split(8))
    )
    for name, mask in expected.keep_masks.items():
        assert torch.equal(found.keep_masks[name], mask)


def test_a_loader_that_gives_more_or_fewer_batches_than_its_length_is_refused(pruned: lpvit.Pruned) -> None:
    batches = labelled(photographs("vit"))
    with pytest.raises(lpvit.LpvitError, match=r"^loader: has the length 3 and yields 2 batches in a pass"):
        lpvit.evaluate(pruned, Sized(batches[:2]))
    with pytest.raises(lpvit.LpvitError, match=r"^loader: has the length 3 and yields more batches in a pass"):
        lpvit.evaluate(pruned, Sized(batches + batches))
    with pytest.raises(lpvit.LpvitError, match=r"^loader: has the length 3 and yields 0 batches in a pass"):
        lpvit.finetune(pruned, Sized(batches), batches, recipe=RECIPE)  # dry in the second epoch


CALLS: dict[str, Callable[[lpvit.Pruned, Any], Any]] = {
    "prune": lambda pruned, images: lpvit.prune(dense_model("vit"), [images], budget=0.5, block_shape=BLOCK_SHAPE),
    "quantise": lambda pruned, images: lpvit.quantise(pruned, [images]),
    "evaluate": lambda pruned, images: lpvit.evaluate(pruned, labelled(images)),
    "evaluate, sparsified": lambda pruned, images: lpvit.evaluate(lpvit.sparsify(pruned), labelled(images)),
    "finetune": lambda pruned, images: lpvit.finetune(pruned, labelled(images), labelled(images), recipe=RECIPE),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 16, 16), (1, 15, 16)])
def test_images_that_the_model_does_not_accept_are_refused_in_one_line(
    pruned: lpvit.Pruned, call: str, shape: tuple[int, int, int]
) -> None:
    size = "x".join(map(str, shape))
    with pytest.raises(lpvit.LpvitError, match=rf"^loader: the model does not accept its images of {size} \([^\n]+\)$"):
        CALLS[call](pruned, torch.randn(8, *shape))


@pytest.mark.parametrize("call", ["prune", "quantise"])
def test_images_of_several_sizes_are_refused(pruned: lpvit.Pruned, call: str) -> None:
    batches = [photographs("vit", 8), torch.randn(8, 1, 32, 32)]
    calls = {
        "prune": lambda: lpvit.prune(dense_model("vit"), batches, budget=0.5, block_shape=BLOCK_SHAPE),
        "quantise": lambda: lpvit.quantise(pruned, batches),
    }
    with pytest.raises(lpvit.LpvitError, match=r"^loader: yields images of 1x16x16 and of 1x32x32; resize them"):
        calls[call]()


def test_images_that_are_not_finite_are_refused_by_name(pruned: lpvit.Pruned) -> None:
    images = photographs("vit").clone()
    images[20, 0, 3, 3] = torch.nan
    for call in CALLS.values():
        with pytest.raises(lpvit.LpvitError, match=r"^[^\n]*(NaN|nan)[^\n]*$"):
            call(pruned, images)


def test_a_model_of_any_image_size_is_evaluated_on_another_one() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, dynamic_img_size=True, **VIT)
    assert lpvit.evaluate(model, labelled(torch.randn(8, 1, 32, 32))).images == 8


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "parallel"])
def test_a_model_is_evaluated_as_docs_recommend_to_run_it(pruned: lpvit.Pruned, wrap: Callable[..., nn.Module]) -> None:
    batches = labelled(photographs("vit"))
    fast = lpvit.sparsify(pruned)
    if wrap is torch.compile:
        wrap = lambda model: torch.compile(model, backend="eager")  # noqa: E731 - without a compiler
    assert lpvit.evaluate(wrap(fast), batches).top1 == lpvit.evaluate(pruned, batches).top1
