"""Token selection, sparse attention and token merging, alone and with pruned blocks, against the dense model.

    python benchmarks/schemes.py --threads 1 --batch-size 8
    python benchmarks/schemes.py --device cuda --dtype bfloat16 --batch-size 256 --block-shape 64 64 --seconds 5

Random weights and blocks: the time of a pass does not depend on them. Configurations are interleaved; a speed-up is the
median over the rounds of the ratio of times. No model is compiled. `multiplies` is the speed-up of blocks and scheme
together over the product of both alone; 1 is the ideal.
"""

import argparse
import copy

import pandas as pd
import torch
from sparse_linear import random_mask, require_equal, speedup
from torch import nn

from lpvit.costs.cost import count_macs
from lpvit.inference.sparsify import sparsify_layers
from lpvit.measure.timing import calm_clock, time_in_turns
from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.sources.timm import create_model, input_size
from lpvit.schemes.edit import add_scheme
from lpvit.schemes.settings import Scheme
from lpvit.structures.blocks.masks import expand_keep_masks, zero_pruned

ROLES = ("qkv", "proj", "fc1", "fc2")


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    side = arguments.image_size // 16  # patches of a row
    place = {"device": arguments.device, "dtype": getattr(torch, arguments.dtype)}
    dense = create_model(arguments.timm, 1000, {"img_size": arguments.image_size}).to(**place)
    images = torch.randn(arguments.batch_size, *input_size(dense), **place)
    setups = {"dense": dense, "blocks": with_blocks(dense, arguments)}
    schemes = {
        "tokens, once": [Scheme(scheme="token_selection", keep_tokens=0.7, before_blocks=[3])],
        "tokens, thrice": [Scheme(scheme="token_selection", keep_tokens=0.7, before_blocks=[3, 6, 9])],
        "attention": [Scheme(scheme="sparse_attention", pattern="strided", stride=side)],
        "merging": [Scheme(scheme="token_merging", merged_tokens=8)],
    }
    for name, added in schemes.items():
        setups[name] = with_schemes(dense, added)
        setups[f"blocks + {name}"] = with_blocks(setups[name], arguments)
    passes = {name: lambda model=model: model(images) for name, model in setups.items()}
    clock, seconds = calm_clock(arguments.device), arguments.seconds / len(setups)
    times = pd.DataFrame(time_in_turns(passes, device=arguments.device, seconds=seconds, clock=clock))
    table = pd.DataFrame(
        [
            {"configuration": setup, "ms": 1e3 * times[setup].median()} | speedup(times, "dense", setup)
            for setup in setups
        ]
    )
    macs = {name: count_macs(dense) / count_macs(model) for name, model in setups.items() if "blocks" not in name}
    table["fewer MACs"] = table["configuration"].map(macs)
    gains = table.set_index("configuration")["speed-up"]
    product = {f"blocks + {name}": gains[f"blocks + {name}"] / gains["blocks"] / gains[name] for name in schemes}
    table["multiplies"] = table["configuration"].map(product)
    print(table.to_markdown(index=False, floatfmt=".2f"))


def with_schemes(dense: nn.Module, schemes: list[Scheme]) -> nn.Module:
    model = copy.deepcopy(dense)
    for scheme in schemes:
        add_scheme(model, scheme)
    return model


def with_blocks(model: nn.Module, arguments: argparse.Namespace) -> nn.Module:
    """The model with random blocks pruned, and the sparse layers where they are faster; outputs are checked."""
    torch.manual_seed(0)
    masked, shape = copy.deepcopy(model), tuple(arguments.block_shape)
    layers = prunable_layers(matrix_layers(model), ROLES)
    masks = {layer.name: random_mask(layer.shape, shape, arguments.sparsity) for layer in layers}
    zero_pruned(dict(masked.named_parameters()), expand_keep_masks(masked, masks, shape))
    sparse = copy.deepcopy(masked)
    sparsify_layers(sparse, masks, shape, arguments.batch_size)
    images = torch.randn(2, *input_size(model)).to(next(model.parameters()))
    require_equal(sparse(images), masked(images))
    return sparse


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32, or what the device has kernels for")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--timm", default="deit_small_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--sparsity", type=float, default=0.5, help="of the blocks")
    parser.add_argument("--block-shape", type=int, nargs=2, default=(32, 32))
    return parser.parse_args()


if __name__ == "__main__":
    main()
