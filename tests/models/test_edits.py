"""Edits: what was done to a model, replayed on the bare one."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from tiny import VIT, dense_model, photographs

import lpvit
from lpvit.errors import LpvitError
from lpvit.models.architecture import Architecture
from lpvit.models.edits import Edit, apply_edit, edit_class, edit_modules, edits_of, record_edit
from lpvit.models.sources.timm import Timm
from lpvit.quantisation.edit import Int8Layers
from lpvit.schemes.edit import AddedScheme
from lpvit.structures.blocks.edit import KeptBlocks, PackedMask, with_keep_masks
from lpvit.structures.blocks.masks import expand_keep_masks, verify_pruned, zero_pruned
from lpvit.structures.width.edit import NarrowerShapes

LAYER = "blocks.0.mlp.fc1"
SOURCE = Timm(name="vit_tiny_patch16_224", num_classes=5, options=VIT)
MASK = torch.rand(20, 10, generator=torch.Generator().manual_seed(0)) > 0.5
EDITS: dict[str, Edit] = {
    "width": NarrowerShapes(
        shapes={
            "blocks.1.mlp.fc1.weight": (48, 20),
            "blocks.1.mlp.fc1.bias": (48,),
            "blocks.1.mlp.fc2.weight": (20, 48),
        }
    ),
    "blocks": KeptBlocks(block_shape=(4, 2), keep_masks={LAYER: PackedMask.of(MASK)}),
    "schemes": AddedScheme(scheme=lpvit.Scheme(scheme="token_selection", keep_tokens=0.5, before_blocks=(1,))),
    "quantisation": Int8Layers(layers=(LAYER, "head")),
}


def test_every_kind_of_edit_is_found_by_the_package_that_defines_it():
    assert set(EDITS) <= set(edit_modules())
    for kind in edit_modules():
        assert edit_class(kind).model_fields["kind"].default == kind
    for kind, edit in EDITS.items():
        assert type(edit) is edit_class(kind)


@pytest.mark.parametrize("order", list(itertools.permutations(EDITS)), ids="-".join)
def test_edits_in_any_order_are_plain_values_and_replayed_alike_on_the_meta_device(order: tuple[str, ...]):
    architecture = Architecture(source=SOURCE, edits=tuple(EDITS[kind] for kind in order))
    read = Architecture.model_validate_json(architecture.model_dump_json())
    assert [edit.kind for edit in read.edits] == list(order)
    assert read.model_dump_json() == architecture.model_dump_json()
    model = read.build()
    with torch.device("meta"):
        outlined = read.build()
    assert list(edits_of(model)) == list(edits_of(outlined)) == list(read.edits)
    shapes = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    assert shapes == {name: (value.shape, value.dtype) for name, value in outlined.state_dict().items()}
    again = read.build(model.state_dict())
    images = photographs("vit", 3)
    assert torch.equal(again(images), model(images))


def add_scheme(pruned: lpvit.Pruned) -> lpvit.Pruned:
    lpvit.add_scheme(pruned.model, lpvit.Scheme(scheme="token_merging", merged_tokens=1))
    return pruned


def quantise(pruned: lpvit.Pruned) -> lpvit.Pruned:
    return lpvit.quantise(pruned, None, lpvit.Quantisation(rounding="nearest", layers=("fc1",)))


def prune(pruned: lpvit.Pruned) -> lpvit.Pruned:
    zero_pruned(pruned.model.state_dict(), expand_keep_masks(pruned.model, {LAYER: MASK}, (4, 2)))
    return lpvit.Pruned(pruned.model, {LAYER: MASK}, (4, 2))


DEEDS: dict[str, Callable[[lpvit.Pruned], lpvit.Pruned]] = {
    "blocks": prune,
    "schemes": add_scheme,
    "quantisation": quantise,
}


@pytest.mark.parametrize("order", list(itertools.permutations(DEEDS)), ids="-".join)
def test_what_is_done_to_a_model_is_saved_in_the_order_in_which_it_was_done(order: tuple[str, ...], tmp_path: Path):
    pruned = lpvit.Pruned(SOURCE.build(), {}, (4, 2))
    for kind in order:
        pruned = DEEDS[kind](pruned)
        pruned = lpvit.Pruned(deepcopy(pruned.model), pruned.keep_masks, pruned.block_shape)  # a copy remembers
    lpvit.save(pruned, tmp_path / "model.safetensors", options=VIT)
    read = lpvit.load(tmp_path / "model.safetensors")
    assert [edit.kind for edit in read.architecture.edits] == list(order)
    assert torch.equal(read.keep_masks[LAYER], MASK)
    images = photographs("vit", 3)
    assert torch.equal(read.model(images), pruned.model.eval()(images))


def test_new_masks_take_the_place_of_those_before_them():
    model = dense_model("vit")
    for edit in (EDITS["blocks"], EDITS["quantisation"]):
        apply_edit(model, edit)
    lpvit.Pruned(model, {LAYER: ~MASK}, (4, 2))
    blocks, int8 = edits_of(model)
    assert isinstance(blocks, KeptBlocks)
    assert torch.equal(blocks.unpacked()[LAYER], ~MASK)
    assert int8 == EDITS["quantisation"]
    lpvit.Pruned(model, {}, (4, 2))
    assert edits_of(model) == (EDITS["quantisation"],)


def test_masks_prune_whatever_weights_the_model_has():
    model = dense_model("vit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply_edit(model, EDITS["blocks"])
    expanded = expand_keep_masks(model, {LAYER: MASK}, (4, 2))
    verify_pruned(model.state_dict(), expanded)
    keep = expanded[f"{LAYER}.weight"]
    assert torch.equal(model.state_dict()[f"{LAYER}.weight"][keep], before[f"{LAYER}.weight"][keep])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 4), (7, 11)])
def test_a_mask_is_read_from_text_as_it_was(shape: tuple[int, int]):
    mask = torch.rand(shape) > 0.5
    packed = PackedMask.of(mask)
    assert torch.equal(packed.unpacked(), mask)
    assert PackedMask.model_validate_json(packed.model_dump_json()) == packed


def test_a_mask_is_one_bit_a_block_the_first_in_the_highest():
    mask = torch.tensor([[True, False, False], [False, False, True]])
    assert PackedMask.of(mask) == PackedMask(rows=2, columns=3, bits="hA==")  # 0b100001_00
    with pytest.raises(LpvitError, match="1 bytes for 3x3 blocks, expected 2"):
        PackedMask(rows=3, columns=3, bits="hA==")


def test_an_edit_that_does_not_fit_is_told_and_an_unknown_one_is_named():
    model = dense_model("vit")
    with pytest.raises(LpvitError, match=r"has \(5, 10\) blocks in the mask and \(20, 10\) in the model"):
        apply_edit(model, with_keep_masks((), {LAYER: MASK[:5]}, (4, 2))[0])
    assert edits_of(model) == ()
    with pytest.raises(LpvitError, match=r"Architecture: edits.0: found kind 'widht'; did you mean 'width'"):
        Architecture(source=SOURCE, edits=[{"kind": "widht"}])
    with pytest.raises(LpvitError, match=r"Architecture: source: found source 'tim'; did you mean 'timm'"):
        Architecture(source={"source": "tim"})
    with pytest.raises(LpvitError, match=r"Architecture: edits.0: width\.shapes"):
        Architecture(source=SOURCE, edits=[{"kind": "width", "shapes": {"a": "b"}}])


def test_a_model_says_who_built_it_also_where_timm_does_not():
    model = deepcopy(Architecture(source=SOURCE).build())
    record_edit(model, EDITS["quantisation"])
    assert Architecture.of(model) == Architecture(source=SOURCE, edits=(EDITS["quantisation"],))


TOY = '''
"""A toy edit: the sign of the outputs."""

from typing import Literal

from torch import nn

from lpvit.models.edits import Edit


class Signed(Edit):
    kind: Literal["toy"] = "toy"
    sign: float

    def apply(self, model: nn.Module) -> None:
        model.register_forward_hook(lambda model, images, logits: self.sign * logits)
'''

USE = """
import torch, tiny, lpvit
from lpvit.models.edits import apply_edit
from lpvit.models.sources.timm import Timm
from lpvit.toy.edit import Signed

model = Timm(name="vit_tiny_patch16_224", num_classes=5, options=tiny.VIT).build()
images = tiny.photographs("vit")
dense = model(images)
lpvit.save(lpvit.Pruned(apply_edit(model, Signed(sign=-2.0)), {}, (4, 4)), "toy.safetensors", options=tiny.VIT)
read = lpvit.load("toy.safetensors")
assert torch.equal(read.model(images), -2 * dense)
assert [edit.kind for edit in read.architecture.edits] == ["toy"]
"""


def test_an_edit_is_added_by_one_file(tmp_path: Path):
    for part in ("lpvit", "tests"):
        shutil.copytree(REPOSITORY / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lpvit/toy").mkdir()
    (tmp_path / "lpvit/toy/edit.py").write_text(TOY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [tmp_path, tmp_path / "tests"]))}
    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
