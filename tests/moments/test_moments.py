"""Second moments against naive loops over tokens, and products of parts against brute force."""

from collections.abc import Iterator

import pytest
import torch
from tiny import MODELS, photographs
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import matrix_layers, weight_matrix
from lpvit.models.architecture import create_model
from lpvit.moments.gradients import layer_gradients
from lpvit.moments.moments import LayerMoments, collect_moments
from lpvit.moments.parts import Parts, distortion_of_tails, part_moments

PROBES = 2


def dense_model(kind: str) -> nn.Module:
    name, options = MODELS[kind]
    torch.manual_seed(0)
    model = create_model(name, 5, options)
    for parameter in model.parameters():  # timm starts with weights so small that outputs hardly depend on images
        nn.init.normal_(parameter, std=0.3)
    return model


def batches(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in images.split(size)]


def names(model: nn.Module) -> list[str]:
    return [layer.name for layer in matrix_layers(model)]


def moments_of(model: nn.Module, images: Tensor, size: int, weighted: bool = True) -> dict[str, LayerMoments]:
    return collect_moments(model, batches(images, size), names(model), PROBES, "cpu", weighted=weighted)


def tokens(model: nn.Module, images: Tensor, layer: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (N, T, I) and gradients (N, T, O), probe after probe."""
    generator = torch.Generator().manual_seed(0)
    for name, inputs, gradients in layer_gradients(model.eval(), images, names(model), PROBES, generator):
        if name == layer:
            yield inputs.double(), gradients.double()


def test_large_batches_are_taken_in_parts_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = dense_model("vit").double(), photographs("vit", 7).double()
    whole, sizes, forward = moments_of(model, images, 7), [], model.forward
    monkeypatch.setattr(model, "forward", lambda given: sizes.append(len(given)) or forward(given))
    numbers = sum((layer.in_features + layer.out_features) * layer.tokens for layer in matrix_layers(model))
    sizes.clear()
    monkeypatch.setattr("lpvit.moments.gradients.ACTIVATION_NUMBERS", 7 * numbers // 2)
    for layer, found in moments_of(model, images, 7).items():
        torch.testing.assert_close(found.input_covariance, whole[layer].input_covariance)
        torch.testing.assert_close(found.output_sensitivity, whole[layer].output_sensitivity)
    assert sizes[-3:] == [3, 3, 1]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_moments_are_those_of_a_loop_over_tokens(kind: str, weighted: bool) -> None:
    model, images = dense_model(kind).double(), photographs(kind, 3).double()
    for layer, found in moments_of(model, images, 3, weighted).items():
        (inputs, first), (_, second) = tokens(model, images, layer)
        weights = (first.square().sum(-1) + second.square().sum(-1)) / PROBES
        rows = inputs.flatten(0, 1)
        expected = torch.zeros_like(found.output_sensitivity)
        for gradients in (first, second):
            for gradient in gradients.flatten(0, 1):
                expected += gradient.outer(gradient) / (PROBES * len(images))
        torch.testing.assert_close(found.output_sensitivity, expected)
        torch.testing.assert_close(found.token_sensitivity, weights.mean(dim=0))
        counted = weights if weighted else torch.ones_like(weights)
        shares = counted.flatten() / counted.sum()
        mean = sum(share * row for share, row in zip(shares, rows, strict=True))
        covariance = sum(share * (row - mean).outer(row - mean) for share, row in zip(shares, rows, strict=True))
        torch.testing.assert_close(found.input_mean, mean)
        torch.testing.assert_close(found.input_covariance, covariance)


def test_moments_do_not_depend_on_the_batches() -> None:
    model, images = dense_model("vit").double(), photographs("vit", 7).double()
    whole, parts = moments_of(model, images, 7), moments_of(model, images, 2)
    for layer, found in parts.items():
        assert (found.images, found.tokens) == (whole[layer].images, whole[layer].tokens)
        for name in ("input_mean", "input_covariance", "output_sensitivity", "token_sensitivity"):
            torch.testing.assert_close(getattr(found, name), getattr(whole[layer], name))


def test_inputs_far_from_zero_lose_nothing_in_single_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    images = 1000 + torch.randn(64, 1, 1, 6)
    (found,) = collect_moments(model, batches(images, 8), ["1"], 1, "cpu", weighted=False).values()
    expected = images.double().flatten(1).T.cov(correction=0)
    torch.testing.assert_close(found.input_covariance, expected, rtol=1e-5, atol=0)


def test_the_one_token_that_counts_loses_nothing_far_from_the_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, 4), FirstToken())
    images = torch.stack([1000 + torch.randn(64, 6), torch.randn(64, 6)], dim=1)[:, None]
    (single,) = collect_moments(model, batches(images, 8), ["1"], 1, "cpu").values()
    (double,) = collect_moments(model.double(), batches(images.double(), 8), ["1"], 1, "cpu").values()
    torch.testing.assert_close(single.input_covariance, double.input_covariance, rtol=1e-4, atol=1e-4)


class FirstToken(nn.Module):
    """What a head that reads the first token passes on."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


def test_what_is_kept_does_not_grow_with_the_images() -> None:
    model = dense_model("vit")
    few, many = (moments_of(model, photographs("vit", count), 4) for count in (4, 24))
    assert all(few[layer].output_sensitivity.shape == many[layer].output_sensitivity.shape for layer in few)
    assert all(few[layer].token_sensitivity.shape == many[layer].token_sensitivity.shape for layer in few)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_products_of_parts_are_those_of_image_gradients(kind: str) -> None:
    model, images = dense_model(kind).double(), photographs(kind, 5).double()
    generator = torch.Generator().manual_seed(3)
    parts = {}
    for layer in names(model):
        outputs, inputs = weight_matrix(model.get_submodule(layer)).shape
        shapes = ((outputs, 4), (4, inputs), (inputs,))
        parts[layer] = Parts(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))
    for layer, found in part_moments(model, batches(images, 2), parts, PROBES, "cpu").items():
        part, expected = parts[layer], torch.zeros(4, 4, dtype=torch.float64)
        for inputs, gradients in tokens(model, images, layer):
            for tokens_in, tokens_out in zip(inputs, gradients, strict=True):
                gradient = tokens_out.T @ (tokens_in - part.mean)
                products = torch.stack([part.left[:, i] @ gradient @ part.right[i] for i in range(4)])
                expected += products.outer(products) / (PROBES * len(images))
        torch.testing.assert_close(found, expected)


def test_the_distortion_of_tails_is_the_mean_square_of_what_is_left_out() -> None:
    products = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = distortion_of_tails(products.T @ products / 50)
    expected = torch.stack([products[:, rank:].sum(dim=1).square().mean() for rank in range(7)])
    torch.testing.assert_close(found, expected)


def test_weights_that_are_not_finite_are_named_before_the_moments() -> None:
    model = dense_model("vit")
    with torch.no_grad():
        model.get_parameter("blocks.1.attn.proj.weight")[0, 0] = float("nan")
    with pytest.raises(LpvitError, match=r"^blocks\.1\.attn\.proj: its output on the calibration images is NaN"):
        moments_of(model, photographs("vit", 4), 4)


def test_gradients_that_overflow_name_their_layer() -> None:
    model = dense_model("vit")
    with torch.no_grad():
        model.get_submodule("head").weight *= 1e30  # finite logits, but squares of what flows back are not
    with pytest.raises(LpvitError, match=r"^\S+: the moments of its inputs and gradients .* are NaN or infinite"):
        moments_of(model, photographs("vit", 4), 4)


def test_no_images_are_an_error_of_one_line() -> None:
    with pytest.raises(LpvitError, match=r"^calibration: there are no images$"):
        collect_moments(dense_model("vit"), [], ["head"], 1, "cpu")


def test_a_model_in_half_precision_is_measured_in_single_precision() -> None:
    model, images = dense_model("vit").double(), photographs("vit", 6)
    exact = moments_of(model, images.double(), 6)
    for layer, found in moments_of(model.bfloat16(), images.bfloat16(), 2).items():
        assert found.input_covariance.dtype == torch.float64
        error = (found.input_covariance - exact[layer].input_covariance).norm()
        assert error < 0.1 * exact[layer].input_covariance.norm()
