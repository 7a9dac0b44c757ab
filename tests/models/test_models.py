"""Models as timm makes them: checkpoints in, prunable layers out."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import matrix_layers, prunable_layers, transformer_blocks, weight_matrix
from lpvit.models.architecture import Architecture, load_model, save_model
from lpvit.models.sources.checkpoints import load_weights, read_checkpoint
from lpvit.models.sources.timm import Timm, create_model, input_size
from lpvit.store.artifacts import load
from lpvit.training.settings import Recipe
from lpvit.training.teacher import load_teacher

TINY: dict[str, Any] = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def architecture() -> Architecture:
    data_config = {"mean": [0.5], "std": [0.5]}
    return Architecture(source=Timm(name="vit_tiny_patch16_224", num_classes=3, options=TINY, data_config=data_config))


def test_the_layers_of_a_vit_are_found_with_their_shapes_and_tokens(architecture: Architecture) -> None:
    layers = {layer.name: layer for layer in matrix_layers(architecture.build())}
    assert next(iter(layers)) == "patch_embed.proj"
    assert list(layers)[-1] == "head"
    assert layers["patch_embed.proj"].shape == (16, 1 * 4 * 4)
    assert layers["patch_embed.proj"].tokens == 4
    assert layers["blocks.1.mlp.fc1"].shape == (64, 16)
    assert layers["blocks.1.mlp.fc1"].tokens == 5  # four patches and the class token
    assert layers["blocks.0.attn.qkv"].macs == 5 * 48 * 16
    assert layers["head"].parameters == 3 * 16 + 3


@pytest.mark.parametrize(
    ("name", "blocks", "tokens_of_fc1"),
    [("deit_tiny_distilled_patch16_224", 12, 198), ("swin_tiny_patch4_window7_224", 12, 3136)],
)
def test_true_shapes_are_measured_on_the_meta_device(name: str, blocks: int, tokens_of_fc1: int) -> None:
    with torch.device("meta"):
        model = create_model(name, 1000)
        layers = matrix_layers(model)
    assert len(transformer_blocks(model)) == blocks
    assert next(layer for layer in layers if layer.role == "fc1").tokens == tokens_of_fc1


def test_only_the_asked_roles_are_prunable_and_an_unknown_one_is_named(architecture: Architecture) -> None:
    layers = matrix_layers(architecture.build())
    assert {layer.role for layer in prunable_layers(layers, ("qkv", "fc2"))} == {"qkv", "fc2"}
    with pytest.raises(LpvitError, match="no layer 'reduction'; it has patch_embed, qkv, proj, fc1, fc2, head"):
        prunable_layers(layers, ("reduction",))


def test_the_input_follows_the_options_and_the_data_config(architecture: Architecture) -> None:
    model = architecture.build()
    assert input_size(model) == (1, 8, 8)
    assert model.pretrained_cfg["mean"] == [0.5]


def test_a_patch_embedding_is_a_matrix_of_flattened_patches(architecture: Architecture) -> None:
    module = architecture.build().get_submodule("patch_embed.proj")
    assert torch.equal(weight_matrix(module)[3], module.weight[3].flatten())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_checkpoints_of_every_form_give_the_same_model(
    tmp_path: Path, architecture: Architecture, suffix: str, wrapper: str | None
) -> None:
    source, file = architecture.build(seed=1), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), file)
    else:
        torch.save({wrapper: source.state_dict()} if wrapper else source.state_dict(), file)
    target = architecture.build(seed=2)
    load_weights(target, read_checkpoint(file), file)
    image = torch.randn(2, 1, 8, 8)
    assert torch.equal(source(image), target(image))


def test_a_checkpoint_of_another_architecture_is_refused_by_name_and_shape(architecture: Architecture) -> None:
    state = architecture.build().state_dict()
    state["head.weight"] = torch.zeros(7, 16)
    state["extra"] = torch.zeros(1)
    del state["pos_embed"]
    with pytest.raises(LpvitError) as error:
        load_weights(architecture.build(), state, "my.pt")
    for part in ("my.pt", "pos_embed is missing", "extra is unknown", "head.weight is 7x16, the model has 3x16"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"garbage", "cannot be read as a checkpoint"), (b"", "cannot be read as a checkpoint"), (None, "not found")],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_bad_checkpoint_is_named(tmp_path: Path, suffix: str, content: bytes | None, message: str) -> None:
    file = tmp_path / f"weights{suffix}"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(LpvitError, match=message) as error:
        read_checkpoint(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(LpvitError, match="holds no state dict"):
        read_checkpoint(tmp_path / "x.pt")


def test_pretrained_weights_out_of_reach_say_how_to_provide_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(LpvitError, match="weights: checkpoint"):
        create_model("deit_tiny_patch16_224", 1000, pretrained=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deit_tinny_patch16_224", {}, "did you mean 'deit_tiny_patch16_224'"),
        ("deit_tiny_patch16_224", {"dpeth": 3}, "dpeth"),
        ("deit_tiny_patch16_224", {"embed_dim": 100, "num_heads": 3}, "cannot build"),
    ],
)
def test_an_impossible_model_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LpvitError, match=message):
        create_model(name, 10, options)


def test_a_saved_model_comes_back_whole_and_says_what_it_is(tmp_path: Path, architecture: Architecture) -> None:
    state = architecture.build(seed=3).state_dict()
    save_model(architecture, state, tmp_path / "dense.pt", "dense")
    loaded, back = load_model(tmp_path / "dense.pt", "dense")
    assert loaded == architecture
    assert all(torch.equal(state[name], back[name]) for name in state)
    with pytest.raises(LpvitError, match="holds 'dense' in format 2, expected 'pruned'"):
        load(tmp_path / "dense.pt", "pruned")


def test_the_teacher_is_the_dense_model_a_timm_model_or_none(tmp_path: Path, architecture: Architecture) -> None:
    dense, training = tmp_path / "dense.pt", {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}
    save_model(architecture, architecture.build(seed=4).state_dict(), dense, "dense")
    assert load_teacher(Recipe(**training), 3, dense) is None
    teacher = load_teacher(Recipe(**training, distillation="soft", teacher="dense"), 3, dense)
    assert teacher is not None
    assert torch.equal(teacher.get_parameter("head.weight"), architecture.build(seed=4).get_parameter("head.weight"))
    absent = Recipe(**training, distillation="hard", teacher="resnet10t", teacher_checkpoint=tmp_path / "no.pt")
    with pytest.raises(LpvitError, match=r"no\.pt: checkpoint not found"):
        load_teacher(absent, 3, dense)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_384", "swinv2_tiny_window8_256", "vit_tiny_patch16_224"])
def test_an_option_for_channels_or_size_leaves_the_other_as_the_model_has_it(name: str) -> None:
    side = timm.get_pretrained_cfg(name).input_size[1]
    with torch.device("meta"):
        grey, small = (create_model(name, 3, options) for options in ({"in_chans": 1}, {"img_size": 64}))
        assert input_size(grey) == (1, side, side)
        assert input_size(small) == (3, 64, 64)
        patches = timm.create_model(name).patch_embed.num_patches
    assert grey.patch_embed.num_patches == patches
