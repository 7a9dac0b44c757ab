"""Where models come from: rebuilt from plain values, by an allow-list, or given by their owner."""

import json
from pathlib import Path

import pytest
import torch
from libraries import Encoder, images, member
from torch import nn

import lpvit
from lpvit.errors import LpvitError
from lpvit.models.analysis.trace import IMAGES
from lpvit.models.architecture import Architecture, classes_of, found_source, outline
from lpvit.models.outputs import read
from lpvit.models.settings import Model
from lpvit.models.sources.dense import dense_model
from lpvit.models.sources.given import Given
from lpvit.models.sources.module import Module
from lpvit.models.sources.open_clip import OpenClip
from lpvit.models.sources.timm import Timm
from lpvit.models.sources.torchvision import Torchvision
from lpvit.models.sources.transformers import Transformers


def classes(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


OF_LIBRARY = {"ViTForImageClassification": Transformers, "vit_b_16": Torchvision, "swin_v2_t": Torchvision}


@pytest.mark.parametrize("name", OF_LIBRARY)
def test_a_model_says_what_builds_it_and_a_file_builds_it_again(name: str) -> None:
    model = member(name)
    source = found_source(model)
    assert type(source) is OF_LIBRARY[name]
    read_back = Architecture.model_validate_json(Architecture(source=source).model_dump_json())
    assert read_back.source == source
    assert outline(read_back, model.state_dict()).state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        found, expected = read_back.build(model.state_dict())(images(2)), model(images(2))
    assert torch.equal(read(model, found), read(model, expected))


@pytest.mark.parametrize("name", ["image tower", "nn.TransformerEncoder"])
def test_other_models_are_their_owners_to_build(name: str) -> None:
    source = found_source(member(name))
    assert isinstance(source, Given)
    with pytest.raises(LpvitError, match=r"is yours to build: lpvit\.load\(file, model=\.\.\.\)"):
        source.build()


def test_labels_and_preprocessing_of_transformers_are_kept(tmp_path: Path) -> None:
    model = member("ViTForImageClassification")
    model.config.id2label = {0: "cat", 1: "dog", 2: "owl", 3: "fox", 4: "hen"}
    pruned = lpvit.prune(model, [images(8)], budget=0.7, block_shape=(8, 8))
    lpvit.save(pruned, tmp_path / "model.safetensors")
    loaded = lpvit.load(tmp_path / "model.safetensors").model
    assert loaded.config.id2label == model.config.id2label
    assert classes_of(loaded) == ("cat", "dog", "owl", "fox", "hen")
    assert loaded.pretrained_cfg["input_size"] == [3, 32, 32]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Transformers(name="ViTForImageClasification"), "did you mean 'ViTForImageClassification'"),
        (Transformers(name="AutoModel"), "has no model 'AutoModel'"),
        (Transformers(name="BertModel"), "takes input_ids, expected pixel_values"),
        (Transformers(name="ViTModel", options={"attn_implementation": "someone/kernels"}), "takes no 'attn_impl"),
        (Transformers(name="ViTModel", options={"auto_map": "x"}), "takes no 'auto_map'"),
        (Transformers(name="ViTModel", options={"hidden_size": {"a": 1}}), "is no number up to"),
        (Transformers(name="ViTModel", options={"patch_size": 0}), "cannot build"),
        (Torchvision(name="vit_b_17"), "has no transformer 'vit_b_17'; did you mean 'vit_b_1"),
        (Torchvision(name="vit_b_16", options={"weights": "DEFAULT"}), "takes no 'weights'"),
        (Torchvision(name="vit_b_16", options={"norm_layer": "x"}), "takes no 'norm_layer'"),
        (OpenClip(name="ViT-B-33"), "open_clip has no model 'ViT-B-33'; did you mean"),
        (OpenClip(name="ViT-B-32", options={"timm_model_pretrained": True}), "takes no 'timm_model_pretrained'"),
        (Module(path="os:system", options={"command": "true"}), "which a file does not run"),
        (Timm(name="vit_tiny_patch16_224", num_classes=5, data_config={"input_size": [3, 8, 8]}), "'input_size' is un"),
    ],
)
def test_a_file_names_models_of_its_library_and_what_shapes_them_and_nothing_else(source, message: str) -> None:
    with pytest.raises(LpvitError, match=message) as error:
        source.build()
    assert "\n" not in str(error.value)


def test_a_config_names_exactly_one_model() -> None:
    assert (Model(torchvision="vit_b_16").source, Model(torchvision="vit_b_16").name) == ("torchvision", "vit_b_16")
    with pytest.raises(LpvitError, match="timm: missing; a model is named by one of timm, transformers, torchvision"):
        Model()
    with pytest.raises(LpvitError, match="module: found beside timm"):
        Model(timm="vit_tiny_patch16_224", module="mine:build")


def test_a_folder_of_transformers_is_a_dense_model(tmp_path: Path) -> None:
    model = member("ViTForImageClassification")
    model.save_pretrained(tmp_path / "vit", max_shard_size="50KB")
    assert len(list((tmp_path / "vit").glob("*.safetensors"))) > 1
    preprocessing = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "size": {"height": 32, "width": 32}}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(preprocessing | {"resample": 3}))
    settings = Model(transformers=str(tmp_path / "vit"))
    assert {file.name for file in settings.files} >= {"config.json", "model.safetensors.index.json"}
    architecture, dense = dense_model(settings, classes(5))
    assert dense.config.id2label[1] == "class 1"
    assert torch.equal(dense(images(2)).logits, model(images(2)).logits)
    assert dense.pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
    assert dense.pretrained_cfg["interpolation"] == "bicubic"
    assert str(tmp_path) not in architecture.model_dump_json()
    other = dense_model(settings, classes(3))[1]  # a head of its own, the rest from the folder
    assert other(images(2)).logits.shape == (2, 3)
    assert torch.equal(other.vit.embeddings.cls_token, model.vit.embeddings.cls_token)


def test_attention_is_unpacked_in_the_dense_model_of_the_config() -> None:
    options = found_source(member("vit_b_16")).options  # type: ignore[attr-defined]
    architecture, dense = dense_model(
        Model(torchvision="VisionTransformer", options=options, weights="random"), classes(5)
    )
    assert [edit.kind for edit in architecture.edits] == ["unpacking"]
    again = architecture.build(dense.state_dict())
    assert torch.equal(again(images(2)), dense(images(2)))


BUILDER = """
import torch
from libraries import Encoder

def build(num_classes, width):
    return Encoder(width, num_classes)

def wrong():
    return "no model"
"""


def test_a_function_of_the_user_builds_the_dense_model_of_a_config_only(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_models.py").write_text(BUILDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lpvit.models.sources.module._allowed", set())
    settings = Model(module="my_models:build", options={"width": 24}, weights="random")
    settings = settings.model_copy(update={"data_config": {"input_size": [3, 32, 32]}})
    source = Module(path="my_models:build", num_classes=4, options={"width": 24})
    with pytest.raises(LpvitError, match=r"code, 'my_models:build', which a file does not run"):
        source.build()
    architecture, dense = dense_model(settings, classes(4))
    assert dense(images(IMAGES)).shape == (IMAGES, 4)
    assert architecture.source.path == "my_models:build"
    for path, message in (
        ("my_models:wrong", "returns a str"),
        ("my_models:none", "cannot be imported"),
        ("no:f", "no"),
    ):
        with pytest.raises(LpvitError, match=message):
            dense_model(Model(module=path, weights="random"), classes(0))


def test_a_source_that_is_named_is_checked_and_stands_in_the_file(tmp_path: Path) -> None:
    tower = {"layers": 2, "width": 48, "head_width": 24, "patch_size": 8, "image_size": 32, "embed_dim": 8}
    pruned = lpvit.prune(member("image tower"), [images(8)], budget=0.7, block_shape=(8, 8))
    with pytest.raises(LpvitError, match="is not what builds the image tower"):
        lpvit.save(pruned, tmp_path / "tower.safetensors", source=OpenClip(name="ViT-B-32"))
    lpvit.save(pruned, tmp_path / "tower.safetensors", source=OpenClip(name="ViT-B-32", options=tower))
    assert torch.equal(lpvit.load(tmp_path / "tower.safetensors").model(images(2)), pruned.model(images(2)))


def test_a_model_that_is_given_stays_as_it_is_and_must_fit(tmp_path: Path) -> None:
    pruned = lpvit.prune(member("nn.TransformerEncoder"), [images(8)], budget=0.7, block_shape=(8, 8))
    lpvit.save(pruned, tmp_path / "mine.safetensors")
    mine = Encoder()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    loaded = lpvit.load(tmp_path / "mine.safetensors", model=mine)
    assert all(torch.equal(before[name], value) for name, value in mine.state_dict().items())
    assert torch.equal(loaded.model(images(2)), pruned.model(images(2)))
    with pytest.raises(LpvitError, match="of another architecture"):
        lpvit.load(tmp_path / "mine.safetensors", model=Encoder(classes=7))


def test_tokens_before_images_are_refused_by_the_layer_with_the_remedy() -> None:
    with pytest.raises(LpvitError, match=r"'encoder\.layers\.0\.linear1' cannot be pruned: .*batch_first=True"):
        lpvit.prune(Encoder(batch_first=False), [images(8)], budget=0.7, block_shape=(8, 8))


def test_pruned_weights_go_back_to_their_library(tmp_path: Path) -> None:
    for name in ("vit_b_16", "ViTForImageClassification"):
        pruned = lpvit.prune(member(name), [images(8)], budget=0.7, block_shape=(8, 8))
        bare = member(name, std=0.1)
        bare.load_state_dict(lpvit.original_state_dict(pruned))
        torch.testing.assert_close(read(bare, bare(images(2))), read(bare, pruned.model(images(2))))
    pruned.model.save_pretrained(tmp_path)
    assert torch.equal(type(bare).from_pretrained(tmp_path).eval()(images(2)).logits, pruned.model(images(2)).logits)
    factors = lpvit.prune(member("vit_b_16"), [images(8)], budget=0.7)
    with pytest.raises(LpvitError, match="was changed by factors"):
        lpvit.original_state_dict(factors)


def test_attention_that_is_not_called_in_a_pass_stays_as_it_is() -> None:
    class Spare(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.MultiheadAttention(8, 2)

    pruned = lpvit.prune(Spare(), [images(8)], budget=0.7, block_shape=(8, 8))
    assert type(pruned.model.spare) is nn.MultiheadAttention
