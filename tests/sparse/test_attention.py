"""The attention kernel against torch's product in float64, and timm's modules with it."""

import copy
import itertools

import pytest
import torch
from test_sparse import _fresh_kernel, _two_threads, assert_equal, masked_vit  # noqa: F401 (fixtures)
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import Attention
from tiny import SWIN
from torch import Tensor, library, nn
from torch.nn import functional as F  # noqa: N812

from lpvit.errors import LpvitError
from lpvit.inference import attention_fusion as fusion
from lpvit.inference.attention_fusion import FusedAttention, FusedWindowAttention, fuse_attention
from lpvit.inference.sparsify import sparsify_layers
from lpvit.models.analysis.layers import matrix_layers
from lpvit.models.sources.timm import create_model
from lpvit.quantisation.layers import quantise_tokens
from lpvit.sparse import build
from lpvit.sparse.attention import attention, attention_path

SHAPES = [(1, 1, 1, 1), (2, 197, 2, 64), (4, 49, 3, 32), (3, 5, 2, 7), (1, 50, 3, 33), (2, 33, 1, 100), (2, 17, 3, 31)]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2.0**-7}  # of the largest value


def heads_of(images: int, tokens: int, heads: int, features: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries, keys and values as one layer makes them."""
    torch.manual_seed(tokens)
    return (1.5 * torch.randn(images, tokens, 3, heads, features)).to(dtype).unbind(2)


def in_float64(
    heads: tuple[Tensor, ...], scale: float, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    queries, keys, values = (numbers.double().transpose(1, 2) for numbers in heads)
    added = torch.zeros(1, 1, 1, 1).double()
    added = added if bias is None else added + bias.double()
    added = added if mask is None else added + mask.double().repeat(len(queries) // len(mask), 1, 1)[:, None]
    outputs = F.scaled_dot_product_attention(queries, keys, values, attn_mask=added, scale=scale)
    return outputs.transpose(1, 2).flatten(2)


def in_whole_numbers(
    heads: tuple[Tensor, ...], scale: float, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """What the kernel in int8 does, in float64."""
    queries, keys, values = (numbers.double().transpose(1, 2) for numbers in heads)
    levels, scales, zero_points = quantise_tokens(queries)
    queries = ((levels - zero_points) * scales).double()
    keys, values = symmetric(keys - keys.mean(-2, keepdim=True), -1), symmetric(values, -2)
    scores = scale * queries @ keys.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.double()
    if mask is not None:
        scores = scores + mask.double().repeat(len(queries) // len(mask), 1, 1)[:, None]
    weights = 255 * (scores - scores.amax(-1, keepdim=True)).exp()
    outputs = weights.round() @ values / weights.sum(-1, keepdim=True)
    return outputs.transpose(1, 2).flatten(2)


def symmetric(numbers: Tensor, dim: int) -> Tensor:
    scale = (numbers.abs().amax(dim, keepdim=True) / 127).clamp(min=1e-30)
    return (numbers / scale).round() * scale


def require_whole_numbers(outputs: Tensor, heads: tuple[Tensor, ...], *tables: Tensor | None) -> None:
    """Near the imitation, where one weight may be rounded to the next step, and not far from what was rounded."""
    scale, largest = heads[0].shape[-1] ** -0.5, heads[2].double().abs().max()
    assert (outputs - in_whole_numbers(heads, scale, *tables)).abs().max() <= (
        1.1 / 255 + TOLERANCE[outputs.dtype]
    ) * largest
    expected = in_float64(heads, scale, *tables)
    assert (outputs - expected).norm() <= 0.03 * expected.norm()


def require_close(outputs: Tensor, expected: Tensor, heads: tuple[Tensor, ...]) -> None:
    assert outputs.shape == expected.shape
    assert outputs.dtype == heads[0].dtype
    assert (outputs - expected).abs().max() <= TOLERANCE[outputs.dtype] * heads[2].double().abs().max()


def require_kernel(dtype: torch.dtype, *, int8: bool = False) -> None:
    if reason := attention_path(torch.device("cpu"), dtype, int8=int8).reason:
        pytest.skip(reason)


def tables_of(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[tuple[Tensor | None, Tensor | None]]:
    """No bias and mask, one of them, and both."""
    images, tokens, heads, _ = shape
    bias = torch.randn(heads, tokens, tokens).to(dtype)
    masked = torch.rand(max(images // 2, 1), tokens, tokens) < 0.5
    mask = torch.zeros(masked.shape).masked_fill(masked & ~torch.eye(tokens, dtype=torch.bool), -100.0).to(dtype)
    mask = mask if images % len(mask) == 0 else mask[:1]
    return [(None, None), (bias, None), (None, mask), (bias, mask)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("instruction_set", ["best", "avx2", "sse"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("_fresh_kernel")
def test_equals_torch_in_float64(shape, instruction_set, dtype, monkeypatch):
    if instruction_set != "best":
        monkeypatch.setenv("LPVIT_INSTRUCTION_SET", instruction_set)
    require_kernel(dtype)
    parts, scale = heads_of(*shape, dtype), shape[-1] ** -0.5
    for tables in tables_of(shape, dtype):
        outputs = attention(*parts, scale, *tables)
        require_close(outputs, in_float64(parts, scale, *tables), parts)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("instruction_set", ["best", "avx_vnni"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("_fresh_kernel")
def test_in_int8_whole_numbers_are_multiplied(shape, instruction_set, dtype, monkeypatch):
    if instruction_set != "best":
        monkeypatch.setenv("LPVIT_INSTRUCTION_SET", instruction_set)
    require_kernel(dtype, int8=True)
    parts = heads_of(*shape, dtype)
    for tables in tables_of(shape, dtype):
        require_whole_numbers(attention(*parts, shape[-1] ** -0.5, *tables, int8=True), parts, *tables)


@pytest.mark.parametrize("instruction_set", ["avx2", "sse"])
@pytest.mark.usefixtures("_fresh_kernel")
def test_without_a_kernel_for_int8_it_is_that_of_floats(instruction_set, monkeypatch):
    monkeypatch.setenv("LPVIT_INSTRUCTION_SET", instruction_set)
    require_kernel(torch.float32)
    assert "has none in int8" in attention_path(torch.device("cpu"), torch.float32, int8=True).reason
    parts = heads_of(2, 33, 1, 16, torch.float32)
    assert torch.equal(attention(*parts, 0.25, int8=True), attention(*parts, 0.25))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_scores_far_apart_and_masks_without_end_are_met(dtype):
    require_kernel(dtype)
    parts = heads_of(1, 40, 2, 16, dtype)
    parts = (30 * parts[0], 30 * parts[1], parts[2])
    mask = torch.zeros(1, 40, 40).masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf).to(dtype)
    require_close(attention(*parts, 0.25, None, mask), in_float64(parts, 0.25, None, mask), parts)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_query_that_no_key_is_left_to_gets_0_and_nan_reaches_only_what_it_touches(dtype, int8):
    require_kernel(dtype, int8=int8)
    parts = [numbers.clone() for numbers in heads_of(2, 20, 2, 8, dtype)]
    mask = torch.zeros(1, 20, 20, dtype=dtype)
    mask[0, 3] = -torch.inf
    parts[0][1, 5, 1] = torch.nan
    parts[0][0, 7, 0] = torch.inf
    outputs = attention(*parts, 0.3, None, mask, int8=int8).unflatten(-1, (2, 8))
    lost = torch.zeros(2, 20, 2, 8, dtype=torch.bool)
    lost[1, 5, 1] = lost[0, 7, 0] = True
    assert torch.equal(outputs.isnan(), lost)
    assert (outputs[:, 3] == 0).all()
    parts[1][1, 0, 0] = torch.nan  # a key: every query of its head meets it
    assert attention(*parts, 0.3, int8=int8).unflatten(-1, (2, 8))[1, :, 0].isnan().all()
    parts[2][0, 4, 1, 2] = torch.inf  # a feature: every query of its head meets it
    of_head = attention(*parts, 0.3, int8=int8).unflatten(-1, (2, 8))[0, 8:, 1]
    assert not of_head[:, 2].isfinite().any()
    assert of_head[:, 3].isfinite().all()


def test_tensors_are_read_where_they_lie():
    packed = heads_of(2, 21, 3, 10, torch.float32)
    apart = [numbers.transpose(1, 2).contiguous().transpose(1, 2) for numbers in packed]
    scattered = [numbers.transpose(2, 3).contiguous().transpose(2, 3) for numbers in packed]
    expected = attention(*(numbers.contiguous() for numbers in packed), 0.5)
    for parts in (packed, apart, scattered):
        assert torch.equal(attention(*parts, 0.5), expected)


@pytest.mark.usefixtures("_two_threads")
def test_threads_change_no_bit():
    for images, int8 in itertools.product((1, 5), (False, True)):
        parts = heads_of(images, 90, 1, 24, torch.float32)
        by_two = attention(*parts, 0.2, int8=int8)
        torch.set_num_threads(1)
        assert torch.equal(attention(*parts, 0.2, int8=int8), by_two)
        torch.set_num_threads(2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_without_a_kernel_torch_computes(dtype):
    parts = heads_of(2, 30, 2, 8, dtype)
    bias, mask = torch.randn(2, 30, 30).to(dtype), torch.randn(1, 30, 30).to(dtype)
    outputs = attention(*parts, 0.3, bias, mask)
    assert outputs.dtype == dtype
    assert (outputs - in_float64(parts, 0.3, bias, mask)).abs().max() <= 5e-3
    assert "no kernel" in attention_path(torch.device("cpu"), dtype).reason


@pytest.mark.usefixtures("_fresh_kernel")
def test_without_a_compiler_torch_computes(monkeypatch):
    monkeypatch.setattr(build, "cpu_kernel", lambda: build.CpuKernel(None, reason="none here"))
    monkeypatch.setattr("lpvit.sparse.operator.cpu_kernel", build.cpu_kernel)
    assert attention_path(torch.device("cpu"), torch.float32).reason == "none here"
    model, _ = masked_vit()
    assert not any(choice.by_kernel for choice in fuse_attention(model, tokens_of(model), 2, only_faster=False))


def test_what_does_not_fit_is_refused():
    parts = heads_of(2, 10, 2, 8, torch.float32)
    with pytest.raises(LpvitError, match="no gradients"):
        attention(parts[0].requires_grad_(), *parts[1:], 0.3)
    for tables in ((torch.zeros(3, 10, 10), None), (torch.zeros(2, 9, 10), None), (None, torch.zeros(3, 10, 10))):
        with torch.no_grad(), pytest.raises(RuntimeError, match="bias, mask"):
            attention(*parts, 0.3, *tables)
    with torch.no_grad(), pytest.raises(RuntimeError, match="shape and dtype"):
        attention(parts[0], parts[1][:, :5], parts[2], 0.3)


@pytest.mark.parametrize("name", ["attention", "attention_int8", "dense_attention"])
def test_the_operators_keep_the_rules_of_torch(name):
    parts, bias = heads_of(2, 19, 2, 8, torch.float32), torch.randn(2, 19, 19)
    operator = getattr(torch.ops.lpvit, name).default
    for tables in ((None, None), (bias, torch.zeros(1, 19, 19))):
        library.opcheck(operator, (*parts, *tables, 0.3))


def test_no_images_are_no_outputs():
    assert attention(*heads_of(0, 10, 2, 8, torch.float32), 0.3).shape == (0, 10, 16)


def tokens_of(model: nn.Module) -> dict[str, int]:
    return {layer.name: layer.tokens for layer in matrix_layers(model)}


def attentions() -> dict[str, nn.Module]:
    norm = nn.LayerNorm
    return {
        "ViT": Attention(48, 3, qkv_bias=True),
        "ViT, queries and keys normalised": Attention(48, 3, qk_norm=True, norm_layer=norm),
        "ViT, outputs normalised": Attention(48, 3, scale_norm=True, norm_layer=norm),
    }


@pytest.mark.parametrize("kind", attentions())
def test_the_module_does_what_that_of_timm_does(kind):
    torch.manual_seed(0)
    module = attentions()[kind].eval().requires_grad_(False)
    fused, inputs = FusedAttention(module), torch.randn(2, 19, 48)
    assert_equal(fused(inputs), module(inputs))
    mask = torch.rand(19, 19) < 0.7
    mask |= torch.eye(19, dtype=torch.bool)
    assert_equal(fused(inputs, attn_mask=mask), module(inputs, attn_mask=mask))
    assert_equal(fused(inputs, is_causal=True), module(inputs, is_causal=True))
    assert list(fused.state_dict()) == list(module.state_dict())


def test_the_module_of_swin_does_what_that_of_timm_does():
    torch.manual_seed(0)
    module = WindowAttention(48, 3, window_size=(5, 4)).eval().requires_grad_(False)
    module.relative_position_bias_table.normal_()
    fused, windows = FusedWindowAttention(module), torch.randn(6, 20, 48)
    mask = torch.zeros(3, 20, 20).masked_fill(torch.rand(3, 20, 20) < 0.3, -100.0)
    assert_equal(fused(windows), module(windows))
    assert_equal(fused(windows, mask), module(windows, mask))


@pytest.fixture
def swin() -> nn.Module:
    torch.manual_seed(0)
    return create_model("swin_tiny_patch4_window7_224", 5, SWIN).requires_grad_(False)


@pytest.mark.parametrize("int8", [False, True])
def test_a_fused_swin_equals_that_of_timm_eager_compiled_exported_copied_and_saved(swin, int8, tmp_path):
    fused = copy.deepcopy(swin)
    choices = fuse_attention(fused, tokens_of(swin), 2, only_faster=False, int8=int8)
    assert [choice.by_kernel for choice in choices] == [True] * 3
    images = torch.randn(2, 3, 32, 32)
    expected = fused(images)
    assert (expected - swin(images)).abs().max() <= (3e-2 if int8 else 1e-5) * expected.abs().max()
    assert_equal(copy.deepcopy(fused)(images), expected)
    assert_equal(torch.compile(fused, fullgraph=True, backend="aot_eager")(images), expected)
    assert_equal(torch.export.export(fused, (images,)).module()(images), expected)
    torch.save(fused, tmp_path / "model.pt")
    assert_equal(torch.load(tmp_path / "model.pt", weights_only=False)(images), expected)
    other = copy.deepcopy(fused)
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(fused.state_dict(), strict=True)
    assert_equal(other(images), expected)


def test_inductor_compiles_the_module_whole():
    module = Attention(48, 3).eval().requires_grad_(False)
    inputs = torch.randn(2, 19, 48)
    assert_equal(torch.compile(FusedAttention(module), fullgraph=True)(inputs), module(inputs))


def test_sparsify_fuses_attention_and_layers_keep_their_names():
    model, keep_masks = masked_vit()
    expected = model(torch.ones(1, 3, 16, 16))
    sparsify_layers(model, keep_masks, (16, 16), only_faster=False)
    assert all(isinstance(block.attn, FusedAttention) for block in model.blocks)
    assert set(keep_masks) <= {name for name, _ in model.named_modules()}
    assert_equal(model(torch.ones(1, 3, 16, 16)), expected)


@pytest.mark.parametrize(("ours", "fused"), [(1e-3, True), (3e-3, False)])
def test_attention_is_fused_exactly_when_it_was_measured_to_be_faster(ours, fused, monkeypatch):
    model, _ = masked_vit()
    monkeypatch.setattr(fusion, "_timed", lambda *_: {"timm": 2e-3, "float32": ours})
    choices = fuse_attention(model, tokens_of(model), 8)
    assert [choice.by_kernel for choice in choices] == [fused, fused]
    assert choices[0].reason == ("" if fused else "3.000 ms by our kernel, 2.000 ms without it")


@pytest.mark.parametrize("faster", ["timm", "float32", "int8"])
def test_the_fastest_precision_is_taken_where_int8_is_allowed(faster, monkeypatch):
    require_kernel(torch.float32, int8=True)
    model, _ = masked_vit()
    times = {"timm": 2e-3, "float32": 2e-3, "int8": 2e-3} | {faster: 1e-3}
    monkeypatch.setattr(fusion, "_timed", lambda *_: times)
    choices = fuse_attention(model, tokens_of(model), 8, int8=True)
    assert {(choice.by_kernel, choice.precision == "int8") for choice in choices} == {
        (faster != "timm", faster == "int8")
    }
    if faster == "int8":
        assert all(block.attn.int8 for block in model.blocks)
        assert fuse_attention(masked_vit()[0], tokens_of(model), 8, only_faster=False, int8=True)[0].precision == "int8"


def test_all_products_are_timed_alone():
    model, _ = masked_vit()
    qkv = model.blocks[0].attn.qkv
    (first, _) = fuse_attention(model, tokens_of(model), 2, int8=True)
    assert first.torch_seconds > 0
    assert first.kernel_seconds > 0
    assert first.by_kernel == (first.kernel_seconds < first.torch_seconds)
    assert model.blocks[0].attn.qkv is qkv


def test_attention_that_was_taken_over_stays():
    model, _ = masked_vit()
    model.blocks[0].attn.register_forward_pre_hook(lambda *_: None)
    choices = fuse_attention(model, tokens_of(model), 2, only_faster=False)
    assert [choice.by_kernel for choice in choices] == [False, True]
