"""The package as an engineer uses it: prune a timm model, save, load, export."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lpvit
from lpvit.blocks import BlockGrid
from lpvit.cost import measure_costs
from lpvit.masks import expand_keep_masks, verify_pruned, zero_pruned
from lpvit.models import Architecture, weight_matrix
from lpvit.sparse.storage import compress, decompress, indexed_keep_mask

VIT = {"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 20, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 1), "num_heads": (2, 2)}
MODELS = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}
BLOCK_SHAPE = (8, 4)


def dense_model(kind: str) -> nn.Module:
    """As a user makes it: by timm, which does not note the options."""
    name, options = MODELS[kind]
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5, **options)
    for parameter in model.parameters():  # timm starts with weights so small that outputs hardly depend on images
        nn.init.normal_(parameter, std=0.3)
    return model


def photographs(kind: str, count: int = 24) -> Tensor:
    options = MODELS[kind][1]
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, options.get("in_chans", 3), 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, (options["img_size"],) * 2, mode="bilinear")


def random_prune(model: nn.Module, block_shape: tuple[int, int]) -> lpvit.Pruned:
    """Without calibration: about half of the blocks of every layer of the transformer blocks."""
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "blocks" in name:
            grid = BlockGrid(tuple(module.weight.shape), block_shape)
            masks[name] = torch.rand(grid.rows, grid.columns) < 0.5
    zero_pruned(model.state_dict(), expand_keep_masks(model, masks, block_shape))
    return lpvit.Pruned(model.eval(), masks, block_shape)
