import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import CLASSES, CPU, ToyData, fit, recipe, toy_model
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.training.loss import InputConversion, TrainingLoss, hard_distillation_loss, soft_distillation_loss

LOG = math.log
STUDENT = torch.tensor([[LOG(1), LOG(3)], [LOG(2), LOG(2)]])
TEACHER = torch.tensor([[LOG(2), LOG(2)], [LOG(9), LOG(1)]])


def test_soft_loss_is_the_one_worked_out_by_hand() -> None:
    # KL(teacher || student): (1/2, 1/2) against (1/4, 3/4), and (9/10, 1/10) against (1/2, 1/2)
    first = 0.5 * LOG(0.5 / 0.25) + 0.5 * LOG(0.5 / 0.75)
    second = 0.9 * LOG(0.9 / 0.5) + 0.1 * LOG(0.1 / 0.5)
    assert soft_distillation_loss(STUDENT, TEACHER, 1.0).item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_temperature_flattens_both_and_scales_by_its_square() -> None:
    # at temperature 2 the odds 1:3 become 1:sqrt(3), and 9:1 become 3:1
    root = 3**0.5
    first = 0.5 * LOG(0.5 * (1 + root)) + 0.5 * LOG(0.5 * (1 + root) / root)
    second = 0.75 * LOG(0.75 / 0.5) + 0.25 * LOG(0.25 / 0.5)
    assert soft_distillation_loss(STUDENT, TEACHER, 2.0).item() == pytest.approx(4 * (first + second) / 2, rel=1e-5)


def test_hard_loss_is_the_one_worked_out_by_hand() -> None:
    teacher = torch.tensor([[0.0, 1.0], [5.0, 1.0]])
    assert hard_distillation_loss(STUDENT, teacher).item() == pytest.approx(-(LOG(0.75) + LOG(0.5)) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_heads_learn_from_their_own_master_in_shares_of_alpha(kind: Any) -> None:
    teacher = toy_model()
    images, targets = torch.randn(3, 1, 8, 8), torch.eye(CLASSES)[:3]
    logits, distilled = torch.randn(3, CLASSES), torch.randn(3, CLASSES)
    loss = TrainingLoss(toy_model(distilled=True), teacher, kind, alpha=0.3, temperature=2.0)
    opinion = teacher(images)
    function = {"soft": lambda: soft_distillation_loss(distilled, opinion, 2.0)}.get(
        kind, lambda: hard_distillation_loss(distilled, opinion)
    )
    expected = 0.7 * nn.functional.cross_entropy(logits, targets) + 0.3 * function()
    torch.testing.assert_close(loss(images, (logits, distilled), targets), expected)


@pytest.mark.parametrize(("alpha", "learning", "resting"), [(0.0, "head", "head_dist"), (1.0, "head_dist", "head")])
def test_each_head_of_a_distilled_model_follows_its_own_loss(
    tmp_path: Path, alpha: float, learning: str, resting: str
) -> None:
    model = toy_model(distilled=True)
    settings = recipe(epochs=1, distillation="soft", teacher="dense", distillation_alpha=alpha, weight_decay=0)
    state, _ = fit(tmp_path, settings, model=model, teacher=toy_model())
    assert not torch.equal(state[f"{learning}.weight"], model.state_dict()[f"{learning}.weight"])
    assert torch.equal(state[f"{resting}.weight"], model.state_dict()[f"{resting}.weight"])


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_student_believes_its_teacher_even_where_the_teacher_is_wrong(tmp_path: Path, kind: str) -> None:
    settings = {"epochs": 16, "learning_rate": 1e-2}
    teacher = toy_model()
    teacher.load_state_dict(fit(tmp_path / "teacher", recipe(**settings))[0])
    with torch.no_grad():  # from now on every class is taken for the next one
        teacher.head.weight.copy_(20 * teacher.head.weight.roll(1, dims=0))
        teacher.head.bias.copy_(20 * teacher.head.bias.roll(1))
    settings |= {"distillation": kind, "teacher": "dense", "distillation_alpha": 1.0}
    state, history = fit(tmp_path / "student", recipe(**settings), teacher=teacher)
    assert history["train_loss"].iloc[-1] < 0.5 * history["train_loss"].iloc[0]
    assert history["top1"].iloc[-1] == 0
    student = toy_model()
    student.load_state_dict(state)
    images, labels = ToyData()(0, 1, CPU)[0].images, ToyData()(0, 1, CPU)[0].labels
    assert torch.equal(student.eval()(images).argmax(dim=1), (labels + 1) % CLASSES)


def test_the_teacher_is_frozen_in_evaluation_mode_and_sees_its_own_normalisation_and_size() -> None:
    seen: list[tuple[bool, Tensor]] = []
    teacher = toy_model(img_size=16, mean=(0.2,), std=(0.1,)).train()
    teacher.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0])))
    loss = TrainingLoss(toy_model(), teacher, "hard")
    pixels = torch.full((2, 1, 8, 8), 0.7)
    output = torch.randn(2, CLASSES, requires_grad=True)
    loss((pixels - 0.5) / 0.5, output, torch.eye(CLASSES)[:2]).backward()
    training, images = seen[-1]  # after the one by which its classes are counted
    assert not training
    torch.testing.assert_close(images, torch.full((2, 1, 16, 16), (0.7 - 0.2) / 0.1))
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_conversion_between_equal_inputs_gives_the_same_tensor() -> None:
    config = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "input_size": (3, 8, 8)}
    images = torch.randn(1, 3, 8, 8)
    assert InputConversion(config, dict(config))(images) is images


def test_conversion_treats_every_channel_by_itself() -> None:
    source = {"mean": (0.0, 0.5), "std": (1.0, 0.5), "input_size": (2, 1, 1)}
    target = {"mean": (0.0, 0.0), "std": (1.0, 2.0), "input_size": (2, 1, 1)}
    images = torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)
    assert InputConversion(source, target)(images).flatten().tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: toy_model(classes=7), "the teacher has 7 classes, the model 4"),
        (lambda: toy_model(input_size=(3, 8, 8)), "the teacher has 3 channels, the model 1"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher: Any, message: str) -> None:
    with pytest.raises(LpvitError, match=message):
        TrainingLoss(toy_model(), teacher(), "soft")
