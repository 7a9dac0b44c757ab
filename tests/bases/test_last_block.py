"""What nobody reads."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from families import FAMILIES, images_for, member
from tiny import photographs, sized_model
from torch import nn

from lpvit.bases.align import align
from lpvit.bases.last_block.edit import FewTokens
from lpvit.bases.last_block.unread import drop_unread_tokens, tokens_read
from lpvit.costs.cost import count_macs, measure_costs
from lpvit.errors import LpvitError
from lpvit.export.onnx import write_onnx
from lpvit.models.analysis.network import analyse
from lpvit.models.edits import apply_edit, edits_of
from lpvit.models.sources.families import call_modules

WORKS = {"DeiT": 2, "DeiT-III": 1, "ViT": 1, "CLIP": 1, "DINOv2": 1, "DINOv2, packed SwiGLU": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_computes_what_the_head_reads_or_says_why_not(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = member(family).double()
    with caplog.at_level(logging.INFO, logger="lpvit"):
        narrower, reason = drop_unread_tokens(model)
    assert [edit.tokens for edit in edits_of(narrower)] == ([WORKS[family]] if family in WORKS else [])
    assert bool(reason) == (family not in WORKS) == ("computes all its tokens" in caplog.text)
    images = images_for(model, 3).double()
    with torch.no_grad():
        torch.testing.assert_close(narrower(images), model(images), rtol=1e-9, atol=1e-9)


def test_its_products_for_other_tokens_are_gone() -> None:
    model = sized_model("deit")
    narrower, _ = drop_unread_tokens(model)
    tokens, width, read = 18, 20, 2
    products = width * width * (1 + 1 + 4 + 4) * (tokens - read)  # q, proj, fc1 and fc2
    attention = 2 * width * tokens * (tokens - read)
    assert count_macs(narrower) == count_macs(model) - products - attention
    costs = measure_costs(narrower).set_index("layer")
    assert costs.loc["blocks.1.attn.q", "tokens"] == costs.loc["blocks.1.mlp.fc2", "tokens"] == read
    assert costs.loc["blocks.1.attn.kv", "tokens"] == tokens
    assert costs.loc["blocks.1.attn.q", "role"] == costs.loc["blocks.1.attn.kv", "role"] == "qkv"


def test_it_is_some_seven_percent_of_a_model_of_twelve_blocks() -> None:
    model = timm.create_model("deit_tiny_patch16_224")
    narrower, _ = drop_unread_tokens(model)
    assert 0.06 < 1 - count_macs(narrower) / count_macs(model) < 0.08


def test_the_narrower_model_is_understood_and_its_passes_resume() -> None:
    network = analyse(drop_unread_tokens(sized_model("deit"))[0])
    assert network.resume_points[-1] == "blocks.1"
    assert network.branches["blocks.1.mlp.fc2"].block == "blocks.1"


def test_it_goes_together_with_aligned_bases() -> None:
    model, images = sized_model("deit"), photographs("deit")
    narrower, _ = drop_unread_tokens(model)
    aligned, report = align(narrower, [(images, images)])
    assert (report["places"] == report["candidates"]).all()
    with torch.no_grad():
        torch.testing.assert_close(aligned(images), model(images), rtol=1e-3, atol=1e-3)


def test_its_edit_rebuilds_its_shapes() -> None:
    model = sized_model("deit")
    narrower, _ = drop_unread_tokens(model)
    (edit,) = edits_of(narrower)
    assert edit == FewTokens(block="blocks.1", tokens=2)
    rebuilt = apply_edit(sized_model("deit"), edit)
    rebuilt.load_state_dict(narrower.state_dict())
    images = photographs("deit", 2)
    with torch.no_grad():
        assert torch.equal(rebuilt(images), narrower(images))


def test_it_learns_like_the_whole_block() -> None:
    model = sized_model("vit")
    narrower, _ = drop_unread_tokens(model)
    images = photographs("vit", 3)
    for network in (model, narrower):
        network(images).square().sum().backward()
    parts = [narrower.blocks[1].attn.q.weight.grad, narrower.blocks[1].attn.kv.weight.grad]
    torch.testing.assert_close(torch.cat(parts), model.blocks[1].attn.qkv.weight.grad, rtol=1e-3, atol=1e-2)


def test_pooling_over_all_tokens_reads_all_tokens() -> None:
    model = call_modules(member("BEiT"))
    assert tokens_read(model, "blocks.1") == (17, 17)
    assert tokens_read(call_modules(member("ViT")), "blocks.1") == (1, 17)


def test_it_is_exported(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    narrower, _ = drop_unread_tokens(sized_model("deit"))
    write_onnx(narrower, tmp_path / "model.onnx")
    images = photographs("deit", 3)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), narrower(images), rtol=1e-3, atol=1e-3)


def test_a_mask_of_all_tokens_is_refused() -> None:
    narrower, _ = drop_unread_tokens(sized_model("deit"))
    block: nn.Module = narrower.blocks[1]
    with pytest.raises(AssertionError, match="does not fit the few that are read"):
        block(torch.zeros(1, 18, 20), attn_mask=torch.zeros(18, 18))


def test_a_block_of_another_form_is_refused_in_one_line() -> None:
    with pytest.raises(LpvitError, match=r"'layers\.0\.blocks\.0' cannot give fewer tokens: it is a Swin"):
        apply_edit(sized_model("swin"), FewTokens(block="layers.0.blocks.0", tokens=1))
    with pytest.raises(LpvitError, match=r"no transformer block 'blocks\.7'"):
        apply_edit(sized_model("vit"), FewTokens(block="blocks.7", tokens=1))
