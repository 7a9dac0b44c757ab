"""Pruned models that OpenVINO runs with the library that skips their blocks."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from test_api import logits, random_prune
from tiny import MODELS, dense_model, photographs

import lpvit
from lpvit.errors import LpvitError
from lpvit.measure.sparsify import sparsify_layers

RUN = """
import sys
import numpy as np, openvino
core = openvino.Core()
core.add_extension("lpvit_openvino.so")
options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": int(sys.argv[1])}
model = core.compile_model("model.xml", "CPU", options)
images = np.load("images.npy")
np.save("logits.npy", np.concatenate([model({"images": part})["logits"] for part in (images[:1], images[1:])]))
assert not {"torch", "lpvit"} & set(sys.modules)
kinds = [node.get_rt_info()["layerType"].astype(str) for node in model.get_runtime_model().get_ordered_ops()]
print(kinds.count("Reference"))
"""
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.05}
BLOCK_SHAPE = (8, 4)


@pytest.mark.parametrize(("kind", "threads"), [("vit", 1), ("deit", 2), ("swin", 2)])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_openvino_gives_the_logits_of_the_block_sparse_model_without_torch(
    kind: str, threads: int, precision: str, tmp_path: Path
) -> None:
    np = pytest.importorskip("numpy")
    pytest.importorskip("openvino")
    images = photographs(kind)
    pruned = random_prune(dense_model(kind), BLOCK_SHAPE)
    if precision == "int8":
        pruned = lpvit.quantise(pruned, images.split(8))
    lpvit.export_openvino(pruned, tmp_path / "model.xml", precision)
    assert {path.name for path in tmp_path.iterdir()} == {"model.xml", "model.bin", "lpvit_openvino.so"}
    np.save(tmp_path / "images.npy", images.numpy())
    command = [sys.executable, "-c", RUN, str(threads)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(pruned.keep_masks)
    expected = logits(pruned.model, images)
    error = (torch.from_numpy(np.load(tmp_path / "logits.npy")) - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCES[precision]
