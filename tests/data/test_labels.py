"""Which forms of labels are taken, and the line that refuses every other."""

from pathlib import Path

import pytest
import torch
from tiny import dense_model, photographs
from torch import nn
from torch.nn import functional

import lpvit
from lpvit.data.labels import class_numbers

NUMBERS = torch.arange(8) % 5
TAKEN = {
    "int64": NUMBERS,
    "uint8": NUMBERS.to(torch.uint8),
    "int32": NUMBERS.int(),
    "a column": NUMBERS[:, None],
}
REFUSED = {
    "from 1": (NUMBERS + 1, "labels: found 5, the model has classes 0 to 4; they count from 1: subtract 1"),
    "to be ignored": (
        NUMBERS.where(NUMBERS > 0, -100),
        "labels: found -100, the model has classes 0 to 4; omit images of no or another class",
    ),
    "beyond": (NUMBERS + 7, "labels: found 7, the model has classes 0 to 4; omit images of no or another class"),
    "one-hot": (
        functional.one_hot(NUMBERS, 5),
        r"labels: found shape (8, 5) for 8 images, expected (8,); of one-hot labels give argmax(dim=1)",
    ),
    "soft": (
        torch.full((8, 5), 0.2),
        r"labels: found shape (8, 5) for 8 images, expected (8,); of one-hot labels give argmax(dim=1)",
    ),
    "floats": (
        NUMBERS.float(),
        "labels: found torch.float32, expected class numbers from 0; convert them with .long()",
    ),
    "truth values": (
        NUMBERS > 2,
        "labels: found torch.bool, expected class numbers from 0; convert them with .long()",
    ),
    "too few": (NUMBERS[:3], "labels: found shape (3,) for 8 images, expected (8,)"),
}
IMAGES = photographs("vit", 8)
RECIPE = lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def pruned() -> lpvit.Pruned:
    return lpvit.prune(dense_model("vit"), [IMAGES], budget=0.6, block_shape=(8, 4))


@pytest.mark.parametrize("form", TAKEN)
def test_labels_that_are_class_numbers_are_taken_in_any_integer_type(form: str, pruned: lpvit.Pruned) -> None:
    taken = class_numbers(TAKEN[form], 8, 5)
    assert taken.dtype == torch.int64
    assert torch.equal(taken, NUMBERS)
    assert lpvit.evaluate(pruned, [(IMAGES, TAKEN[form])]) == lpvit.evaluate(pruned, [(IMAGES, NUMBERS)])


@pytest.mark.parametrize("form", REFUSED)
def test_other_labels_are_refused_in_one_line_in_evaluation_and_in_training(form: str, pruned: lpvit.Pruned) -> None:
    labels, message = REFUSED[form]
    with pytest.raises(lpvit.LpvitError) as in_evaluation:
        lpvit.evaluate(pruned, [(IMAGES, labels)])
    with pytest.raises(lpvit.LpvitError) as in_training:
        lpvit.finetune(pruned, [(IMAGES, labels)], [(IMAGES, NUMBERS)], recipe=RECIPE)
    assert str(in_evaluation.value) == str(in_training.value) == message


def test_a_model_with_one_output_has_no_accuracy() -> None:
    """All labels 0, or floats between 0 and 1: everything would be right, and the loss 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    for labels in (torch.rand(8), torch.zeros(8, dtype=torch.int64)):
        with pytest.raises(lpvit.LpvitError, match=r"^model: has 1 output, .* a classifier needs two or more$"):
            lpvit.evaluate(model, [(IMAGES, labels)])


def test_images_that_are_not_normalised_are_refused_by_every_function(pruned: lpvit.Pruned, tmp_path: Path) -> None:
    raw = (255 * IMAGES.clamp(0, 1)).to(torch.uint8)
    calls = [
        lambda: lpvit.prune(dense_model("vit"), [raw], budget=0.6, block_shape=(8, 4)),
        lambda: lpvit.quantise(pruned, [raw]),
        lambda: lpvit.evaluate(pruned, [(raw, NUMBERS)]),
        lambda: lpvit.finetune(pruned, [(raw, NUMBERS)], [(IMAGES, NUMBERS)], recipe=RECIPE),
    ]
    for call in calls:
        with pytest.raises(lpvit.LpvitError, match=r"found a tensor of shape \(8, 1, 16, 16\) and dtype torch.uint8"):
            call()
