"""Training and evaluation without labels, and for other tasks than one class per image."""

from typing import Any

import pytest
import timm
import torch
from libraries import MODELS, SIZE
from tiny import VIT, dense_model, photographs
from torch import Tensor, nn
from torch.nn import functional

import lpvit
from lpvit.errors import LpvitError
from lpvit.training.features import FeatureLoss, cosines, relative_errors
from lpvit.training.probing import probe_features
from lpvit.training.tasks.multi_label import mean_average_precision

IMAGES = photographs("vit", 16)
UNLABELLED = list(IMAGES.split(8))
PRUNING = lpvit.Blocks(block_shape=(4, 4), saliency="l1", distortion="taylor", layers=("fc1", "fc2"))


def recipe(**settings: Any) -> lpvit.Recipe:
    return lpvit.Recipe(**({"epochs": 6, "batch_size": 8, "learning_rate": 3e-3, "weight_decay": 0.0} | settings))


def following(**settings: Any) -> lpvit.Recipe:
    return recipe(distillation="features", teacher="dense", **settings)


def headless() -> nn.Module:
    model = dense_model("vit")
    model.reset_classifier(0)
    return model


def pruned_of(model: nn.Module, images: list[Tensor] = UNLABELLED, share: float = 0.6) -> lpvit.Pruned:
    return lpvit.prune(model, images, budget=lpvit.Budget(macs=share), pruning=PRUNING)


def of_sources(name: str) -> tuple[nn.Module, list[Tensor]]:
    return MODELS[name][1](), [
        torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(n)) for n in (0, 1)
    ]


@pytest.mark.parametrize("kind", ["squared", "cosine"])
def test_a_model_without_a_head_comes_nearer_to_the_dense_one_without_labels(kind: str) -> None:
    dense = headless()
    pruned = pruned_of(dense)
    before = lpvit.evaluate(pruned, UNLABELLED, reference=dense)
    trained = lpvit.finetune(pruned, UNLABELLED, UNLABELLED, recipe=following(features_loss=kind), teacher=dense)
    after = lpvit.evaluate(trained, UNLABELLED, reference=dense)
    assert before.cosine < after.cosine < 1
    assert before.same_class is after.same_class is None
    assert before.images == 16


@pytest.mark.parametrize(
    "name", ["Dinov2Model", "ViTForImageClassification", "backbone with features_only", "nn.TransformerEncoder"]
)
def test_models_of_other_libraries_follow_their_dense_selves(name: str) -> None:
    dense, images = of_sources(name)
    pruned = pruned_of(dense, images)
    before = lpvit.evaluate(pruned, images, reference=dense)
    trained = lpvit.finetune(pruned, images, images, recipe=following(epochs=3, learning_rate=1e-3), teacher=dense)
    after = lpvit.evaluate(trained, images, reference=dense)
    assert after.relative_error < before.relative_error
    assert (after.same_class is None) == (name != "ViTForImageClassification")  # of others it is not known


def test_a_model_agrees_with_itself_entirely() -> None:
    dense = dense_model("vit")
    same = lpvit.evaluate(dense, UNLABELLED, reference=dense)
    assert (same.cosine, same.relative_error, same.same_class) == (pytest.approx(1), 0, 100)


def test_labels_beside_the_images_change_nothing_where_features_are_followed() -> None:
    dense = headless()
    pruned = pruned_of(dense)
    labelled = [(images, torch.full((8,), 3)) for images in UNLABELLED]
    trained = [
        lpvit.finetune(pruned, loader, loader, recipe=following(epochs=1), teacher=dense).model
        for loader in (UNLABELLED, labelled)
    ]
    assert all(map(torch.equal, *(model.state_dict().values() for model in trained)))


def test_mixed_images_are_followed_too() -> None:
    dense = headless()
    trained = lpvit.finetune(
        pruned_of(dense), UNLABELLED, UNLABELLED, recipe=following(epochs=1, mixup=0.8), teacher=dense
    )
    assert trained.model(IMAGES).isfinite().all()


def test_micro_batches_have_the_loss_of_the_whole_batch() -> None:
    dense = headless()
    pruned = pruned_of(dense)
    states = [
        lpvit.finetune(
            pruned, UNLABELLED, UNLABELLED, recipe=following(epochs=1, accumulation=parts), teacher=dense
        ).model.state_dict()
        for parts in (1, 4)
    ]
    for name, value in states[0].items():
        if not name.endswith("qkv.bias"):  # that of the keys has no gradient but rounding
            torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_distances_are_those_worked_out_by_hand_for_every_token() -> None:
    wanted = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])  # one image, two tokens
    found = torch.tensor([[[3.0, 4.0], [0.0, 4.0]]])
    assert cosines(found, wanted).tolist() == pytest.approx([(0.6 + 1) / 2])
    assert relative_errors(found, wanted).tolist() == pytest.approx([16 / 25])


def test_channels_of_maps_are_compared_place_by_place() -> None:
    class Map(nn.Module):
        pretrained_cfg = {"input_size": (2, 3, 3), "mean": (0, 0), "std": (1, 1)}  # noqa: RUF012

        def __init__(self, factors: Tensor) -> None:
            super().__init__()
            self.factors = nn.Parameter(factors)

        def forward(self, images: Tensor) -> Tensor:
            return images * self.factors

    places = torch.rand(1, 1, 3, 3) + 0.5  # a factor of a place leaves its direction
    loss = FeatureLoss(Map(places), Map(torch.ones(1)), "cosine")
    images = torch.randn(2, 2, 3, 3)
    assert loss(images, images * places, None).item() == pytest.approx(0, abs=1e-6)
    assert loss(images, images * torch.tensor([1.0, -1.0]).view(2, 1, 1), None).item() > 0.1


def test_features_are_never_taken_for_logits() -> None:
    """They were: an accuracy of 0.0 %."""
    labels = torch.arange(8) % 5
    for model, images in (
        (headless(), UNLABELLED),
        *map(of_sources, ("Dinov2Model", "image tower", "backbone with features_only")),
    ):
        batches = [(some, labels) for some in images]
        with pytest.raises(
            LpvitError, match=r"gives features, not logits of classes; lpvit.evaluate\(..., reference=dense\)"
        ):
            lpvit.evaluate(model, batches)
        with pytest.raises(LpvitError, match="gives features, not logits"):
            lpvit.finetune(pruned_of(model, images), batches, batches, recipe=recipe(epochs=1))


def test_a_probe_of_separate_classes_is_right_and_one_of_noise_a_guess() -> None:
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    features = torch.randn(400, 16) + 4 * functional.one_hot(labels, 16)
    clear = probe_features(features[:200], labels[:200], features[200:], labels[200:])
    assert min(clear.knn, clear.linear) > 95
    noise = probe_features(torch.randn(200, 16), labels[:200], torch.randn(200, 16), labels[200:])
    assert max(noise.knn, noise.linear) < 40
    assert clear.images == noise.images == 200


def test_a_model_is_probed_by_its_features() -> None:
    labels = torch.arange(16) % 2
    bright = IMAGES + 3 * labels.view(-1, 1, 1, 1)
    found = lpvit.probe(headless(), [(bright[:8], labels[:8])], [(bright[8:], labels[8:])])
    assert found.images == 8
    assert found.linear > 50


def test_several_labels_are_learnt_and_ranked() -> None:
    model = dense_model("vit")
    labels = (model(IMAGES) > model(IMAGES).median(dim=0).values).float().detach()
    batches = list(zip(UNLABELLED, labels.split(8), strict=True))
    pruned = pruned_of(model)
    before = lpvit.evaluate(pruned, batches, task="multi_label")
    trained = lpvit.finetune(pruned, batches, batches, recipe=recipe(), task="multi_label")
    after = lpvit.evaluate(trained, batches, task="multi_label")
    assert after.loss < before.loss
    dense = lpvit.evaluate(model, batches, task="multi_label")
    assert dense.mean_average_precision == pytest.approx(100)


def test_mean_average_precision_is_that_worked_out_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.5], [0.8, 0.5], [0.1, 0.2]])
    labels = torch.tensor([[1, 1], [0, 0], [1, 0]])
    # first class: precisions 1/1 and 2/3 at its positives; second: two equal scores of which one is positive
    assert mean_average_precision(scores, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_regression_learns_numbers() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=1, **VIT)
    targets = IMAGES.mean(dim=(1, 2, 3))
    batches = list(zip(UNLABELLED, targets.split(8), strict=True))
    pruned = pruned_of(model, share=0.8)
    before = lpvit.evaluate(pruned, batches, task="regression")
    after = lpvit.evaluate(
        lpvit.finetune(pruned, batches, batches, recipe=recipe(), task="regression"), batches, task="regression"
    )
    assert after.loss < before.loss
    assert after.r2 == pytest.approx(1 - after.loss / targets.var(correction=0).item(), rel=1e-4)


def test_a_loss_of_ones_own_gets_the_output_and_the_batch_as_they_are() -> None:
    model = dense_model("vit")
    batches = [{"pixel_values": images, "wanted": torch.zeros(8, 5)} for images in UNLABELLED]

    def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (output - batch["wanted"]).square().mean()

    pruned = pruned_of(model)
    before = lpvit.evaluate(pruned, batches, task=loss)
    after = lpvit.evaluate(lpvit.finetune(pruned, batches, batches, recipe=recipe(), task=loss), batches, task=loss)
    assert after.loss < before.loss
    assert before.loss == pytest.approx(pruned.model(IMAGES).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("task", "labels", "settings", "message"),
    [
        ("multi_label", torch.zeros(8), {}, r"labels: found shape \(8,\), expected \(8, 5\) of 0 and 1"),
        ("multi_label", torch.full((8, 5), 2), {}, "labels: several labels per image are numbers from 0 to 1"),
        ("regression", torch.zeros(8), {}, r"labels: found shape \(8,\), expected \(8, 5\)"),
        ("regression", torch.zeros(8, 5), {"mixup": 0.5}, "recipe: mixup does not go with regression; omit it"),
        (
            lambda output, batch: output,
            torch.zeros(8),
            {},
            r"task: the loss function returns \(8, 5\), expected one number",
        ),
        (
            lambda output, batch: output.mean(),
            torch.zeros(8),
            {"accumulation": 2},
            "recipe: accumulation does not go with",
        ),
        ("several", torch.zeros(8), {}, "task: found 'several'"),
    ],
)
def test_what_does_not_fit_a_task_is_refused(task: Any, labels: Tensor, settings: dict[str, Any], message: str) -> None:
    batches = [(images, labels) for images in UNLABELLED]
    with pytest.raises(LpvitError, match=message):
        lpvit.finetune(pruned_of(dense_model("vit")), batches, batches, recipe=recipe(**settings), task=task)


def test_a_recipe_for_features_has_no_keys_for_labels() -> None:
    with pytest.raises(LpvitError, match="label_smoothing: needs labels"):
        following(label_smoothing=0.1)
    with pytest.raises(LpvitError, match="features_loss: belongs to distillation 'features'"):
        recipe(features_loss="cosine")


def test_a_head_that_was_replaced_counts_and_not_an_attribute_from_before(tmp_path: Any) -> None:
    """They were tracebacks, and a refusal to save."""
    model = dense_model("vit")
    lpvit.name_classes(model, list("abcde"))
    model.head = nn.Linear(20, 3)  # num_classes is still 5
    labelled = [(images, torch.arange(8) % 3) for images in UNLABELLED]
    pruned = pruned_of(model)
    trained = lpvit.finetune(pruned, labelled, labelled, recipe=recipe(epochs=1))
    assert lpvit.evaluate(trained, labelled).images == 16
    lpvit.save(trained, tmp_path / "model.safetensors", options=VIT)
    again = lpvit.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(again.model(IMAGES), trained.model(IMAGES))
    assert again.architecture.classes == ()  # five names for three classes are none
    lpvit.name_classes(trained.model, list("xyz"))
    with pytest.raises(LpvitError, match="found 5 names, the model has 3 classes"):
        lpvit.name_classes(trained.model, list("abcde"))


def test_a_head_may_be_replaced_after_pruning(tmp_path: Any) -> None:
    pruned = pruned_of(headless())
    pruned.model.head = nn.Linear(20, 3)
    labelled = [(images, torch.arange(8) % 3) for images in UNLABELLED]
    trained = lpvit.finetune(pruned, labelled, labelled, recipe=recipe(epochs=1))
    lpvit.save(trained, tmp_path / "model.safetensors", options=VIT)
    torch.testing.assert_close(lpvit.load(tmp_path / "model.safetensors").model(IMAGES), trained.model(IMAGES))


@pytest.mark.parametrize(("name", "head"), [("ViTForImageClassification", "classifier"), ("vit_b_16", "heads")])
def test_heads_of_other_libraries_may_be_replaced(name: str, head: str, tmp_path: Any) -> None:
    model, images = of_sources(name)
    setattr(model, head, nn.Sequential(nn.Linear(48, 3)) if head == "heads" else nn.Linear(48, 3))
    pruned = pruned_of(model, images)
    if head == "heads":  # torchvision names the layer inside
        return
    lpvit.save(pruned, tmp_path / "model.safetensors")
    assert lpvit.load(tmp_path / "model.safetensors").model(images[0]).logits.shape == (8, 3)
