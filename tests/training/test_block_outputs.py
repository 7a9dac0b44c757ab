"""Distillation of the outputs of transformer blocks."""

import copy

import pytest
import timm
import torch
from tiny import VIT, dense_model, photographs
from torch import Tensor, nn

import lpvit
from lpvit.bases.last_block.unread import drop_unread_tokens
from lpvit.errors import LpvitError
from lpvit.models.analysis.passes import recorded_outputs
from lpvit.models.preparation import adopt_input_size
from lpvit.training.block_outputs import BlockDistillation
from lpvit.training.features import FeatureLoss

IMAGES = photographs("vit", 8)


def sized(kind: str) -> nn.Module:
    model = dense_model(kind).eval()
    adopt_input_size(model, photographs(kind, 1))
    return model


def disturbed(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return other


def outputs(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of both transformer blocks, and of the model."""
    with recorded_outputs(model, ["blocks.0", "blocks.1"]) as found:
        result = model(images)
    return found["blocks.0"], found["blocks.1"], result


def test_the_loss_is_that_of_the_outputs_plus_the_weighted_errors_of_the_blocks() -> None:
    teacher = sized("vit")
    student = disturbed(teacher).eval()
    loss = BlockDistillation(student, FeatureLoss(student, copy.deepcopy(teacher)), 0.5)
    value = loss(IMAGES, student(IMAGES), None)
    pairs = zip(outputs(student, IMAGES), outputs(teacher, IMAGES), strict=True)
    *of_blocks, of_logits = (
        ((found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).square().mean()
        for found, wanted in pairs
    )
    torch.testing.assert_close(value, of_logits + 0.5 * sum(of_blocks))
    assert torch.autograd.grad(value, student.blocks[0].mlp.fc1.weight)[0].abs().max() > 0


def test_a_last_block_that_gives_fewer_tokens_is_compared_by_these() -> None:
    teacher = sized("vit")
    student, _ = drop_unread_tokens(copy.deepcopy(teacher))
    loss = BlockDistillation(student, FeatureLoss(student, teacher), 1.0)
    assert loss(IMAGES, student(IMAGES), None) < 1e-6


def test_maps_are_compared_too() -> None:
    teacher, images = sized("swin"), photographs("swin", 4)
    same, other = copy.deepcopy(teacher), disturbed(teacher)
    of_same, of_other = (
        BlockDistillation(each, FeatureLoss(each, copy.deepcopy(teacher)), 1.0) for each in (same, other)
    )
    assert of_same(images, same(images), None) < 1e-6
    assert len(of_other.found) == 0
    value, outer = (loss(images, other(images), None) for loss in (of_other, of_other.loss))
    assert value > outer
    assert len(of_other.found) == 3


def test_blocks_come_nearer_to_those_of_the_dense_model() -> None:
    dense, batches = sized("vit"), photographs("vit", 16).split(8)
    pruned = lpvit.prune(dense, batches, budget=0.2, pruning=lpvit.Factors(rank_multiple=1))

    def error(model: nn.Module) -> float:
        pairs = zip(outputs(model.eval(), IMAGES), outputs(dense, IMAGES), strict=True)
        return sum(float((found - wanted).norm() / wanted.norm()) for found, wanted in pairs)

    recipe = lpvit.Recipe(
        **{"epochs": 12, "batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.0},
        **{"distillation": "features", "teacher": "dense", "distillation_blocks": 1.0},
    )
    tuned = lpvit.finetune(pruned, batches, batches, recipe=recipe, teacher=dense)
    assert error(tuned.model) < 0.9 * error(pruned.model)


def test_another_basis_is_refused_in_one_line() -> None:
    dense = dense_model("vit")
    aligned = lpvit.Blocks(block_shape=(4, 4), basis="aligned", saliency="gauss_newton", distortion="gauss_newton")
    pruned = lpvit.prune(dense, IMAGES.split(4), budget=0.6, pruning=aligned)
    recipe = lpvit.Recipe(
        epochs=1, batch_size=4, learning_rate=1e-3, distillation="features", teacher="dense", distillation_blocks=1
    )
    with pytest.raises(LpvitError, match=r"^recipe: distillation_blocks: the residual stream .*'residual'") as error:
        lpvit.finetune(pruned, IMAGES.split(4), IMAGES.split(4), recipe=recipe, teacher=dense)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"depth": 1}, r"the model has no 'blocks\.1' as the dense model has; leave it out"),
        ({"embed_dim": 16}, r"'blocks\.0' gives \(17, 16\) numbers, that of the dense model \(17, 20\); leave it out"),
    ],
)
def test_a_model_with_other_blocks_is_refused(option: dict[str, int], line: str) -> None:
    student, teacher = timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT | option), sized("vit")
    adopt_input_size(student, IMAGES)
    with pytest.raises(LpvitError, match=f"^recipe: distillation_blocks: {line}$"):
        BlockDistillation(student, FeatureLoss(student, teacher), 1.0)(IMAGES, student(IMAGES), None)
