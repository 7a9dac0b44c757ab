"""Schemes against plain passes with masks, and through everything that a model goes through."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, images_for, member
from torch import Tensor, nn
from torch.nn import functional

import lpvit
from lpvit.api.sparsify import sparsify
from lpvit.costs.cost import count_macs, measure_costs
from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import matrix_layers
from lpvit.schemes.attention import attention_modules, take_over
from lpvit.schemes.edit import add_scheme
from lpvit.schemes.kinds.sparse_attention.pattern import PatternAttention, pattern_mask
from lpvit.schemes.scheme import anneal
from lpvit.schemes.settings import Scheme

PATTERNS = ("strided", "fixed", "block")
SCHEMES: dict[str, dict[str, Any]] = {
    "token_selection": {"keep_tokens": 0.5, "before_blocks": [1]},
    "token_merging": {"merged_tokens": 3},
    "sparse_attention": {"stride": 4},
}


def with_scheme(model: nn.Module, name: str, **settings: Any) -> nn.Module:
    return add_scheme(deepcopy(model), Scheme(scheme=name, **settings))


def test_every_scheme_is_tested() -> None:
    assert SCHEMES.keys() == Scheme.registry.keys()


# --- sparse attention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("patches", "stride", "prefix"), [(16, 4, 1), (16, 4, 0), (14, 4, 2), (3, 5, 1), (49, 7, 0)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_pattern_gives_what_a_masked_product_gives(
    pattern: Any, patches: int, stride: int, prefix: int, biased: bool
) -> None:
    tokens = patches + prefix
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, tokens, 8, generator=generator, dtype=torch.float64, requires_grad=True).unbind(0)
    bias = torch.randn(1, 3, tokens, tokens, generator=generator, dtype=torch.float64) if biased else None
    mask = pattern_mask(pattern, stride, prefix, tokens)
    full = torch.zeros(tokens, tokens, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=full if bias is None else full + bias)
    found = PatternAttention(pattern, stride, prefix)(q, k, v, bias)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("tokens", "prefix", "features"), [(197, 1, 64), (198, 2, 32), (50, 1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pattern_on_a_gpu_gives_what_the_cpu_gives(
    pattern: Any, tokens: int, prefix: int, features: int, dtype: torch.dtype
) -> None:
    q, k, v = torch.randn(3, 2, 3, tokens, features, requires_grad=True).unbind(0)
    attention = PatternAttention(pattern, 7 if tokens == 50 else 14, prefix)
    expected = attention(q, k, v)
    found = attention(*(part.to("cuda", dtype) for part in (q, k, v)))
    tolerance = 5e-3 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.cpu().float(), expected, rtol=0, atol=tolerance)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (found, expected)), strict=True):
        assert (one - other).norm() < tolerance * other.norm() * 3


def test_patterns_are_those_that_one_would_draw() -> None:
    rows = {name: pattern_mask(name, 3, 1, 10)[1 + 4].int().tolist() for name in PATTERNS}  # type: ignore[arg-type]
    assert rows == {  # the class token, then three rows of three; asked is the one in the middle
        "strided": [1, 0, 1, 0, 1, 1, 1, 0, 1, 0],
        "fixed": [1, 0, 0, 1, 1, 1, 1, 0, 0, 1],
        "block": [1, 0, 0, 0, 1, 1, 1, 0, 0, 0],
    }
    assert pattern_mask("block", 3, 1, 10)[0].all()


@pytest.mark.parametrize("family", ["DeiT", "ViT", "Swin", "EVA-02", "DINOv3", "BEiT"])
def test_sparse_attention_is_the_model_with_a_mask(family: str) -> None:
    model = member(family)
    images = images_for(model, 2)
    sparse = with_scheme(model, "sparse_attention", stride=4, pattern="strided")
    prefix = 0 if "Swin" in family else model.num_prefix_tokens
    masked = deepcopy(model)

    def product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        mask = pattern_mask("strided", 4, prefix, k.shape[2])  # type: ignore[arg-type]
        full = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=full if bias is None else full + bias)

    take_over(attention_modules(masked), product)
    with torch.no_grad():
        torch.testing.assert_close(sparse(images), masked(images), rtol=1e-4, atol=1e-4)
        assert (sparse(images) - model(images)).abs().max() > 1e-3
    assert count_macs(sparse) < count_macs(model)


def test_models_that_multiply_by_themselves_are_refused() -> None:
    with pytest.raises(LpvitError, match="finds no scaled_dot_product_attention in SwinTransformerV2"):
        add_scheme(member("SwinV2"), Scheme(scheme="sparse_attention"))


# --- token selection -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_selection_is_the_masked_pass_on_the_tokens_kept(kind: str) -> None:
    """All tokens go on in a pass whose attention looks at the kept ones alone: the same logits."""
    model = member(kind).eval()
    images = images_for(model, 4)
    selecting = with_scheme(model, "token_selection", **SCHEMES["token_selection"]).eval()
    seen: list[Tensor] = []
    scorer = selecting.blocks[1].token_scorer
    selecting.blocks[1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    logits = selecting(images)
    assert seen[0].shape[1] == model.num_prefix_tokens + 8  # of 16 patches

    whole: list[Tensor] = []
    masked = deepcopy(model)
    masked.blocks[1].register_forward_pre_hook(lambda _, arguments: whole.append(arguments[0]))
    masked(images)
    scores = scorer.score(scorer.norm(whole[0][:, model.num_prefix_tokens :])).squeeze(-1)
    kept = torch.ones(4, 1, 1, whole[0].shape[1], dtype=torch.bool)
    kept[:, 0, 0, model.num_prefix_tokens :] = scores >= scores.topk(8, dim=1).values[:, -1:]

    def product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=kept)

    take_over([masked.blocks[1].attn], product)
    torch.testing.assert_close(logits, masked(images), rtol=1e-4, atol=1e-4)


def test_the_scorer_learns_and_prefix_tokens_stay() -> None:
    model = with_scheme(member("DeiT"), "token_selection", **SCHEMES["token_selection"]).train()
    output = model(images_for(member("DeiT"), 4))
    (output[0] if isinstance(output, tuple) else output).square().sum().backward()
    assert model.blocks[1].token_scorer.score.weight.grad.abs().max() > 0


def test_training_explores_and_inference_does_not() -> None:
    model = with_scheme(member("ViT"), "token_selection", **SCHEMES["token_selection"])
    images = images_for(member("ViT"), 4)
    assert torch.equal(model.eval()(images), model(images))
    assert not torch.equal(model.train()(images), model(images))


def test_the_temperature_falls_by_equal_factors() -> None:
    model = with_scheme(member("ViT"), "token_selection", **SCHEMES["token_selection"])
    found = []
    for progress in (0.0, 0.5, 1.0):
        anneal(model, progress)
        found.append(model.blocks[1].token_scorer.temperature)
    assert found == pytest.approx([10, 1, 0.1])


@pytest.mark.parametrize("scheme", ["token_selection", "token_merging"])
def test_models_whose_tokens_must_stay_are_refused(scheme: str) -> None:
    with pytest.raises(LpvitError, match=f"'{scheme}' needs a chain of transformer blocks .* not SwinTransformer"):
        add_scheme(member("Swin"), Scheme(scheme=scheme))


def test_a_block_that_is_not_there_is_named() -> None:
    with pytest.raises(LpvitError, match="before_blocks: 3 found, the model has blocks 0 to 1"):
        add_scheme(member("ViT"), Scheme(scheme="token_selection"))


# --- token merging ---------------------------------------------------------------------------------------------------


def test_merging_equal_tokens_changes_nothing() -> None:
    """Where patches are alike in pairs, the merged pass is the plain one: sizes in the attention make up for it."""
    model = member("ViT").eval()
    model.pos_embed.data.zero_()
    coarse = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(3))
    images = coarse.repeat_interleave(16, dim=3).repeat_interleave(8, dim=2)  # neighbours in a row are the same
    merging = with_scheme(model, "token_merging", merged_tokens=8).eval()
    torch.testing.assert_close(merging(images), model(images), rtol=1e-4, atol=1e-4)
    assert count_macs(merging) < count_macs(model)


def test_the_most_similar_merge_and_sizes_add_up() -> None:
    model = with_scheme(member("ViT"), "token_merging", merged_tokens=3).eval()
    model(images_for(member("ViT"), 2))
    sizes = model.token_merger._sizes
    assert sizes.shape == (2, 1 + 16 - 3)
    assert (sizes.sum(dim=1) == 17).all()
    assert (sizes[:, 0] == 1).all()


# --- together --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("sparse_attention", "token_selection"), ("token_selection", "sparse_attention")])
def test_sparse_attention_is_that_of_rows_until_tokens_are_dropped(order: tuple[str, str]) -> None:
    selection = {"keep_tokens": 0.5, "before_blocks": [1]}
    model = member("ViT").eval()
    torch.manual_seed(0)
    selected = add_scheme(deepcopy(model), Scheme(scheme="token_selection", **selection))
    torch.manual_seed(0)
    both = deepcopy(model)
    for name in order:
        add_scheme(both, Scheme(scheme=name, **(selection if name == "token_selection" else {"stride": 4})))
    take_over([selected.blocks[0].attn], PatternAttention("strided", 4, 1))
    images = images_for(model, 3)
    with torch.no_grad():
        torch.testing.assert_close(both(images), selected(images))
        assert (both(images) - with_scheme(model, "sparse_attention", stride=4)(images)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("token_merging", "sparse_attention"),
        ("sparse_attention", "token_merging"),
        ("token_merging", "token_selection"),
        ("token_selection", "token_merging"),
        *((name, name) for name in SCHEMES),
    ],
)
def test_schemes_that_change_the_same_part_are_refused_before_they_are_added(first: str, second: str) -> None:
    model = with_scheme(member("ViT"), first, **SCHEMES[first])
    images = images_for(model, 1)
    expected = model.eval()(images)
    message = f"schemes: '{first}' and '{second}' both change the (attention|tokens) of a model; keep one of them"
    with pytest.raises(LpvitError, match=message):
        add_scheme(model, Scheme(scheme=second, **SCHEMES[second]))
    assert torch.equal(model(images), expected)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_a_pruned_model_with_a_scheme_is_saved_loaded_and_runs_sparse(kind: str, name: str, tmp_path: Path) -> None:
    model = member(kind)
    images = images_for(model, 24)
    pruned = lpvit.prune(model, [images], budget=0.6, block_shape=(5, 4))
    add_scheme(pruned.model, Scheme(scheme=name, **SCHEMES[name]))
    with torch.no_grad():
        expected = pruned.model(images)
        torch.testing.assert_close(sparsify(pruned)(images), expected, rtol=1e-4, atol=1e-4)
        lpvit.save(pruned, tmp_path / "model.safetensors", options=FAMILIES[kind][1])
        torch.testing.assert_close(lpvit.load(tmp_path / "model.safetensors").model(images), expected)
        lpvit.export_onnx(pruned, tmp_path / "model.onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    (logits,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    assert count_macs(pruned.model) < count_macs(model)


def test_costs_count_the_tokens_that_are_left() -> None:
    model = with_scheme(member("ViT"), "token_selection", keep_tokens=0.5, before_blocks=[1])
    tokens = measure_costs(model).set_index("layer")["tokens"]
    assert tokens["blocks.0.mlp.fc1"] == 17
    assert tokens["blocks.1.mlp.fc1"] == 9


def test_a_scorer_is_no_layer_to_prune() -> None:
    model = member("ViT")
    roles = {layer.name: layer.role for layer in matrix_layers(model)}
    selected = with_scheme(model, "token_selection", keep_tokens=0.5, before_blocks=[1])
    added = {layer.name: layer.role for layer in matrix_layers(selected) if layer.name not in roles}
    assert set(added.values()) == {"score"}
    assert {layer.name: layer.role for layer in matrix_layers(selected)} == roles | added
