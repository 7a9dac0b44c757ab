"""Speed of fused attention and of torch's on the CPU, from the queries, keys and values of one layer.

    python benchmarks/attention.py --threads 1 --output benchmarks/results/attention.csv

Configurations: ours, which may multiply bfloat16 inputs in int8; torch's product with timm's permutations before and
after it; the same product alone, with tensors in its preferred layout. Outputs are compared before timing.
Configurations are interleaved. A speed-up is the median over the rounds of the ratio of times, of processor time on one
thread.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lpvit.measure.timing import calm_clock, time_in_turns
from lpvit.sparse.attention import attention

SHAPES = {  # sequences, tokens, heads, features of a head
    "DeiT-S, batch 8": (8, 197, 6, 64),
    "DeiT-S, batch 1": (1, 197, 6, 64),
    "DeiT-B, batch 8": (8, 197, 12, 64),
    "DeiT-B at 384 x 384, batch 1": (1, 577, 12, 64),
    "Swin-T, first stage, batch 8": (512, 49, 3, 32),
    "Swin-T, third stage, batch 8": (32, 49, 12, 32),
}
FORMS = {  # our precision -> dtype of the tensors, tolerated error relative to the largest output
    "float32": (torch.float32, 1e-5),
    "bfloat16": (torch.bfloat16, 1e-2),
    "int8": (torch.bfloat16, 1e-1),
}


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    rows = [
        {"shape": name, "ours in": form, **measure(shape, form, arguments)}
        for form in FORMS
        for name, shape in SHAPES.items()
    ]
    table = pd.DataFrame(rows).assign(threads=arguments.threads)
    print(table.to_markdown(index=False, floatfmt=".2f"))
    if arguments.output:
        table.to_csv(arguments.output, index=False, float_format="%.4g")


def measure(shape: tuple[int, int, int, int], form: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of the configurations, speed-ups of ours, and its billions of multiply-adds per second."""
    images, tokens, heads, features = shape
    dtype, tolerance = FORMS[form]
    packed = torch.randn(images, tokens, 3 * heads * features).to(dtype)
    setups = build_configurations(packed, heads, features, int8=form == "int8")
    expected = setups["torch"]()
    assert (setups["ours"]() - expected).abs().max() <= tolerance * expected.abs().max()
    times = time_in_turns(setups, device="cpu", seconds=arguments.seconds, clock=calm_clock("cpu"))
    milliseconds = {f"{setup}_ms": 1e3 * float(np.median(seconds)) for setup, seconds in times.items()}
    return milliseconds | {
        "speed_up": float(np.median(times["torch"] / times["ours"])),
        "speed_up_of_product": float(np.median(times["product"] / times["ours"])),
        "billions_a_second": 2e-6 * images * heads * tokens**2 * features / milliseconds["ours_ms"],
        "rounds": len(times["ours"]),
    }


def build_configurations(packed: Tensor, heads: int, features: int, *, int8: bool) -> dict[str, Callable[[], Tensor]]:
    images, tokens, _ = packed.shape
    parts = packed.view(images, tokens, 3, heads, features)
    queries, keys, values = parts.unbind(2)
    apart = [numbers.contiguous() for numbers in parts.permute(2, 0, 3, 1, 4)]

    def by_torch() -> Tensor:
        product = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4).unbind(0))
        return product.transpose(1, 2).reshape(images, tokens, heads * features)

    return {
        "ours": lambda: attention(queries, keys, values, features**-0.5, int8=int8),
        "torch": by_torch,
        "product": lambda: F.scaled_dot_product_attention(*apart),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="per configuration and shape; at least 7 rounds")
    parser.add_argument("--output", type=Path, help="CSV of the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
