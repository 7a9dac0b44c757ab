"""Checkpoints as trainers write them, read without running their code."""

import argparse
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from libraries import member
from safetensors.torch import save_file
from tiny import VIT, dense_model
from torch import Tensor, nn

import lpvit
from lpvit.errors import LpvitError

State = dict[str, Tensor]


def trained() -> nn.Module:
    return dense_model("vit")


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def timm_file(state: State) -> Any:
    """As timm's train.py: arguments, averaged weights of a compiled model."""
    worse = {name: torch.zeros_like(value) for name, value in state.items()}
    return {
        "epoch": 3,
        "arch": "vit",
        "state_dict": worse,
        "state_dict_ema": prefixed(state, "_orig_mod."),
        "args": argparse.Namespace(lr=0.1, opt="adamw"),
        "metric": np.float64(71.5),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }


FILES = {
    "timm": (timm_file, "averaged weights, 'state_dict_ema'"),
    "DeiT": (
        lambda state: {"model": {}, "model_ema": state, "args": argparse.Namespace(model="deit")},
        "averaged weights, 'model_ema'",
    ),
    "DataParallel": (lambda state: {"model": OrderedDict(prefixed(state, "module."))}, ""),
    "compiled and parallel": (lambda state: prefixed(state, "module._orig_mod."), ""),
    "Lightning": (
        lambda state: {"state_dict": prefixed(state, "model.") | {"loss.weight": torch.ones(2)}, "epoch": 1},
        "weights under 'model.', and leaves 1 others",
    ),
    "Lightning with an average": (
        lambda state: {
            "state_dict": prefixed({k: 0 * v for k, v in state.items()}, "net.") | prefixed(state, "ema_net.")
        },
        "weights under 'ema_net.'",
    ),
    "DINO": (lambda state: {"student": {}, "teacher": prefixed(state, "backbone.")}, "averaged weights, 'teacher'"),
    "half": (lambda state: {name: value.half() for name, value in state.items()}, ""),
}


@pytest.mark.parametrize("form", FILES)
def test_weights_are_found_in_the_files_of_trainers(form: str, tmp_path: Path, caplog) -> None:
    write, told = FILES[form]
    model, target = trained(), timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT)
    torch.save(write(model.state_dict()), tmp_path / "checkpoint.pth.tar")
    with caplog.at_level(logging.INFO, "lpvit"):
        assert lpvit.load_weights(target, tmp_path / "checkpoint.pth.tar") is target
    assert told in caplog.text
    for name, value in model.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], value, rtol=1e-3, atol=1e-3)


class CfgNode(dict):
    """As yacs': a dict with attributes of its own."""


def test_settings_of_yacs_beside_weights_are_read_as_plain_values(tmp_path: Path) -> None:
    CfgNode.__module__ = "yacs.config"
    CfgNode.__qualname__ = "CfgNode"
    import sys
    import types

    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules |= {"yacs": types.ModuleType("yacs"), "yacs.config": module}
    node = CfgNode(MODEL=CfgNode(NAME="swin"))
    node.__dict__["_immutable"] = True
    try:
        torch.save({"model": trained().state_dict(), "config": node}, tmp_path / "swin.pth")
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]
    lpvit.load_weights(trained(), tmp_path / "swin.pth")


class Harmful:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('ran')",))


def test_code_in_a_file_does_not_run_and_is_named(tmp_path: Path) -> None:
    torch.save({"model": trained().state_dict(), "args": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(LpvitError, match=r"bad\.pth: holds a 'exec', which is code") as error:
        lpvit.load_weights(trained(), tmp_path / "bad.pth")
    assert "\n" not in str(error.value)


def test_official_names_are_converted_as_timm_converts_them(tmp_path: Path, caplog) -> None:
    """MAE's file has a decoder; DeiT's distilled and older Swin's names are of another timm."""
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="token", **VIT).eval()
    mae = vit.state_dict() | {"decoder_embed.weight": torch.ones(3, 3), "mask_token": torch.ones(1, 1, 3)}
    torch.save({"model": mae}, tmp_path / "mae.pth")
    with caplog.at_level(logging.INFO, "lpvit"):
        lpvit.load_weights(vit, tmp_path / "mae.pth")
    assert "of a decoder" in caplog.text
    swin = dense_model("swin")
    state = dict(swin.state_dict())
    merge = [name for name in state if ".downsample." in name]
    assert merge  # of the second stage in timm, of the first one in the official files
    official = {
        name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): value
        for name, value in state.items()
    }
    torch.save({"model": official}, tmp_path / "swin.pth")
    target = dense_model("swin")
    nn.init.zeros_(target.get_parameter(next(name for name in merge if name.endswith("weight"))))
    lpvit.load_weights(target, tmp_path / "swin.pth")
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in state.items())


def test_shards_and_folders_are_read_whole(tmp_path: Path) -> None:
    model = member("ViTForImageClassification")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    target = member("ViTForImageClassification", std=0.1)
    for place in (tmp_path, tmp_path / "model.safetensors.index.json"):
        lpvit.load_weights(target, place)
        assert all(torch.equal(value, target.state_dict()[name]) for name, value in model.state_dict().items())
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    with pytest.raises(LpvitError, match="names shards in other folders"):
        lpvit.load_weights(target, tmp_path)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    lpvit.load_weights(target, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LpvitError, match=r"empty: a folder without model\.safetensors or"):
        lpvit.load_weights(target, tmp_path / "empty")


def test_a_deeper_checkpoint_is_not_cut_to_size(tmp_path: Path) -> None:
    deeper = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**VIT, "depth": 3})
    torch.save(deeper.state_dict(), tmp_path / "deep.pth")
    with pytest.raises(LpvitError, match=r"blocks\.2\.norm1\.weight is unknown to the model"):
        lpvit.load_weights(trained(), tmp_path / "deep.pth")
