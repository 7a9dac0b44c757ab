"""What is found of how a transformer hangs together."""

import torch
from families import member
from tiny import sized_model
from torch import nn

from lpvit.bases.proof import Change, Proof, make_proved
from lpvit.bases.wiring import wiring_of
from lpvit.models.sources.families import call_modules


def test_both_heads_of_a_distilled_model_read_the_last_norm() -> None:
    norms = {norm.name: norm.readers for norm in wiring_of(sized_model("deit")).norms}
    assert norms["norm"] == ("head", "head_dist")


def test_positions_and_tokens_are_added_to_the_stream() -> None:
    (stream,) = wiring_of(sized_model("deit")).streams
    assert set(stream.parameters) == {"cls_token", "dist_token", "pos_embed"}
    assert stream.writers == (
        "patch_embed.proj",
        *(f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.proj", "mlp.fc2")),
    )


def test_patch_merging_reads_a_stream_through_four_tokens_side_by_side() -> None:
    first, second = wiring_of(sized_model("swin")).streams
    assert [norm.width // first.width for norm in first.norms][-1] == 4
    assert second.writers[0] == "layers.1.downsample.reduction"


def test_a_norm_before_the_first_block_stands_in_the_stream() -> None:
    (stream,) = wiring_of(call_modules(member("CLIP"))).streams
    assert stream.others == ("norm_pre",)


def test_only_changes_that_leave_the_function_are_made() -> None:
    model = sized_model("vit").double().eval()
    proof = Proof.of(model, torch.float32)

    def spoil(model: nn.Module) -> None:
        model.blocks[1].mlp.fc1.weight.data[0] += 1  # type: ignore[index, union-attr]

    def swap(model: nn.Module) -> None:
        for parameter in (model.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.bias):  # type: ignore[index, union-attr]
            parameter.data[[0, 1]] = parameter.data[[1, 0]]
        weight = model.blocks[0].mlp.fc2.weight  # type: ignore[index, union-attr]
        weight.data[:, [0, 1]] = weight.data[:, [1, 0]]

    before = model.blocks[0].mlp.fc1.weight.clone()
    failed = make_proved(model, [Change("swapped", swap), Change("spoilt", spoil)], proof)
    assert failed == ["spoilt"]
    assert proof.error(model) <= 1
    assert torch.equal(model.blocks[0].mlp.fc1.weight[0], before[1])
