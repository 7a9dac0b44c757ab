"""Where the output of an attention is added to the residual stream, and who reads the sum."""

import pytest
import torch
from families import images_for, member
from torch import Tensor, nn

from lpvit.models.analysis.network import analyse, attention_branches
from lpvit.models.analysis.passes import CachedPass, StopPoint, run_until
from lpvit.models.sources.families import call_modules


@pytest.mark.parametrize("family", ["ViT", "DeiT-III", "DINOv2", "BEiT"])
def test_the_second_norm_reads_the_residual_stream_and_the_scaled_output_of_the_attention(family: str) -> None:
    network = analyse(call_modules(member(family)))
    branches = attention_branches(network)
    assert set(branches) == {layer.name for layer in network.layers if layer.role == "proj"}
    images = images_for(network.model, 3)
    for layer, branch in branches.items():
        assert branch.at_input
        assert branch.block.endswith(".norm2")
        outputs, read = observed(network.model, images, layer, branch.block)
        halt = StopPoint(layer, branch.block, branch.at_input)
        _, residual, _ = run_until(network.model, network.resume_points, CachedPass(images), halt, "cpu")
        torch.testing.assert_close(residual + branch.scale * outputs, read, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["SwinV2", "Swin"])
def test_where_the_sum_cannot_be_proved_the_layer_is_left_out(family: str) -> None:
    assert attention_branches(analyse(call_modules(member(family)))) == {}


@torch.no_grad()
def observed(model: nn.Module, images: Tensor, layer: str, reader: str) -> tuple[Tensor, Tensor]:
    """Output of a layer and input of another module in a pass."""
    found: dict[str, Tensor] = {}
    hooks = (
        model.get_submodule(layer).register_forward_hook(lambda _, __, output: found.update(layer=output)),
        model.get_submodule(reader).register_forward_pre_hook(lambda _, inputs: found.update(reader=inputs[0])),
    )
    model.eval()(images)
    for hook in hooks:
        hook.remove()
    return found["layer"], found["reader"]
