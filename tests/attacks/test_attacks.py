"""Damaged and forged files: kinds of fault x kinds of artifact x their readers.

After every attack the file is refused in one line that names it, or reads as it did before. Nothing else: no other
exception, no crash, no other value, no memory beyond what files of this size are worth. A few attacks run by default;
``LPVIT_ATTACKS=10000 pytest -m attacks tests/attacks`` makes that many.
"""

import io
import json
import os
import resource
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import VIT

import lpvit
from lpvit.bases.edit import AlignedBases
from lpvit.bases.last_block.edit import FewTokens
from lpvit.models.architecture import Architecture, load_model, save_model
from lpvit.models.edits import apply_edit
from lpvit.models.sources.timm import create_model
from lpvit.models.sources.torchvision import Torchvision
from lpvit.models.unpacking.edit import UnpackedModules
from lpvit.quantisation.edit import Int8Layers
from lpvit.schemes.edit import add_scheme
from lpvit.store.artifacts import save
from lpvit.store.digest import BLANK, seal
from lpvit.store.schemas import BLOCKS, IMAGES
from lpvit.store.tables import read_parquet, write_parquet
from lpvit.structures.blocks.calibration import load_statistics
from lpvit.structures.blocks.edit import with_keep_masks
from lpvit.structures.blocks.masks import load_masks, save_masks
from lpvit.structures.factors.edit import LowRankLayers
from lpvit.structures.factors.structure import FactorStructure
from lpvit.structures.width.edit import NarrowerShapes
from lpvit.training.saved import read_progress

ATTACKS = int(os.environ.get("LPVIT_ATTACKS", "0"))
MANY = pytest.mark.skipif(ATTACKS == 0, reason="set LPVIT_ATTACKS to the number of attacks")
GROWTH = 700  # MiB that the attacks of a test may add to the peak of the process


@dataclass(frozen=True)
class Kind:
    """A kind of artifact: how one is written, and what reads it."""

    file: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]


def vit() -> torch.nn.Module:
    return create_model("vit_tiny_patch16_224", 5, VIT)


def write_dense(path: Path) -> None:
    model = vit()
    save_model(Architecture.of(model, VIT), model.state_dict(), path, "dense", seed=0)


def write_masks(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = {f"blocks.{i}.attn.qkv": torch.rand(8, 3, generator=generator) > 0.5 for i in range(2)}
    save_masks(masks, (8, 8), path)


def write_statistics(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tables = {name: torch.rand(8, 3, generator=generator).double() for name in ("weights", "squared_weight_sum")}
    save({"blocks.0.attn.qkv": tables | {"block_products": torch.rand(5, 24, generator=generator)}}, path, "statistics")


def write_training(path: Path) -> None:
    model = vit().state_dict()
    place = {"fingerprint": "x", "steps": 3, "steps_done": 1, "processes": [([0.5, 2.0], {"torch": torch.zeros(9)})]}
    best = {"epoch": 1, "merit": 9.5, "loss": 2.0, "score": "top-1 9.50 %", "state": model}
    weights = {"model": model, "ema": None, "optimizer": {}, "scaler": {}, "keep_masks": {"head": torch.ones(5, 2) > 0}}
    save({**weights, **place, "history": [{"epoch": 1, "top1": 9.5}], "best": best}, path, "training")


def write_blocks(path: Path) -> None:
    random = np.random.default_rng(0)
    numbers = {name: random.integers(0, 99, 200).astype("int32") for name in ("row", "column", "weights")}
    scores = {name: random.random(200) for name in ("saliency", "squared_norm")}
    names = {"layer": "blocks.0.attn.qkv", "structure": "blocks", "bytes": 256}
    write_parquet(pd.DataFrame({**names, **numbers, **scores}), path, BLOCKS)


def write_images(path: Path) -> None:
    rows = {"split": "train", "path": [f"a/{i}.jpg" for i in range(99)], "label": range(99), "class_name": "a"}
    write_parquet(pd.DataFrame({**rows, "problem": None}), path, IMAGES)


def write_saved(path: Path) -> None:
    model = vit()
    masks = {}
    for layer in ("blocks.0.attn.qkv", "blocks.1.mlp.fc1"):
        weight = model.get_parameter(f"{layer}.weight").data
        masks[layer] = torch.rand(weight.shape[0] // 4, weight.shape[1] // 4) > 0.5
        weight *= masks[layer].repeat_interleave(4, 0).repeat_interleave(4, 1)
    lpvit.save(lpvit.Pruned(model, masks, (4, 4)), path, options=VIT)


def read_saved(path: Path) -> Any:
    pruned = lpvit.load(path)
    return pruned.model.state_dict(), pruned.keep_masks, pruned.block_shape, pruned.budget, pruned.architecture


def edited_model() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Narrower, with a scheme, masks (returned) and int8."""
    model = vit()
    shapes = {f"blocks.0.mlp.fc1.{part}": shape for part, shape in (("weight", (40, 20)), ("bias", (40,)))}
    apply_edit(model, NarrowerShapes(shapes=shapes | {"blocks.0.mlp.fc2.weight": (20, 40)}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    add_scheme(model, lpvit.Scheme(scheme="token_selection", before_blocks=(1,)))
    masks = {"blocks.1.mlp.fc1": torch.rand(20, 5, generator=torch.Generator().manual_seed(0)) > 0.5}
    apply_edit(model, *with_keep_masks((), masks, (4, 4)))
    weight = model.get_parameter("blocks.1.mlp.fc1.weight").data
    weight *= masks["blocks.1.mlp.fc1"].repeat_interleave(4, 0).repeat_interleave(4, 1)
    apply_edit(model, Int8Layers(layers=("blocks.0.attn.qkv", "head")))
    return model, masks


def write_edited(path: Path) -> None:
    model, _ = edited_model()
    save_model(Architecture.of(model, VIT), model.state_dict(), path, "pruned_quantised")


def write_saved_edited(path: Path) -> None:
    model, masks = edited_model()
    lpvit.save(lpvit.Pruned(model, masks, (4, 4)), path, options=VIT)


def low_rank_model() -> torch.nn.Module:
    """Low-rank layers of every form, a convolution among them."""
    model = vit()
    apply_edit(model, LowRankLayers(form="plain", ranks={"blocks.0.mlp.fc1": 5, "patch_embed.proj": 3}))
    apply_edit(model, LowRankLayers(form="pivoted", ranks={"blocks.1.attn.qkv": 7}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def write_factors(path: Path) -> None:
    model = low_rank_model()
    save_model(Architecture.of(model, VIT), model.state_dict(), path, "pruned")


def write_saved_factors(path: Path) -> None:
    lpvit.save(lpvit.Pruned(low_rank_model(), {}, (1, 1)), path, options=VIT)


def write_aligned(path: Path) -> None:
    """In other bases, with a last block that gives one token."""
    options = VIT | {"qkv_bias": False}
    model = create_model("vit_tiny_patch16_224", 5, options)
    apply_edit(model, AlignedBases(freedoms=("residual",), biases=("blocks.0.attn.qkv",)))
    apply_edit(model, FewTokens(block="blocks.1", tokens=1))
    save_model(Architecture.of(model, options), model.state_dict(), path, "dense")


def write_unpacked(path: Path) -> None:
    """Of another library, with its attention as layers."""
    options = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    model = Torchvision(name="VisionTransformer", num_classes=5, options=options).build()
    apply_edit(model, UnpackedModules(modules={"encoder.layers.encoder_layer_0.self_attention": "joint"}))
    save_model(Architecture.of(model), model.state_dict(), path, "dense")


def write_moments(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = {"generator": generator, "dtype": torch.float64}
    numbers = {"images": torch.tensor(8), "tokens": torch.tensor(136)}
    inputs = {"input_mean": torch.rand(20, **wide), "input_covariance": torch.rand(20, 20, **wide)}
    outputs = {"output_sensitivity": torch.rand(60, 60, **wide), "token_sensitivity": torch.rand(17, **wide)}
    save({"blocks.0.attn.qkv": numbers | inputs | outputs}, path, "statistics")


def of_format_1(file: str) -> Callable[[Path], None]:
    return lambda path: path.write_bytes((REPOSITORY / "tests/format_1" / file).read_bytes())


KINDS = {
    kind.file: kind
    for kind in (
        Kind("dense.pt", write_dense, lambda path: load_model(path, "dense")),
        Kind("edited.pt", write_edited, lambda path: load_model(path, "pruned_quantised")),
        Kind("factors.pt", write_factors, lambda path: load_model(path, "pruned")),
        Kind("aligned.pt", write_aligned, lambda path: load_model(path, "dense")),
        Kind("unpacked.pt", write_unpacked, lambda path: load_model(path, "dense")),
        Kind("moments.pt", write_moments, FactorStructure.load_statistics),
        Kind("old.pt", of_format_1("pruned.pt"), lambda path: load_model(path, "pruned")),
        Kind("masks.pt", write_masks, load_masks),
        Kind("statistics.pt", write_statistics, load_statistics),
        Kind("resume.pt", write_training, lambda path: read_progress(path).model_dump()),
        Kind("blocks.parquet", write_blocks, lambda path: read_parquet(path, BLOCKS)),
        Kind("images.parquet", write_images, lambda path: read_parquet(path, IMAGES)),
        Kind("model.safetensors", write_saved, read_saved),
        Kind("edited.safetensors", write_saved_edited, read_saved),
        Kind("factors.safetensors", write_saved_factors, read_saved),
        Kind("old.safetensors", of_format_1("all.safetensors"), read_saved),
    )
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    for kind in KINDS.values():
        kind.write(folder / kind.file)
    return {file: (folder / file).read_bytes() for file in KINDS}


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    """No address space for a blow-up, and no unnoticed one."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (used + 6 * 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH * 1024


def outcome(kind: Kind, path: Path) -> Any:
    """What the file reads as; None if it is refused as it should be."""
    try:
        return kind.read(path)
    except lpvit.LpvitError as error:
        line = str(error)
    assert str(path) in line
    assert len(line.splitlines()) == 1
    assert len(line) < 1000
    return None


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, pd.DataFrame):
        return first.equals(second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


# --- damage: bytes change, and nobody seals the file anew -----------------------------------------------------------


@st.composite
def damage(draw: st.DrawFn, size: int, fault: str) -> Callable[[bytes], bytes]:
    start = draw(st.integers(0, size - 1))
    length = draw(st.integers(1, 64) | st.integers(1, size))
    other = draw(st.integers(0, size - 1))
    noise = draw(st.binary(min_size=1, max_size=64))
    bit = draw(st.integers(0, 7))
    changes: dict[str, Callable[[bytes], bytes]] = {
        "flip": lambda old: old[:start] + bytes([old[start] ^ 1 << bit]) + old[start + 1 :],
        "noise": lambda old: (old[:start] + noise + old[start + len(noise) :])[:size],
        "zeros": lambda old: (old[:start] + bytes(length) + old[start + length :])[:size],
        "truncate": lambda old: old[:start],
        "append": lambda old: old + noise,
        "insert": lambda old: old[:start] + noise + old[start:],
        "remove": lambda old: old[:start] + old[start + length :],
        "move": lambda old: (old[:start] + old[other : other + length] + old[start + length :])[:size],
    }
    return changes[fault]


FAULTS = ("flip", "noise", "zeros", "truncate", "append", "insert", "remove", "move")


def damaged(file: str, fault: str, originals: dict[str, bytes], folder: Path, attacks: int) -> None:
    kind, path, old = KINDS[file], folder / file, originals[file]
    path.write_bytes(old)
    expected = kind.read(path)

    @settings(max_examples=attacks, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damage(len(old), fault))
    def attack(change: Callable[[bytes], bytes]) -> None:
        path.write_bytes(change(old))
        found = outcome(kind, path)
        assert found is None or same(found, expected)

    attack()


@pytest.mark.parametrize("file", KINDS)
def test_a_damaged_file_is_refused_in_one_line_or_reads_as_before(file, originals, tmp_path):
    for fault in FAULTS:
        damaged(file, fault, originals, tmp_path, 12)


@pytest.mark.attacks
@MANY
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("file", KINDS)
def test_many_damaged_files_are_refused_in_one_line_or_read_as_before(file, fault, originals, tmp_path):
    damaged(file, fault, originals, tmp_path, ATTACKS // (len(KINDS) * len(FAULTS)) + 1)


# --- forgery: the digest is right, the content is not ---------------------------------------------------------------

# fmt: off
JUNK = st.sampled_from([
    None, True, -1, 7, 10**6, 10**12, 2**70, 0.5, float("nan"), float("inf"), "", "text", "a\nb", "../x", [], [0, -1],
    0, [10**6, 10**6], {}, {"a": 1}, {"checkpoint_path": "/etc/passwd"}, [[[[1]]]], "hf-hub:a/b",
    "vit_giant_patch14_224",
]).map(deepcopy)  # what is put into a header may be changed in there
OPTIONS = st.sampled_from([
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "class_token", "reg_tokens",
    "norm_layer", "block_fn", "device", "dtype", "kwargs", "num_classes", "global_pool", "weight_init", "x\ny",
    "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only",
])
# fmt: on
DTYPES = st.sampled_from([torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be put into nested dicts and lists."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from places(value[key], (*path, key))


def changed_tensor(draw: st.DrawFn, tensor: torch.Tensor) -> Any:
    change = draw(st.sampled_from(["junk", "shape", "dtype", "nan", "transposed", "longer"]))
    if change == "dtype" or (change == "nan" and not tensor.is_floating_point()):
        return tensor.to(draw(DTYPES))
    return {
        "junk": lambda: draw(JUNK),
        "shape": tensor.flatten()[:-1].clone,
        "nan": lambda: torch.full_like(tensor, torch.nan),
        "transposed": lambda: tensor.transpose(0, -1).contiguous() if tensor.ndim else tensor[None],
        "longer": lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor.repeat(2),
    }[change]()


def change_something(draw: st.DrawFn, content: Any) -> None:
    """Replaces, removes, renames or adds one thing somewhere in nested dicts and lists."""
    *way, last = draw(st.sampled_from(list(places(content))))
    for key in way:
        content = content[key]
    change = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
    if change == "replace":
        old = content[last]
        content[last] = changed_tensor(draw, old) if isinstance(old, torch.Tensor) else draw(JUNK)
    elif change == "remove":
        del content[last]
    elif change == "rename" and isinstance(content, dict):
        content[draw(OPTIONS)] = content.pop(last)
    elif isinstance(content, dict):
        content[draw(OPTIONS)] = draw(JUNK)


def forge_arguments(draw: st.DrawFn, architecture: dict[str, Any]) -> None:
    """Puts an argument among those of the source, or of an edit."""
    edits = architecture.get("edits")
    places = [architecture, architecture.get("source"), *(edits if isinstance(edits, list | tuple) else [])]
    place = draw(st.sampled_from([place for place in places if isinstance(place, dict)]))
    options = place.get("options")
    (options if isinstance(options, dict) else place)[draw(OPTIONS)] = draw(JUNK)


def forged_archive(draw: st.DrawFn, path: Path) -> None:
    content = torch.load(path, weights_only=True)
    kind = content["kind"]
    change_something(draw, content["payload"] if draw(st.integers(0, 9)) else content)
    payload = content.get("payload")
    architecture = payload.get("architecture") if isinstance(payload, dict) else None
    if draw(st.booleans()) and isinstance(architecture, dict):
        forge_arguments(draw, architecture)
    if content.get("kind") == kind and isinstance(content.get("payload"), dict) and content.get("format") in (1, 2):
        save(content["payload"], path, kind, version=content["format"])


def forged_model(draw: st.DrawFn, path: Path) -> None:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["lpvit"])
    if draw(st.integers(0, 2)):
        change_something(draw, header)
        if draw(st.booleans()) and isinstance(header.get("architecture"), dict):
            forge_arguments(draw, header["architecture"])
    else:
        change_something(draw, tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    save_file(tensors, path, {"lpvit": json.dumps(header), "digest": BLANK})
    seal(path)


def forged_table(draw: st.DrawFn, path: Path) -> None:
    table = pq.read_table(path)
    name = draw(st.sampled_from(table.column_names))
    frame = table.to_pandas()
    match draw(st.sampled_from(["drop", "rename", "type", "null", "add", "none"])):
        case "drop":
            frame = frame.drop(columns=name)
        case "rename":
            frame = frame.rename(columns={name: draw(OPTIONS)})
        case "type":
            frame[name] = frame[name].astype(str) + "x"
        case "null":
            frame[name] = None
        case "add":
            frame[draw(OPTIONS)] = 1
        case "none":
            frame = frame.iloc[:0]
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    with pq.ParquetWriter(path, (table := pq.read_table(io.BytesIO(buffer.getvalue()))).schema) as file:
        file.write_table(table)
        file.add_key_value_metadata({"digest": BLANK})
    seal(path)


FORGERS = {".pt": forged_archive, ".parquet": forged_table, ".safetensors": forged_model}


def forged(file: str, originals: dict[str, bytes], folder: Path, attacks: int) -> None:
    kind, path = KINDS[file], folder / file

    @settings(max_examples=attacks, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def attack(data: st.DataObject) -> None:
        path.write_bytes(originals[file])
        FORGERS[path.suffix](data.draw, path)
        outcome(kind, path)  # a harmless change may be read

    attack()


@pytest.mark.parametrize("file", KINDS)
def test_a_forged_file_is_refused_in_one_line_or_harmless(file, originals, tmp_path):
    forged(file, originals, tmp_path, 10)


@pytest.mark.attacks
@MANY
@pytest.mark.parametrize("file", KINDS)
def test_many_forged_files_are_refused_in_one_line_or_harmless(file, originals, tmp_path):
    forged(file, originals, tmp_path, ATTACKS // (4 * len(KINDS)) + 1)


HOSTILE = {
    "a depth of a million": {"depth": 10**6},
    "a depth that is allowed, of a small file": {"depth": 60_000},
    "no heads": {"num_heads": 0},
    "an image size in words": {"img_size": "large"},
    "an image of a terapixel": {"img_size": 10**6},
    "a width of a million": {"embed_dim": 10**6},
    "weights from elsewhere": {"checkpoint_path": "/etc/passwd"},
    "an overlay": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}},
    "pretrained weights": {"pretrained": True},
    "a folder for a cache": {"cache_dir": "/tmp/x"},
}


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("file", ["dense.pt", "model.safetensors"])
def test_a_hostile_header_is_refused_before_anything_is_built(file, hostile, originals, tmp_path):
    path = tmp_path / file
    path.write_bytes(originals[file])
    if file == "dense.pt":
        payload = torch.load(path, weights_only=True)["payload"]
        payload["architecture"]["source"]["options"] |= HOSTILE[hostile]
        save(payload, path, "dense", version=2)
    else:
        tensors = load_file(path)
        with safe_open(path, "pt") as opened:
            header = json.loads(opened.metadata()["lpvit"])
        header["architecture"]["source"]["options"] |= HOSTILE[hostile]
        save_file(tensors, path, {"lpvit": json.dumps(header), "digest": BLANK})
        seal(path)
    assert outcome(KINDS[file], path) is None


def test_every_kind_of_edit_is_attacked(originals, tmp_path):
    found = set()
    for file in ("edited.pt", "factors.pt", "aligned.pt", "unpacked.pt"):
        (tmp_path / file).write_bytes(originals[file])
        found |= {edit.kind for edit in KINDS[file].read(tmp_path / file)[0].edits}
    assert found == {file.parent.name for file in (REPOSITORY / "lpvit").rglob("edit.py")}


def test_an_unsealed_original_reads_as_what_was_saved(originals, tmp_path):
    """The laws above could hold for readers that refuse everything."""
    for file, kind in KINDS.items():
        (tmp_path / file).write_bytes(originals[file])
        assert outcome(kind, tmp_path / file) is not None
