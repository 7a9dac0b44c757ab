"""The package as an engineer uses it: prune a timm model, save, load, export."""

import ast
import inspect
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import REPOSITORY
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import MODELS, SWIN, VIT, dense_model, photographs
from torch import Tensor, nn

import lpvit
from lpvit.costs.cost import measure_costs
from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import weight_matrix
from lpvit.sparse import BlockSparseLinear
from lpvit.sparse.attention import attention_path
from lpvit.store.digest import BLANK, seal
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import expand_keep_masks, verify_pruned, zero_pruned

BLOCK_SHAPE = (8, 4)


def random_prune(model: nn.Module, block_shape: tuple[int, int], budget: lpvit.Budget | None = None) -> lpvit.Pruned:
    """Without calibration: about half of the blocks of every layer of the transformer blocks."""
    embedding = model.patch_embed
    model.pretrained_cfg["input_size"] = (
        embedding.proj.in_channels,
        *embedding.img_size,
    )  # as `prune` sees on the images
    masks = {}
    generator = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "blocks" in name:
            grid = BlockGrid(tuple(module.weight.shape), block_shape)
            masks[name] = torch.rand(grid.rows, grid.columns, generator=generator) < 0.5
    zero_pruned(model.state_dict(), expand_keep_masks(model, masks, block_shape))
    return lpvit.Pruned(model.eval(), masks, block_shape, budget)


def assert_same(found: lpvit.Pruned, expected: lpvit.Pruned) -> None:
    state, wanted = found.model.state_dict(), expected.model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in state)
    assert found.keep_masks.keys() == expected.keep_masks.keys()
    assert all(torch.equal(found.keep_masks[layer], expected.keep_masks[layer]) for layer in found.keep_masks)
    assert found.block_shape == expected.block_shape


def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(images)
    return output


@pytest.fixture(scope="module")
def pruned() -> lpvit.Pruned:
    images = photographs("vit")
    return lpvit.prune(dense_model("vit"), images.split(8), budget=0.5, block_shape=BLOCK_SHAPE)


# --- prune -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_pruned_to_its_budget_and_the_given_one_left_as_it_was(kind: str) -> None:
    model, images = dense_model(kind).train(), photographs(kind)
    before, expected = deepcopy(model.state_dict()), logits(deepcopy(model), images)

    pruned = lpvit.prune(model, [(batch, None) for batch in images.split(8)], budget=0.6, block_shape=BLOCK_SHAPE)

    report = pruned.report
    tokens = measure_costs(pruned.model)["tokens"].max()
    one_block = BLOCK_SHAPE[0] * BLOCK_SHAPE[1] * tokens / report.loc["(dense model)", "macs"]
    assert 0.6 - max(0.001, one_block) <= report.loc["(model)", "keep_ratio"] <= 0.6
    verify_pruned(pruned.model.state_dict(), expand_keep_masks(pruned.model, pruned.keep_masks, BLOCK_SHAPE))
    assert model.training
    assert not pruned.model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model, images), expected)
    assert all(not parameter.grad_fn and parameter.grad is None for parameter in model.parameters())


def test_the_report_adds_up_and_counts_what_is_not_zero(pruned: lpvit.Pruned) -> None:
    report = pruned.report
    layers = report.drop(["(model)", "(dense model)"])
    assert (layers[["blocks_kept", "macs", "parameters"]].sum() == report.loc["(model)"].drop("keep_ratio")).all()
    assert report.loc["(dense model)", "parameters"] == sum(p.numel() for p in pruned.model.parameters())
    assert report.loc["(dense model)", "blocks_kept"] == sum(mask.numel() for mask in pruned.keep_masks.values())
    fc1 = pruned.model.get_parameter("blocks.1.mlp.fc1.weight")
    assert report.loc["blocks.1.mlp.fc1", "keep_ratio"] == pytest.approx(int(fc1.count_nonzero()) / fc1.numel())
    assert report.loc["(model)", "parameters"] == sum(
        int(tensor.count_nonzero()) if name.removesuffix(".weight") in pruned.keep_masks else tensor.numel()
        for name, tensor in pruned.model.named_parameters()
    )


@pytest.mark.gpu
def test_a_model_on_a_gpu_stays_there_and_is_saved_from_there(tmp_path: Path) -> None:
    model = dense_model("swin").cuda()
    pruned = lpvit.prune(model, photographs("swin").split(8), budget=0.6, block_shape=BLOCK_SHAPE)
    assert {parameter.device.type for parameter in (*pruned.model.parameters(), *model.parameters())} == {"cuda"}
    lpvit.save(pruned, tmp_path / "model.safetensors", options=SWIN)
    assert_same(lpvit.load(tmp_path / "model.safetensors"), replace(pruned, model=pruned.model.cpu()))


@pytest.mark.parametrize(
    ("pruning", "budget"),
    [
        (lpvit.Blocks(block_shape=(5, 3), distortion="empirical", points=5), lpvit.Budget(sparsity=0.3)),
        (
            lpvit.Blocks(block_shape=(5, 3), saliency="l1", distortion="taylor", layers=("fc1", "patch_embed")),
            lpvit.Budget(sparsity=0.5, allocator="exact", reconstruction="least_squares"),
        ),
    ],
)
def test_every_option_of_the_config_is_within_reach(pruning: lpvit.Blocks, budget: lpvit.Budget) -> None:
    pruned = lpvit.prune(dense_model("vit"), photographs("vit").split(8), budget=budget, pruning=pruning)
    assert {name.split(".")[-1] for name in pruned.keep_masks} == (
        {"fc1", "proj"} if "patch_embed" in pruning.layers else {"qkv", "proj", "fc1", "fc2"}
    )
    weights = [weight_matrix(pruned.model.get_submodule(layer)) for layer in pruned.keep_masks]
    zero = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert zero == pytest.approx(budget.sparsity, abs=0.01)


def test_a_number_as_budget_reconstructs_and_plain_settings_do_not() -> None:
    model, images = dense_model("vit"), photographs("vit").split(8)
    pruning = lpvit.Blocks(block_shape=BLOCK_SHAPE, saliency="gauss_newton", distortion="gauss_newton")
    plain = lpvit.prune(model, images, budget=lpvit.Budget(macs=0.5), pruning=pruning)
    fitted = lpvit.prune(model, images, budget=0.5, block_shape=BLOCK_SHAPE)
    expected = logits(model, torch.cat(images))
    error = [(logits(pruned.model, torch.cat(images)) - expected).square().mean() for pruned in (fitted, plain)]
    assert error[0] < 0.5 * error[1]
    kept = plain.model.get_parameter("blocks.0.mlp.fc1.weight")
    dense = model.get_parameter("blocks.0.mlp.fc1.weight")
    assert torch.equal(kept[kept != 0], dense[kept != 0])


class Endless:
    def __iter__(self) -> Iterator[Any]:
        yield {"photo": torch.zeros(1, 1, 16, 16)}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"loader": iter([torch.zeros(1, 1, 16, 16)])}, "loader: found list_iterator, which can be read at most once"),
        ({"loader": None}, "loader: found NoneType, which can be read at most once"),
        ({"loader": []}, "loader: yields no images"),
        ({"loader": Endless()}, "loader: found a dict, expected normalised images"),
        ({"loader": [torch.zeros(2, 1, 16, 16, dtype=torch.uint8)]}, "dtype torch.uint8, expected normalised images"),
        ({"loader": [torch.zeros(1, 16, 16)]}, r"loader: found a tensor of shape \(1, 16, 16\)"),
        ({"loader": [torch.zeros(2, 3, 8, 8)]}, "loader: the model does not accept its images of 3x8x8"),
        ({"budget": 50}, "budget: found 50, expected the share of MACs to keep"),
        ({"budget": 0.01}, "budget: macs 0.01 is impossible"),
        ({"block_shape": (64, 64)}, "block_shape: 64x64 is larger than a layer"),
        ({"block_shape": (0, 4)}, r"block_shape: found \(0, 4\), expected two positive whole numbers"),
        ({"pruning": lpvit.Blocks(block_shape=(8, 8))}, "block_shape: give either"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(arguments: dict[str, Any], line: str) -> None:
    given = {"loader": [photographs("vit", 4)], "budget": 0.5, "block_shape": BLOCK_SHAPE, **arguments}
    with pytest.raises(lpvit.LpvitError, match=line) as error:
        lpvit.prune(dense_model("vit"), **given)
    assert "\n" not in str(error.value)


# --- save and load ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("block_shape", [(8, 4), (7, 3)])
def test_a_file_gives_back_exact_weights_masks_and_origin(
    kind: str, block_shape: tuple[int, int], tmp_path: Path
) -> None:
    name, options = MODELS[kind]
    written = random_prune(dense_model(kind), block_shape, budget=lpvit.Budget(sparsity=0.5))
    torch.manual_seed(5)
    undisturbed = torch.rand(1)
    torch.manual_seed(5)
    lpvit.save(written, tmp_path / "a.safetensors", options=options)
    read = lpvit.load(tmp_path / "a.safetensors")
    assert torch.equal(torch.rand(1), undisturbed)
    assert_same(read, written)
    assert read.budget == written.budget
    assert read.architecture.source.name.startswith(name)
    assert not read.model.training

    lpvit.save(read, tmp_path / "b.safetensors")  # now the architecture is known
    assert_same(lpvit.load(tmp_path / "b.safetensors"), written)


def test_the_size_and_channels_of_images_and_the_preprocessing_need_no_options(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=1, num_classes=3, global_pool="token")
    written = random_prune(model, (64, 64))
    written.model.pretrained_cfg["mean"] = (0.3,)
    lpvit.save(written, tmp_path / "model.safetensors")
    read = lpvit.load(tmp_path / "model.safetensors")
    assert_same(read, written)
    assert read.architecture.source.options == {"img_size": [32, 32], "in_chans": 1}
    assert read.model.pretrained_cfg["input_size"] == (1, 32, 32)
    assert list(read.model.pretrained_cfg["mean"]) == [0.3]


def test_half_of_the_blocks_take_half_of_the_file(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=4)
    pruned = random_prune(model, (32, 32))
    lpvit.save(pruned, tmp_path / "model.safetensors", options={"depth": 4})
    stored = (tmp_path / "model.safetensors").stat().st_size
    kept, dense = pruned.report.loc[["(model)", "(dense model)"], "parameters"]
    assert stored == pytest.approx(4 * kept, rel=0.01)
    assert 0.5 < stored / (4 * dense) < 0.58  # patch embedding, positions and head stay dense


def test_a_file_has_the_rights_of_any_new_one(pruned: lpvit.Pruned, tmp_path: Path) -> None:
    lpvit.save(pruned, tmp_path / "model.safetensors", options=VIT)
    (tmp_path / "any").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_training_with_frozen_masks_can_be_saved_and_without_cannot(pruned: lpvit.Pruned, tmp_path: Path) -> None:
    trained = deepcopy(pruned)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.mul_(1.5)
    lpvit.save(trained, tmp_path / "model.safetensors", options=VIT)
    assert_same(lpvit.load(tmp_path / "model.safetensors"), trained)
    with torch.no_grad():
        trained.model.get_parameter("blocks.0.attn.qkv.weight").add_(1)
    with pytest.raises(lpvit.LpvitError, match=r"blocks\.0\.attn\.qkv\.weight: \d+ pruned weights are not zero; train"):
        lpvit.save(trained, tmp_path / "again.safetensors", options=VIT)
    assert not (tmp_path / "again.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (None, "is not what builds timm's 'vit_tiny_patch16_224.*options.*blocks in the mask"),
        ({**VIT, "depth": 3}, "blocks.2.* is missing"),
        ({**VIT, "num_heads": 4}, "same weights, other outputs"),
        ({**VIT, "norm_layer": nn.LayerNorm}, "options: norm_layer .* is no number"),
    ],
)
def test_a_file_that_would_give_another_model_is_not_written(
    pruned: lpvit.Pruned, options: dict[str, Any] | None, line: str, tmp_path: Path
) -> None:
    with pytest.raises(lpvit.LpvitError, match=line) as error:
        lpvit.save(pruned, tmp_path / "model.safetensors", options=options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_model_with_weights_of_a_tag_that_timm_does_not_list_is_saved(tmp_path: Path) -> None:
    half = random_prune(dense_model("vit"), BLOCK_SHAPE)  # as from 'hf-hub:' with weights of one's own
    half.model.pretrained_cfg = {**half.model.pretrained_cfg, "tag": "my_tag", "mean": (0.3,)}
    lpvit.save(half, tmp_path / "model.safetensors", options=VIT)
    loaded = lpvit.load(tmp_path / "model.safetensors")
    assert_same(loaded, half)
    assert loaded.model.pretrained_cfg["mean"] == [0.3]


def test_a_model_that_timm_did_not_make_is_told_so(tmp_path: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    images = photographs("vit").split(8)
    pruned = lpvit.prune(VisionTransformer(**VIT, num_classes=5), images, budget=0.6, block_shape=(8, 4))
    with pytest.raises(lpvit.LpvitError, match=r"model: has no name in timm"):
        lpvit.save(pruned, tmp_path / "model.safetensors", options=VIT)


LAYER = "blocks.1.mlp.fc1"


def without(name: str) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, _: tensors.pop(name)


def with_value(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, _: tensors.update({name: change(tensors[name]).contiguous()})


def with_edits(edits: list[Any]) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda _, header: header["architecture"].update(edits=edits)


def with_mask(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda _, header: change(header["architecture"]["edits"][0]["keep_masks"])


def with_header(**entries: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda _, header: header.update(entries)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (without(f"{LAYER}.values"), f"'{LAYER}' does not fit its model .values are missing"),
        (without("norm.weight"), "norm.weight is missing"),
        (without(f"{LAYER}.bias"), f"{LAYER}.bias is missing"),
        (with_value(f"{LAYER}.values", lambda values: values[1:]), rf"'{LAYER}' .*values are \(\d+, 8, 4\), expected"),
        (lambda tensors, _: tensors.update({"extra.values": torch.zeros(1)}), "extra.values is unknown to the model"),
        (with_mask(lambda masks: masks[LAYER].update(rows=9)), "7 bytes for 9x5 blocks, expected 6"),
        (with_mask(lambda masks: masks[LAYER].update(bits="AAAAAAAAAA==")), rf"'{LAYER}' .*expected 0 blocks"),
        (with_mask(lambda masks: masks[LAYER].update(bits="..")), "its metadata is damaged"),
        (
            with_mask(lambda masks: masks[LAYER].update(rows=5, columns=10)),
            rf"'{LAYER}' has .5, 10. blocks in the mask",
        ),
        (with_mask(lambda masks: masks.update(extra=masks.pop(LAYER))), "the model has no layer 'extra' to mask"),
        (with_edits([{"kind": "absent"}]), "found kind 'absent'; known are"),
        (with_edits(["width"]), "its metadata is damaged"),
        (with_edits([{"kind": "width", "shapes": {"blocks.9.x": [1]}}]), "the model has no parameter 'blocks.9.x'"),
        (
            with_edits([{"kind": "quantisation", "layers": ["norm"]}]),
            "cannot be built .TypeError: 'norm' is a LayerNorm",
        ),
        (with_header(format=99), "format 99, this lpvit .* reads formats 1 and 2"),
        (with_header(block_shape=[8]), "its metadata is damaged"),
        (with_header(block_shape=[64, 64]), "blocks of 8x4 in its edits and of 64x64 in its header"),
        (with_header(block_shape=[8, 0]), "its metadata is damaged"),
        (
            lambda _, header: header["architecture"]["source"].update(name="vit_tinny_patch16_224"),
            "timm knows no model",
        ),
        (lambda _, header: header["architecture"]["source"].update(options={}), "blocks in the mask and"),
        (with_header(budget={"macs": 2}), "its metadata is damaged"),
        (lambda _, header: header.pop("architecture"), "its metadata is damaged"),
        (lambda _, header: header.pop("format"), "its metadata is damaged"),
    ],
)
def test_a_damaged_file_is_told_in_one_line_that_names_it(
    damage: Callable, line: str, pruned: lpvit.Pruned, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    lpvit.save(pruned, file, options=VIT)
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["lpvit"])
    damage(tensors, header)
    save_file(tensors, file, {"lpvit": json.dumps(header), "digest": BLANK})
    seal(file)
    with pytest.raises(lpvit.LpvitError, match=rf"model\.safetensors: .*{line}") as error:
        lpvit.load(file)
    assert "\n" not in str(error.value)


def test_a_file_of_another_kind_is_told_in_one_line_that_names_it(pruned: lpvit.Pruned, tmp_path: Path) -> None:
    lpvit.save(pruned, tmp_path / "whole", options=VIT)
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "truncated").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("not tensors at all")
    torch.save({"a": torch.zeros(1)}, tmp_path / "torch")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    save_file({"a": torch.zeros(1)}, tmp_path / "sealed", {"digest": BLANK})
    seal(tmp_path / "sealed")
    for name, line in (
        ("missing", "file not found"),
        ("truncated", "cannot be read .damaged: its content does not match its digest"),
        ("empty", "cannot be read .it carries no digest"),
        ("text", "cannot be read .it carries no digest"),
        ("torch", "is not a file of lpvit.save; if the pipeline wrote it, create one with 'lpvit export"),
        ("foreign", "cannot be read .it carries no digest"),
        ("sealed", "not written by lpvit.save"),
    ):
        with pytest.raises(lpvit.LpvitError, match=f"{name}: {line}") as error:
            lpvit.load(tmp_path / name)
        assert "\n" not in str(error.value)


# --- ONNX ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_the_exported_model_gives_the_same_logits_for_any_number_of_images(kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pruned = random_prune(dense_model(kind), BLOCK_SHAPE)
    lpvit.export_onnx(pruned, tmp_path / "model.onnx")
    images = photographs(kind, 3)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [entry.name for entry in (*session.get_inputs(), *session.get_outputs())] == ["images", "logits"]
    for batch in (images[:1], images):
        (found,) = session.run(None, {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits(pruned.model, batch), rtol=1e-4, atol=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_without_its_packages_onnx_says_what_to_install(
    pruned: lpvit.Pruned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lpvit.export.onnx.find_spec", lambda package: None if package == "onnxscript" else package)
    with pytest.raises(lpvit.LpvitError, match=r"needs the package 'onnxscript'; pip install 'lpvit\[onnx\]'"):
        lpvit.export_onnx(pruned, tmp_path / "model.onnx")


# --- OpenVINO --------------------------------------------------------------------------------------------------------

PLAIN = "sse" if platform.machine() == "x86_64" else "neon"  # instructions that every such CPU has
RUN_BY_OPENVINO = """
import sys
import numpy as np, openvino
core = openvino.Core()
core.add_extension("lpvit_openvino.so")
options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": int(sys.argv[1])}
model = core.compile_model("model.xml", "CPU", options)
images = np.load("images.npy")
np.save("logits.npy", np.concatenate([model({"images": part})["logits"] for part in (images[:1], images[1:])]))
assert not {"torch", "lpvit"} & set(sys.modules)
print(sum(node.get_rt_info()["layerType"].astype(str) == "Reference" for node in model.get_runtime_model().get_ops()))
"""


@pytest.mark.parametrize(
    ("kind", "options", "precision", "threads", "instructions", "tolerance"),
    [
        ("vit", {}, "float32", 1, "", 1e-5),
        ("vit", {"qk_norm": True}, "float32", 1, "", 1e-5),  # queries and keys are no longer what `qkv` gives
        ("swin", {}, "float32", 2, "", 1e-5),  # with a bias, and masks
        ("deit", {}, "bfloat16", 2, "", 0.05),
        ("swin", {}, "int8", 2, "", 0.05),
        ("swin", {}, "int8", 1, PLAIN, 0.05),  # no attention in int8 nor bfloat16
    ],
)
def test_openvino_gives_the_logits_of_the_pruned_model_without_torch(
    kind: str,
    options: dict[str, bool],
    precision: str,
    threads: int,
    instructions: str,
    tolerance: float,
    tmp_path: Path,
) -> None:
    pytest.importorskip("openvino")
    images = photographs(kind)
    pruned = random_prune(dense_model(kind, **options), BLOCK_SHAPE)
    if precision == "int8":
        pruned = lpvit.quantise(pruned, images.split(8))
    lpvit.export_openvino(pruned, tmp_path / "model.xml", precision)
    assert {path.name for path in tmp_path.iterdir()} == {"model.xml", "model.bin", "lpvit_openvino.so"}
    np.save(tmp_path / "images.npy", images.numpy())
    command = [sys.executable, "-c", RUN_BY_OPENVINO, str(threads)]
    environment = os.environ | {"LPVIT_INSTRUCTION_SET": instructions}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path = attention_path(torch.device("cpu"), torch.bfloat16 if precision == "bfloat16" else torch.float32)
    attentions = 0 if path.reason else sum(name.endswith("attn.qkv") for name in pruned.keep_masks)
    assert int(done.stdout) == len(pruned.keep_masks) + attentions
    expected = logits(pruned.model, images)
    error = (torch.from_numpy(np.load(tmp_path / "logits.npy")) - expected).abs().max() / expected.abs().max()
    assert error < tolerance


def test_what_openvino_cannot_be_given_is_refused(
    pruned: lpvit.Pruned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, precision in (("model.onnx", "float32"), ("model.xml", "float16")):
        with pytest.raises(LpvitError, match=r"expected a file \.xml, and a precision of"):
            lpvit.export_openvino(pruned, tmp_path / name, precision)
    with pytest.raises(LpvitError, match="no kernel for blocks of 3 columns"):
        lpvit.export_openvino(random_prune(dense_model("vit"), (8, 3)), tmp_path / "model.xml", "bfloat16")
    monkeypatch.setattr("lpvit.api.export.find_spec", lambda package: None)
    with pytest.raises(LpvitError, match=r"needs the package 'openvino'; pip install 'lpvit\[engines\]'"):
        lpvit.export_openvino(pruned, tmp_path / "model.xml")
    assert not list(tmp_path.iterdir())


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_a_pruned_model_becomes_block_sparse_in_one_line_and_stays_as_it_was(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lpvit.inference.sparsify._timed", lambda *_: {"dense": 2.0, "float32": 1.0})
    pruned = random_prune(dense_model(kind), BLOCK_SHAPE)
    images = photographs(kind)
    before = logits(pruned.model, images)
    sparse = lpvit.sparsify(pruned, batch_size=4)
    assert not any(isinstance(module, BlockSparseLinear) for module in pruned.model.modules())
    assert {name for name, module in sparse.named_modules() if isinstance(module, BlockSparseLinear)} == {
        *pruned.keep_masks
    }
    torch.testing.assert_close(sparse(images), before, rtol=1e-4, atol=1e-4)  # without no_grad
    assert torch.equal(logits(pruned.model, images), before)


def test_a_budget_in_milliseconds_without_a_table_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def times(costs: pd.DataFrame, block_shape: tuple[int, int], **options: Any) -> pd.DataFrame:
        asked.append((block_shape, options))
        rows = costs[["out_features", "in_features", "tokens"]].drop_duplicates()
        dense = rows["out_features"] * rows["in_features"] / 1e3
        rows = pd.concat([rows.assign(sparsity=s, milliseconds=dense * (1 - s)) for s in (0.0, 0.9)])
        return rows.assign(block_rows=block_shape[0], block_columns=block_shape[1])

    monkeypatch.setattr("lpvit.api.prune.measure_latency", times)
    model, images = dense_model("vit"), photographs("vit")
    budget = lpvit.Budget(latency=0.5)
    pruned = lpvit.prune(model, images.split(8), budget=budget, block_shape=BLOCK_SHAPE)
    (block_shape, options) = asked[0]
    assert block_shape == BLOCK_SHAPE
    assert options == {"batch_size": 8, "dtype": torch.float32, "device": torch.device("cpu")}
    weights = {layer: pruned.model.get_submodule(layer).weight for layer in pruned.keep_masks}
    kept = sum(int(weight.count_nonzero()) for weight in weights.values())
    assert 0.49 < kept / sum(weight.numel() for weight in weights.values()) <= 0.5


# --- imports ---------------------------------------------------------------------------------------------------------


def test_importing_the_package_and_its_config_loads_no_torch() -> None:
    code = (
        "import sys, lpvit, lpvit.config.config; lpvit.Budget(macs=.5); assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_others_are_not() -> None:
    assert all(getattr(lpvit, name).__name__ == name for name in lpvit.__all__)
    assert set(lpvit.__all__) <= set(dir(lpvit))
    with pytest.raises(AttributeError, match="prun"):
        lpvit.prun  # noqa: B018


def test_the_calls_in_the_readme_fit_the_functions() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    (code,) = re.findall(r"```python\n(import lpvit\n.*?)```", readme, flags=re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func).startswith("lpvit.")]
    assert {call.func.attr for call in ours} == {
        *("Recipe", "prune", "finetune", "evaluate", "save", "load", "sparsify", "export_onnx", "export_openvino")
    }
    for call in ours:
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        inspect.signature(getattr(lpvit, call.func.attr)).bind(*call.args, **keywords)


# --- what people meet first ------------------------------------------------------------------------------------------


def test_the_package_shows_its_public_names_and_imports_its_packages_when_first_used() -> None:
    assert dir(lpvit) == sorted(lpvit.__all__)
    code = "import lpvit; lpvit.structures.blocks.masks; lpvit.structures.width.narrowing.narrow"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match=r"module 'lpvit\.pruning' has no attribute 'mask'"):
        _ = lpvit.pruning.mask


def test_a_pruned_model_tells_what_stays_in_a_few_lines(pruned: lpvit.Pruned) -> None:
    lines = repr(pruned).splitlines()
    assert lines[0] == "Pruned(VisionTransformer, blocks of 8x4, budget: macs 0.5)"
    assert len(lines) == 4
    assert f"({pruned.report.loc['(model)', 'keep_ratio']:.1%})" in lines[1]


def test_what_is_no_model_to_prune_is_refused_in_its_own_words() -> None:
    batches = photographs("vit").split(8)
    on_meta = dense_model("vit").to("meta")
    network = timm.create_model("resnet18", num_classes=5, in_chans=1)
    for model, message in (
        ("deit_small_patch16_224", "model: found str, expected a model: an nn.Module"),
        (on_meta, "model: is on the meta device"),
        (torch.compile(dense_model("vit")), "model: is compiled; give the model before torch.compile"),
        (nn.DataParallel(dense_model("vit")), "model: is wrapped in DataParallel; give its 'module'"),
        (network, "model: no repeated module with attention is found, only layers such as conv1"),
    ):
        images = [torch.rand(2, 1, 64, 64)] if model is network else batches
        with pytest.raises(LpvitError, match=message):
            lpvit.prune(model, images, budget=0.5, block_shape=BLOCK_SHAPE)  # type: ignore[arg-type]


def test_a_misspelt_key_comes_with_the_nearest() -> None:
    with pytest.raises(LpvitError, match=r"^Budget: mac: unknown key; did you mean 'macs'\?$"):
        lpvit.Budget(mac=0.5)
    with pytest.raises(LpvitError, match=r"^Recipe: epochs: missing; Recipe: batch_size: missing; Recipe: learn"):
        lpvit.Recipe()


def test_an_impossible_budget_is_refused_before_any_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpvit.pruning.prune.measure", lambda *_: pytest.fail("gradients"))
    with pytest.raises(LpvitError, match=r"budget: macs 0\.01 is impossible, at least 0\.\d+ must be kept \("):
        lpvit.prune(dense_model("vit"), photographs("vit").split(8), budget=0.01, block_shape=BLOCK_SHAPE)


# --- training and evaluation -----------------------------------------------------------------------------------------


def test_finetuning_learns_and_keeps_pruned_weights_at_zero(pruned: lpvit.Pruned) -> None:
    images, labels = photographs("vit"), torch.arange(24) % 5
    batches = list(zip(images.split(8), labels.split(8), strict=True))
    before = lpvit.evaluate(pruned, batches)
    recipe = lpvit.Recipe(epochs=8, batch_size=8, learning_rate=2e-3)

    trained = lpvit.finetune(pruned, batches, batches, recipe=recipe)

    assert lpvit.evaluate(trained, batches).loss < before.loss
    assert lpvit.evaluate(pruned, batches) == before
    verify_pruned(trained.model.state_dict(), expand_keep_masks(trained.model, trained.keep_masks, BLOCK_SHAPE))
    distilled = lpvit.finetune(
        pruned,
        batches,
        batches,
        recipe=lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3, distillation="soft", teacher="dense"),
        teacher=dense_model("vit"),
    )
    assert distilled.budget == pruned.budget


def test_evaluation_equals_the_hits_counted_by_hand(pruned: lpvit.Pruned) -> None:
    images = photographs("vit")
    labels = logits(deepcopy(pruned.model), images).argmax(dim=1)
    labels[:6] = (labels[:6] + 1) % 5
    accuracy = lpvit.evaluate(pruned.model, [(images, labels)])
    assert (accuracy.images, accuracy.top1) == (24, 75.0)


def test_loaders_and_teachers_that_do_not_fit_are_refused(pruned: lpvit.Pruned) -> None:
    images = photographs("vit")
    recipe = lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3)
    with pytest.raises(LpvitError, match=r"found a batch without labels, expected images"):
        lpvit.evaluate(pruned, [images])
    with pytest.raises(LpvitError, match="loader: found generator; give a DataLoader or a list"):
        lpvit.evaluate(pruned, (batch for batch in [(images, torch.zeros(24))]))
    with pytest.raises(LpvitError, match="teacher: give a model together with a recipe that has distillation"):
        lpvit.finetune(pruned, [], [], recipe=recipe, teacher=dense_model("vit"))
    gradual = lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3, pruned_over=0.5)
    with pytest.raises(LpvitError, match="pruned_over starts with the dense model"):
        lpvit.finetune(pruned, [], [], recipe=gradual)


# --- quantise --------------------------------------------------------------------------------------------------------


def test_a_quantised_model_is_saved_in_an_eighth_of_the_dense_one_and_loaded_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=2, img_size=32)
    options = {"depth": 2, "img_size": 32}
    dense = sum(value.numel() for name, value in model.state_dict().items() if "blocks" in name)
    half = random_prune(model, (16, 16))
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    quantised = lpvit.quantise(half, quantisation=lpvit.Quantisation(rounding="nearest"))
    lpvit.save(quantised, tmp_path / "model.safetensors", options=options)
    loaded = lpvit.load(tmp_path / "model.safetensors")
    assert_same(loaded, quantised)
    assert torch.equal(logits(loaded.model, images), logits(quantised.model, images))
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(tensor.nbytes for name, tensor in stored.items() if "blocks" in name) < 4 * dense / 7
    lpvit.save(loaded, tmp_path / "again.safetensors")
    assert_same(lpvit.load(tmp_path / "again.safetensors"), quantised)


def test_bfloat16_is_quantised_without_images_and_kept_by_save(tmp_path: Path) -> None:
    half = random_prune(dense_model("vit"), BLOCK_SHAPE)
    quantised = lpvit.quantise(half, quantisation=lpvit.Quantisation(precision="bfloat16"))
    lpvit.save(quantised, tmp_path / "model.safetensors", options=VIT)
    assert_same(lpvit.load(tmp_path / "model.safetensors"), quantised)
    assert next(quantised.model.parameters()).dtype == torch.bfloat16
    assert next(half.model.parameters()).dtype == torch.float32


def test_a_quantised_model_is_not_trained() -> None:
    quantised = lpvit.quantise(
        random_prune(dense_model("vit"), BLOCK_SHAPE), quantisation=lpvit.Quantisation(rounding="nearest")
    )
    with pytest.raises(LpvitError, match="is quantised, which has no gradients"):
        lpvit.finetune(quantised, [], [], recipe=lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3))
