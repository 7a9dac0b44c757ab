"""Blocks in aligned bases through `lpvit.prune`."""

from pathlib import Path
from typing import get_args

import torch
from tiny import MODELS, dense_model, photographs

import lpvit
from lpvit.bases.align import FREEDOMS
from lpvit.models.edits import edits_of
from lpvit.structures.settings import Freedom

PRUNING = {"block_shape": (4, 4), "saliency": "gauss_newton", "distortion": "gauss_newton"}


def test_the_settings_name_every_freedom() -> None:
    assert list(get_args(Freedom)) == list(FREEDOMS)
    assert lpvit.Blocks(**PRUNING).freedoms == ()
    assert lpvit.Blocks(**PRUNING, basis="aligned").freedoms == tuple(FREEDOMS)
    assert lpvit.Blocks(**PRUNING, basis=["hidden", "values"]).freedoms == ("hidden", "values")


def test_aligned_blocks_lose_less_and_are_loaded_as_they_were_saved(tmp_path: Path) -> None:
    model, images = dense_model("vit").eval(), photographs("vit", 96)
    loader, unseen = list(images[:64].split(16)), images[64:]
    budget = lpvit.Budget(macs=0.5, reconstruction="least_squares")
    given, aligned = (
        lpvit.prune(model, loader, budget=budget, pruning=lpvit.Blocks(**PRUNING, basis=basis))
        for basis in ("given", "aligned")
    )
    with torch.no_grad():
        errors = [float((each.model(unseen) - model(unseen)).square().sum()) for each in (given, aligned)]
    assert errors[1] < errors[0]
    assert [edit.kind for edit in edits_of(aligned.model)] == ["bases", "blocks"]
    lpvit.save(aligned, tmp_path / "aligned.safetensors", options=MODELS["vit"][1])
    again = lpvit.load(tmp_path / "aligned.safetensors")
    assert torch.equal(again.model(unseen), aligned.model(unseen))
    assert again.report.equals(aligned.report)
