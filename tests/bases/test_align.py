"""Aligned bases: the same function in every family, or a reason that is known."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from families import FAMILIES, images_for, member
from tiny import photographs, sized_model
from torch import Tensor, nn

from lpvit.bases.align import FREEDOMS, align
from lpvit.bases.edit import AlignedBases
from lpvit.costs.cost import count_macs
from lpvit.errors import LpvitError
from lpvit.models.edits import apply_edit, edits_of
from lpvit.models.sources.families import call_modules

# What a family does not have, and why: freedom -> a part of every reason that is given. Anything else is a fault.
NORM = "scales features of the residual stream itself"
ROTARY = "rotary positions"
INSIDE = "stands before"
ANOTHER = "the logits would change"
EXCEPTIONS: dict[str, dict[str, str]] = {
    "ViT, rotary positions": {"queries": ROTARY},
    "CLIP": {"residual": NORM},
    "DINOv3": {"queries": ROTARY},
    "DINOv3, qkv bias": {"queries": ROTARY},
    "DINOv3, SwiGLU": {"queries": ROTARY},
    "EVA-02": {"queries": ROTARY},
    "EVA-02, separate q, k, v": {"queries": ROTARY},
    "AIMv2": {"residual": NORM, "centre": "the norm has no bias"},  # in the patch embedding; RMS norms
    "Perception Encoder": {"residual": NORM, "queries": ROTARY},
    "BEiT-3": {"values": INSIDE, "centre": INSIDE},
    "Swin": {"residual": NORM},  # in the patch embedding: of the first stage alone
    "SwinV2": {"residual": NORM},
    "SwinV2-CR": {"residual": NORM},
    "Hiera": {"residual": ANOTHER, "queries": "max-pooled"},  # at the changes of stage
    "CaiT": {"centre": ANOTHER},  # talking heads: what they mix adds up to something else than 1
    "XCiT": {"residual": NORM, "values": ANOTHER, "queries": ANOTHER, "centre": ANOTHER},  # channels attend
    "NaFlexViT": {"residual": ANOTHER},  # positions are resized in float32: equal to 1e-9 only
}
PARTLY = {("Swin", "residual"), ("Hiera", "residual"), ("Hiera", "queries"), ("BEiT-3", "centre"), ("AIMv2", "centre")}
PARTLY |= {("CaiT", "centre"), ("XCiT", "centre"), ("XCiT", "values"), ("XCiT", "queries")}

every_family = pytest.mark.parametrize("family", FAMILIES)


def batches(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part))) for part in images.split(5)]


def change(aligned: nn.Module, model: nn.Module, images: Tensor) -> float:
    """Largest change of a logit over the largest logit."""
    with torch.no_grad():
        expected = model(images)
        return float((aligned(images) - expected).abs().max() / expected.abs().max())


@every_family
def test_an_aligned_model_is_the_same_function_and_lacks_only_what_the_table_says(family: str) -> None:
    model = member(family)
    before = deepcopy(model.state_dict())
    images = images_for(model, 16)
    aligned, report = align(model, batches(images[:12]))
    assert type(aligned) is type(model)
    assert change(aligned, model, images[12:]) < 1e-4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert count_macs(aligned) == count_macs(call_modules(deepcopy(model)))
    expected = EXCEPTIONS.get(family, {})
    for row in report.itertuples():
        if row.freedom not in expected:
            assert row.places == row.candidates > 0, row.reason
            assert not row.reason
        else:
            assert row.places < row.candidates
            assert row.used == ((family, row.freedom) in PARTLY)
            assert all(expected[row.freedom] in reason for reason in row.reason.split("; "))


@every_family
def test_every_freedom_alone_is_exact_in_float64(family: str) -> None:
    model = member(family).double()
    images = images_for(model, 10).double()
    for freedom in FREEDOMS:
        aligned, _ = align(model, batches(images[:8]), (freedom,))
        assert change(aligned, model, images[8:]) < 1e-9, freedom


@every_family
def test_an_aligned_model_has_the_parameters_of_its_origin_and_the_biases_that_are_listed(family: str) -> None:
    model = member(family)
    aligned, report = align(model, batches(images_for(model, 8)))
    origin, state = model.state_dict(), aligned.state_dict()
    (edit,) = edits_of(aligned)
    assert isinstance(edit, AlignedBases)
    assert edit.freedoms == tuple(report.loc[report["used"], "freedom"])
    assert state.keys() - origin.keys() == {f"{layer}.bias" for layer in edit.biases}
    assert all(state[name].shape == value.shape and state[name].dtype == value.dtype for name, value in origin.items())
    rebuilt = apply_edit(call_modules(deepcopy(model)), edit)
    rebuilt.load_state_dict(state)
    images = images_for(model, 2)
    assert change(rebuilt, aligned, images) == 0


def aligned_vit(*freedoms: str, **options: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    """A small ViT, the same in other bases, and the images that it was aligned by."""
    model = sized_model("vit", **options)
    images = photographs("vit")
    aligned, _ = align(model, batches(images), freedoms)
    return model, aligned, images


def inputs_of(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """All tokens that a layer multiplies, (T, I), float64."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    return seen[0].flatten(0, -2).double()


def test_aligning_twice_finds_the_same_and_changes_nothing_more() -> None:
    _, once, images = aligned_vit(*FREEDOMS)
    twice, report = align(once, batches(images))
    assert report["used"].all()
    assert edits_of(twice)[-1] == AlignedBases(freedoms=tuple(FREEDOMS))
    for name, value in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], value, rtol=1e-2, atol=1e-2)


def test_without_freedoms_norms_are_folded_and_nothing_else_changes() -> None:
    model, folded, images = aligned_vit()
    assert change(folded, model, images) < 1e-5
    for module in folded.modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    torch.testing.assert_close(folded.blocks[0].attn.proj.weight, model.blocks[0].attn.proj.weight)


def test_layer_scale_is_folded_into_the_layer_before_it() -> None:
    model, folded, _ = aligned_vit(init_values=0.1)
    assert not (model.blocks[0].ls2.gamma == 1).any()
    assert (folded.blocks[0].ls2.gamma == 1).all()


def test_inputs_of_layers_behind_norms_and_values_are_centred() -> None:
    model, aligned, images = aligned_vit("centre")
    for layer in ("blocks.1.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc1"):
        given, found = inputs_of(model, layer, images), inputs_of(aligned, layer, images)
        assert given.mean(dim=0).norm() > 0.1
        assert found.mean(dim=0).norm() < 1e-4


def test_hidden_units_fall_by_what_they_add_to_the_stream() -> None:
    _, aligned, images = aligned_vit("hidden")
    weight = aligned.blocks[0].mlp.fc2.weight.double()
    energy = inputs_of(aligned, "blocks.0.mlp.fc2", images).var(dim=0, correction=0) * weight.square().sum(dim=0)
    assert (energy.diff() <= 1e-6 * energy[0]).all()


def test_values_are_uncorrelated_and_share_their_size_with_the_output_layer() -> None:
    _, aligned, images = aligned_vit("values")
    mixed = inputs_of(aligned, "blocks.1.attn.proj", images).unflatten(-1, (2, -1))
    output = aligned.blocks[1].attn.proj.weight.detach().double().unflatten(-1, (2, -1))
    for head in range(2):
        covariance = mixed[:, head].T.cov(correction=0)
        gram = output[:, head].T @ output[:, head]
        torch.testing.assert_close(covariance, gram, rtol=1e-3, atol=1e-4 * float(gram.max()))
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-4 * float(gram.max()))
        assert (gram.diagonal().diff() <= 0).all()


def test_queries_and_keys_are_uncorrelated_and_share_their_size() -> None:
    _, aligned, images = aligned_vit("queries")
    tokens = inputs_of(aligned, "blocks.1.attn.qkv", images)
    qkv = aligned.blocks[1].attn.qkv
    outputs = nn.functional.linear(tokens, qkv.weight.double(), qkv.bias.double()).detach()
    queries, keys, _ = outputs.view(len(images), -1, 3, 2, 10).unbind(dim=2)
    keys = keys - keys.mean(dim=1, keepdim=True)
    for head in range(2):
        moments = [part[:, :, head].flatten(0, 1) for part in (queries, keys)]
        of_queries, of_keys = (part.T @ part / len(part) for part in moments)
        torch.testing.assert_close(of_queries, of_keys, rtol=1e-3, atol=1e-4 * float(of_keys.max()))
        torch.testing.assert_close(of_keys, torch.diag(of_keys.diagonal()), rtol=0, atol=1e-4 * float(of_keys.max()))


def test_an_unknown_freedom_is_refused_in_one_line() -> None:
    with pytest.raises(LpvitError, match="no freedom 'rotation'; there are centre, residual"):
        align(sized_model("vit"), batches(photographs("vit")), ("rotation",))


def test_images_that_are_not_finite_are_refused_in_one_line() -> None:
    images = photographs("vit")
    images[3] = torch.nan
    with pytest.raises(LpvitError, match=r"norm1: .* is NaN or infinite"):
        align(sized_model("vit"), batches(images))


def test_no_images_are_refused_in_one_line() -> None:
    with pytest.raises(LpvitError, match="found no images"):
        align(sized_model("vit"), [])


def test_a_bias_of_a_layer_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(LpvitError, match=r"no linear layer 'blocks\.7\.fc1'"):
        apply_edit(sized_model("vit"), AlignedBases(freedoms=(), biases=("blocks.7.fc1",)))
