import pytest
import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.training.evaluation import Accuracy, evaluate, evaluation_sums

CPU = torch.device("cpu")
LOGITS = torch.tensor(
    [
        [9.0, 0, 0, 0, 0, 0, 0],  # label 0: first
        [6.0, 5, 4, 3, 2, 1, 0],  # label 4: fifth
        [6.0, 5, 4, 3, 2, 1, 0],  # label 5: sixth
        [0.0, 0, 0, 1, 0, 0, 0],  # label 3: first
    ]
)
LABELS = torch.tensor([0, 4, 5, 3])


def batches(logits: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(logits.split(size), labels.split(size), strict=True))


def test_hits_and_loss_are_those_counted_by_hand() -> None:
    probabilities = LOGITS.double().softmax(dim=1)
    expected = -sum(probabilities[i, label].log().item() for i, label in enumerate(LABELS.tolist())) / 4
    accuracy = evaluate(nn.Identity(), batches(LOGITS, LABELS, 4), CPU)
    assert (accuracy.images, accuracy.top1, accuracy.top5) == (4, 50.0, 75.0)
    assert accuracy.loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_the_batch_size_changes_nothing(size: int) -> None:
    whole = evaluate(nn.Identity(), batches(LOGITS, LABELS, 4), CPU)
    parts = evaluate(nn.Identity(), batches(LOGITS, LABELS, size), CPU)
    assert (parts.images, parts.top1, parts.top5) == (whole.images, whole.top1, whole.top5)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-14)


def test_with_fewer_than_five_classes_every_image_is_a_top5_hit() -> None:
    accuracy = evaluate(nn.Identity(), [(torch.eye(3), torch.tensor([1, 1, 0]))], CPU)
    assert accuracy.top1 == pytest.approx(100 / 3)
    assert accuracy.top5 == 100.0


def test_sums_of_parts_add_up_even_if_a_part_is_empty() -> None:
    parts = [batches(LOGITS[:3], LABELS[:3], 2), [], batches(LOGITS[3:], LABELS[3:], 1)]
    total = sum((evaluation_sums(nn.Identity(), part, CPU) for part in parts), torch.zeros(4, dtype=torch.float64))
    whole = evaluate(nn.Identity(), batches(LOGITS, LABELS, 4), CPU)
    assert Accuracy.from_sums(total).top1 == whole.top1
    assert Accuracy.from_sums(total).loss == pytest.approx(whole.loss, rel=1e-14)


def test_a_split_without_images_is_an_error() -> None:
    with pytest.raises(LpvitError, match="holds no images"):
        evaluate(nn.Identity(), [], CPU)


def test_the_model_is_evaluated_in_evaluation_mode_and_without_gradients() -> None:
    seen = []

    class Probe(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return images

    evaluate(Probe().train(), batches(LOGITS, LABELS, 4), CPU)
    assert seen == [(False, False)]


def test_tensors_that_the_loader_keeps_can_be_trained_on_afterwards() -> None:
    weight = torch.ones(7, requires_grad=True)
    kept: list[Tensor] = []

    def loader() -> object:
        kept.append(LOGITS * 2)
        yield kept[0], LABELS

    evaluate(nn.Identity(), loader(), CPU)
    (kept[0] * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("hits", "images", "warned"),
    [(29, 100, True), (18, 62, True), (40, 100, False), (290, 1000, True), (340, 1000, False)],
)
def test_an_accuracy_that_a_guess_could_have_is_a_warning(
    hits: int, images: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Four classes, of which a guess of the most frequent one is right in a share of 30 %."""
    labels = torch.tensor([0] * (3 * images // 10) + [1 + n % 3 for n in range(images - 3 * images // 10)])
    right = torch.arange(images) < hits
    logits = nn.functional.one_hot(torch.where(right, labels, (labels + 1) % 4), 4).float()
    accuracy = evaluate(nn.Identity(), batches(logits, labels, 50), CPU)
    assert accuracy.top1 == pytest.approx(100 * hits / images)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == warned
    assert all("no better than a guess of the most frequent class" in message for message in warnings)
