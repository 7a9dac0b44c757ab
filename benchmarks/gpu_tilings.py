"""Compiles the tilings of the GPU kernel in parallel processes and selects them, before timing."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from sparse_linear import random_mask
from torch import nn
from triton import Config
from triton.runtime.errors import OutOfResources

from lpvit.models.analysis.layers import LayerSpec
from lpvit.sparse import BlockSparseLinear, triton_kernel

PROCESSES = 14
DTYPE = torch.bfloat16


class _NotWorthTimingError(Exception):
    pass


def compile_tilings(block_shapes: Iterable[tuple[int, int]], precisions: Iterable[str | None]) -> int:
    """Compiles the kernel in all its tilings, which Triton caches on disk; returns their number."""
    tilings = range(len(triton_kernel._tilings()))
    tasks = list(itertools.product(tilings, block_shapes, (False, True), precisions))
    with ProcessPoolExecutor(min(os.cpu_count() or 1, PROCESSES), mp_context=get_context("spawn")) as pool:
        list(pool.map(_compile_tiling, tasks))
    return len(tasks)


def _compile_tiling(task: tuple[int, tuple[int, int], bool, str | None]) -> None:
    """Runs a layer once in one tiling, if it is among the candidates."""
    number, block_shape, fused, precision = task
    worth_timing = triton_kernel._worth_timing

    def only_this(tilings: list[Config], arguments: dict[str, Any], **meta: Any) -> list[Config]:
        if not (left := worth_timing([tilings[number]], arguments, **meta)):
            raise _NotWorthTimingError
        return left

    linear = nn.Linear(16 * block_shape[1], 16 * block_shape[0], device="cuda", dtype=DTYPE)
    sparse = BlockSparseLinear.from_linear(linear, torch.ones(16, 16).bool(), block_shape, fused, precision)
    triton_kernel._kernel.early_config_prune = only_this
    triton_kernel._kernel.cache.clear()
    with torch.no_grad(), contextlib.suppress(_NotWorthTimingError, OutOfResources):
        sparse(torch.randn(1024, linear.in_features, device="cuda", dtype=DTYPE))


def choose_tilings(
    layers: Iterable[LayerSpec],
    batches: Iterable[int],
    block_shapes: Iterable[tuple[int, int]],
    precisions: Iterable[str | None],
) -> None:
    """Selects the tiling of every layer with half of the blocks, which Triton caches on disk too."""
    start = time.monotonic()
    for layer, batch, block_shape, precision in itertools.product(layers, batches, block_shapes, precisions):
        linear = nn.Linear(layer.in_features, layer.out_features, device="cuda", dtype=DTYPE)
        keep_mask = random_mask(layer.shape, block_shape, 0.5)
        sparse = BlockSparseLinear.from_linear(linear, keep_mask, block_shape, layer.role == "fc1", precision)
        sparse(torch.randn(batch * layer.tokens, layer.in_features, device="cuda", dtype=DTYPE))
        height, width = block_shape
        print(
            f"{layer.role}, batch {batch}, {height}x{width}, {precision or DTYPE}: {triton_kernel._kernel.best_config}"
        )
    print(f"chosen in {time.monotonic() - start:.0f} s\n", flush=True)
