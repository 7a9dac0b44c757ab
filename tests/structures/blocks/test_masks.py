"""Hand-worked masks of one 4 x 6 layer in 2 x 2 blocks, a grid of 2 x 3."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from lpvit.allocation.ranking import in_pruning_order
from lpvit.structures.blocks.curve import pruning_ranks
from lpvit.structures.blocks.masks import (
    build_keep_masks,
    expand_keep_masks,
    load_masks,
    save_masks,
    verify_pruned,
    zero_pruned,
)

SALIENCY = [0.3, 0.1, 0.6, 0.5, 0.2, 0.4]


def scores(saliency: list[float], layer: str = "0") -> pd.DataFrame:
    return pd.DataFrame(
        {"layer": layer, "row": [0, 0, 0, 1, 1, 1], "column": [0, 1, 2] * 2, "weights": 4, "saliency": saliency}
    )


def keep(**blocks_kept: int) -> pd.DataFrame:
    return pd.DataFrame({"layer": list(blocks_kept), "blocks_kept": list(blocks_kept.values())})


def test_blocks_are_pruned_by_rising_saliency() -> None:
    assert in_pruning_order(scores(SALIENCY))["saliency"].tolist() == sorted(SALIENCY)
    assert pruning_ranks(scores(SALIENCY)).tolist() == [[2, 0, 5], [4, 1, 3]]


def test_of_equal_blocks_the_first_is_pruned_first() -> None:
    assert pruning_ranks(scores([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])).tolist() == [[3, 0, 1], [4, 2, 5]]


def test_ranks_follow_row_and_column_not_the_order_of_the_frame() -> None:
    assert torch.equal(pruning_ranks(scores(SALIENCY)[::-1]), pruning_ranks(scores(SALIENCY)))


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (6, [[1, 1, 1], [1, 1, 1]]),
        (4, [[1, 0, 1], [1, 0, 1]]),
        (1, [[0, 0, 1], [0, 0, 0]]),
        (0, [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_the_most_salient_blocks_stay(kept: int, expected: list[list[int]]) -> None:
    assert build_keep_masks(scores(SALIENCY), keep(**{"0": kept}))["0"].int().tolist() == expected


def test_every_layer_keeps_its_own_number_of_blocks() -> None:
    blocks = pd.concat([scores(SALIENCY, "a"), scores(SALIENCY[::-1], "b")])
    masks = build_keep_masks(blocks, keep(b=2, a=5))
    assert {layer: int(mask.sum()) for layer, mask in masks.items()} == {"a": 5, "b": 2}


def test_masked_weights_are_exactly_zero_and_others_untouched() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    before = model[0].weight.detach().clone()
    masks = {"0": torch.tensor([[True, False, True], [False, True, True]])}
    expanded = expand_keep_masks(model, masks, (2, 2))

    zero_pruned(dict(model.named_parameters()), expanded)

    by_hand = torch.tensor([[1, 1, 0, 0, 1, 1]] * 2 + [[0, 0, 1, 1, 1, 1]] * 2)
    assert torch.equal(model[0].weight, before * by_hand)
    verify_pruned(model.state_dict(), expanded)


def test_a_weight_that_comes_back_is_found() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    expanded = expand_keep_masks(model, {"0": torch.zeros(2, 3, dtype=torch.bool)}, (2, 2))
    zero_pruned(model.state_dict(), expanded)
    with torch.no_grad():
        model[0].weight[3, 5] = 1e-30
    with pytest.raises(AssertionError, match=r"0\.weight: 1 pruned weights are not zero"):
        verify_pruned(model.state_dict(), expanded)


def test_a_patch_embedding_is_masked_as_the_matrix_that_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, kernel_size=2, stride=2))
    columns = torch.tensor([[False, True, True]] * 2)  # 3 channels * 2 * 2 = 12 inputs, blocks of 4: one per channel
    expanded = expand_keep_masks(model, {"0": columns}, (2, 4))
    assert expanded["0.weight"].shape == model[0].weight.shape
    assert expanded["0.weight"].sum(dim=(0, 2, 3)).tolist() == [0, 16, 16]


def test_ragged_masks_cover_the_weight_exactly() -> None:
    model = nn.Sequential(nn.Linear(5, 3))
    expanded = expand_keep_masks(model, {"0": torch.tensor([[True, False, True], [False, True, False]])}, (2, 2))
    assert expanded["0.weight"].int().tolist() == [[1, 1, 0, 0, 1]] * 2 + [[0, 0, 1, 1, 0]]


def test_masks_survive_a_file(tmp_path: Path) -> None:
    masks = {"0": torch.tensor([[True, False, True]])}
    save_masks(masks, (2, 4), tmp_path / "masks.pt")
    loaded, block_shape = load_masks(tmp_path / "masks.pt")
    assert torch.equal(loaded["0"], masks["0"])
    assert block_shape == (2, 4)
