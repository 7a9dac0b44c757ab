"""Files of format 1, one of each kind, as lpvit wrote them before edits: `tests/format_1`, with logits beside."""

from pathlib import Path

import pytest
import torch

import lpvit
from lpvit.api.artifact import read_artifact
from lpvit.models.architecture import load_model, save_model
from lpvit.structures.blocks.masks import expand_keep_masks, load_masks, verify_pruned

FILES = Path(__file__).parent.parent / "format_1"
KINDS = {
    "dense.pt": [],
    "pruned.pt": ["schemes"],
    "finetuned.pt": ["width"],
    "pruned_quantised.pt": ["quantisation"],
    "pruned.safetensors": ["blocks"],
    "narrowed.safetensors": ["width"],
    "all.safetensors": ["schemes", "schemes", "quantisation", "blocks"],
}


@pytest.mark.parametrize("file", KINDS)
def test_a_file_of_format_1_gives_its_logits_and_so_does_the_file_that_is_written_of_it(file: str, tmp_path: Path):
    first, again = FILES / file, tmp_path / file
    found = torch.load(FILES / "logits.pt")
    if first.suffix == ".pt":
        architecture, state = load_model(first, first.stem)
        save_model(architecture, state, again, first.stem)
        models = [built.build(weights) for built, weights in (load_model(path, first.stem) for path in (first, again))]
    else:
        lpvit.save(lpvit.load(first), again)
        models = [lpvit.load(path).model for path in (first, again)]
        architecture = lpvit.load(again).architecture
    assert [edit.kind for edit in architecture.edits] == KINDS[file]
    for model in models:
        torch.testing.assert_close(model.eval()(found["images"]), found["logits"][file], rtol=1e-4, atol=1e-5)


def test_masks_of_format_1_are_read_beside_the_model_and_among_the_indices_of_its_blocks():
    masks, block_shape = load_masks(FILES / "masks.pt")
    for pruned in (read_artifact(FILES / "pruned.pt"), lpvit.load(FILES / "pruned.safetensors")):
        assert pruned.block_shape == block_shape
        assert all(torch.equal(pruned.keep_masks[layer], masks[layer]) for layer in masks)
        verify_pruned(pruned.model.state_dict(), expand_keep_masks(pruned.model, masks, block_shape))
        assert [edit.kind for edit in pruned.architecture.edits][-1] == "blocks"
