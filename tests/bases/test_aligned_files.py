"""Models in aligned bases and with a narrower last block are pruned, saved and loaded like others."""

from pathlib import Path

import torch
from families import FAMILIES, images_for, member

import lpvit
from lpvit.bases.align import align
from lpvit.bases.last_block.unread import drop_unread_tokens
from lpvit.models.edits import edits_of


def test_an_aligned_model_with_a_narrow_last_block_is_pruned_saved_and_loaded(tmp_path: Path) -> None:
    model = member("DeiT")
    images = images_for(model, 12)
    batches = [(part, torch.zeros(len(part))) for part in images.split(6)]
    aligned, _ = align(drop_unread_tokens(model)[0], batches)
    budget = lpvit.Budget(macs=0.7, reconstruction="least_squares")
    pruned = lpvit.prune(aligned, batches, budget=budget, block_shape=(8, 8))
    lpvit.save(pruned, tmp_path / "pruned.safetensors", options=FAMILIES["DeiT"][1])
    loaded = lpvit.load(tmp_path / "pruned.safetensors")
    assert [edit.kind for edit in edits_of(loaded.model)] == ["last_block", "bases", "blocks"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), pruned.model(images), rtol=1e-4, atol=1e-4)


def test_biases_that_an_alignment_added_are_loaded(tmp_path: Path) -> None:
    model = member("BEiT")
    images = images_for(model, 12)
    batches = [(images, torch.zeros(len(images)))]
    aligned, _ = align(model, batches)
    pruned = lpvit.prune(aligned, batches, budget=lpvit.Budget(macs=0.9), block_shape=(8, 8))
    lpvit.save(pruned, tmp_path / "pruned.safetensors", options=FAMILIES["BEiT"][1])
    loaded = lpvit.load(tmp_path / "pruned.safetensors")
    assert loaded.model.blocks[0].attn.qkv.bias is not None
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), pruned.model(images), rtol=1e-4, atol=1e-4)
