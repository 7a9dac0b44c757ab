"""Timing with a clock that tells what it is told, and benchmarks of a small ViT."""

import time
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from lpvit.allocation.latency import milliseconds
from lpvit.allocation.settings import FACTORS
from lpvit.api.pruned import Pruned
from lpvit.api.quantise import quantise
from lpvit.benchmark import speed as benchmarks
from lpvit.benchmark.settings import Benchmark
from lpvit.benchmark.speed import benchmark, build_configurations, largest_batch, require_equal, speed_table
from lpvit.costs.cost import measure_costs
from lpvit.errors import LpvitError
from lpvit.inference import sparsify as sparse_model
from lpvit.inference.layer_latency import measure_latency
from lpvit.measure import timing
from lpvit.measure.timing import LEAST_ROUNDS, WARM_UP, calm_clock, median_interval, time_in_turns
from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.sources.timm import create_model
from lpvit.quantisation.settings import Quantisation
from lpvit.store.schemas import CHOICES, ENERGY, LATENCY, SPEED
from lpvit.store.tables import write_parquet
from lpvit.structures.blocks.masks import expand_keep_masks, zero_pruned

BLOCK_SHAPE = (16, 16)
IMAGE = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 1, "num_heads": 2}


class Clock:
    """Moves only when a function is called, and writes down which."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def function(self, name: str, *seconds: float):
        def call() -> None:
            self.now += seconds[min(self.calls.count(name), len(seconds) - 1)]
            self.calls.append(name)

        return call


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    both = dict.fromkeys(("perf_counter", "process_time"), lambda: clock.now)
    monkeypatch.setattr(timing, "time", SimpleNamespace(**both))
    return clock


# --- timing ----------------------------------------------------------------------------------------------------------


def test_arms_take_turns_backwards_every_other_round_after_a_warm_up_that_does_not_count(clock: Clock) -> None:
    functions = {"a": clock.function("a", *[9.0] * WARM_UP, 0.5), "b": clock.function("b", *[9.0] * WARM_UP, 0.25)}
    times = time_in_turns(functions, device="cpu", seconds=6)
    rounds = 16  # 2 setups x 6 s at 0.75 s a round
    assert {setup: of_setup.tolist() for setup, of_setup in times.items()} == {
        "a": [0.5] * rounds,
        "b": [0.25] * rounds,
    }
    assert "".join(clock.calls) == "ab" * WARM_UP + "abba" * (rounds // 2)


def test_a_clock_of_your_own_is_read() -> None:
    ticks = iter(range(1000))
    times = time_in_turns({"a": int}, device="cpu", seconds=0, clock=lambda: float(next(ticks)))
    assert times["a"].tolist() == [1.0] * LEAST_ROUNDS


def test_one_thread_is_timed_on_the_clock_of_the_processor() -> None:
    threads = torch.get_num_threads()
    for count, expected in ((1, time.process_time), (2, time.perf_counter)):
        torch.set_num_threads(count)
        assert calm_clock("cpu") is expected
    torch.set_num_threads(1)
    assert calm_clock("cuda") is time.perf_counter
    torch.set_num_threads(threads)


def test_slow_arms_have_enough_rounds_for_an_interval(clock: Clock) -> None:
    times = time_in_turns({"slow": clock.function("slow", 100.0)}, device="cpu", seconds=1)
    assert len(times["slow"]) == LEAST_ROUNDS


def test_the_interval_of_a_median_holds_the_true_one_in_95_of_100_cases() -> None:
    random = np.random.default_rng(0)
    for count in (7, 12, 40, 301):
        intervals = [median_interval(random.exponential(size=count)) for _ in range(2000)]
        held = np.mean([interval.low <= np.log(2) <= interval.high for interval in intervals])
        assert 0.945 < held < 0.995
        assert all(interval.low <= interval.median <= interval.high for interval in intervals)


def test_of_a_few_times_the_interval_is_all_of_them() -> None:
    assert median_interval([3.0]) == timing.Interval(3.0, 3.0, 3.0)
    assert median_interval([4.0, 1.0, 2.0]) == timing.Interval(2.0, 1.0, 4.0)


def test_speed_ups_are_taken_round_by_round_over_the_faster_dense_configuration() -> None:
    busy = np.array([1.0, 1.0, 1.0, 7.0, 7.0, 7.0, 7.0])  # the machine, by rounds
    times = {"dense": 0.4 * busy, "dense_compiled": 0.2 * busy, "sparse": 0.1 * busy}
    table = speed_table(times, 4).set_index("configuration")
    assert table["reference"].tolist() == ["dense_compiled"] * 3
    for column in ("speed_up", "speed_up_low", "speed_up_high"):
        assert table[column].tolist() == pytest.approx([0.5, 1, 2])
    sparse = table.loc["sparse", ["batch_size", "rounds", "milliseconds", "milliseconds_low", "milliseconds_high"]]
    assert sparse.tolist() == pytest.approx([4, 7, 700, 100, 700])
    assert table.loc["sparse", "images_per_second"] == pytest.approx(4 / 0.7)


# --- configurations --------------------------------------------------------------------------------------------------


def models() -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """A dense ViT, the same with about half of its blocks zero, and their keep masks."""
    dense = create_model("vit_tiny_patch16_224", 10, IMAGE).requires_grad_(False)
    nn.init.normal_(dense.head.weight)  # timm starts with so small ones that logits hardly depend on the layers
    generator = torch.Generator().manual_seed(0)
    keep_masks = {
        layer.name: torch.rand(layer.out_features // 16, layer.in_features // 16, generator=generator) < 0.5
        for layer in prunable_layers(matrix_layers(dense), ["qkv", "proj", "fc1", "fc2"])
    }
    pruned = deepcopy(dense)
    zero_pruned(dict(pruned.named_parameters()), expand_keep_masks(pruned, keep_masks, BLOCK_SHAPE))
    return dense, pruned, keep_masks


def test_an_arm_with_wrong_logits_is_refused_by_name() -> None:
    dense, pruned, _ = models()
    images = torch.randn(2, 3, 16, 16)
    setups = build_configurations(
        ["dense", "masked", "sparse"], {"dense": dense, "masked": pruned, "sparse": pruned}, images
    )
    assert torch.equal(setups["sparse"](), pruned(images))
    with pytest.raises(LpvitError, match=r"^benchmark: 'sparse' is off by .* more than 0.0001 in float32; it is not"):
        build_configurations(["dense", "sparse"], {"dense": dense, "masked": pruned, "sparse": dense}, images)


def test_the_tolerance_is_that_of_the_dtype_and_nan_is_never_within_it() -> None:
    logits = torch.tensor([[1.0, -2.0]])
    require_equal("sparse", logits + 1e-4, logits, "float32")
    with pytest.raises(LpvitError, match=r"off by 0\.005 of the largest logit"):
        require_equal("sparse", logits + 1e-2, logits, "float32")
    require_equal("sparse", (logits + 1e-2).bfloat16(), logits.bfloat16(), "bfloat16")
    with pytest.raises(LpvitError, match="off by nan"):
        require_equal("sparse", logits * torch.nan, logits, "bfloat16")


def test_a_model_that_cannot_be_compiled_names_its_arm_and_the_reason(monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler found\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    dense, pruned, _ = models()
    with pytest.raises(
        LpvitError, match=r"'dense_compiled' cannot be compiled here \(no C\+\+ compiler found\); leave"
    ):
        build_configurations(["dense_compiled"], {"dense": dense, "masked": pruned}, torch.randn(1, 3, 16, 16))


def test_the_largest_batch_is_the_last_power_of_two_that_fits() -> None:
    def runs(images: int) -> None:
        if images > 40:
            raise torch.cuda.OutOfMemoryError

    assert largest_batch(runs, 1024) == 32
    assert largest_batch(runs, 16) == 16


def test_a_benchmark_says_what_was_measured_where_and_which_layers_stayed_dense(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        sparse_model, "_timed", lambda _, forms, __: {"dense": 1e-3, "float32": 5e-4 if forms[0].gelu else 2e-3}
    )
    monkeypatch.setitem(benchmarks.LARGEST_BATCH, "cpu", 4)
    settings = Benchmark(batch_sizes=["largest", 1, 4], seconds=0.01, energy_seconds=0.01)
    measured = benchmark(*models(), BLOCK_SHAPE, settings, "cpu")

    speed = measured.speed
    assert speed[["configuration", "batch_size"]].apply(tuple, axis=1).tolist() == [
        (setup, size) for size in (1, 4) for setup in ("dense", "masked", "sparse")
    ]
    assert (speed["rounds"] >= LEAST_ROUNDS).all()
    assert (speed[["milliseconds_low", "milliseconds", "milliseconds_high"]].diff(axis=1).iloc[:, 1:] >= 0).all(
        axis=None
    )
    facts = {"dtype": "float32", "device": "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__}
    assert all((speed[name] == value).all() for name, value in facts.items())
    assert (speed["device_name"].str.len() > 0).all()

    choices = measured.choices
    layers, attention = (choices[choices["kind"] == kind] for kind in ("layer", "attention"))
    assert layers["batch_size"].tolist() == [1] * 4 + [4] * 4
    assert layers["by_kernel"].tolist() == [layer.endswith("fc1") for layer in layers["module"]]
    assert set(layers.loc[~layers["by_kernel"], "reason"]) == {"2.000 ms by our kernel, 1.000 ms without it"}
    assert attention[["batch_size", "module"]].apply(tuple, axis=1).tolist() == [
        (size, "blocks.0.attn") for size in (1, 4)
    ]
    assert (attention["by_kernel"] == (attention["kernel_milliseconds"] < attention["torch_milliseconds"])).all()
    assert measured.energy["configuration"].unique().tolist() == ["dense", "masked", "sparse"]
    write_parquet(speed.assign(stage="pruned"), tmp_path / "speed.parquet", SPEED)
    write_parquet(choices, tmp_path / "choices.parquet", CHOICES)
    write_parquet(measured.energy, tmp_path / "energy.parquet", ENERGY)


def test_a_model_in_int8_is_timed_against_the_dense_one_alone() -> None:
    dense, pruned, keep_masks = models()
    quantised = quantise(Pruned(pruned, keep_masks, BLOCK_SHAPE), quantisation=Quantisation(rounding="nearest"))
    settings = Benchmark(batch_sizes=(2,), seconds=0.01, energy_seconds=0.01)
    measured = benchmark(dense, quantised.model, keep_masks, BLOCK_SHAPE, settings, "cpu")
    assert set(measured.speed["configuration"]) == set(measured.energy["configuration"]) == {"dense", "sparse"}
    assert set(measured.choices["precision"]) <= {"int8", "float32"}


def test_dense_alone_can_be_measured_and_has_no_choices(tmp_path: Path) -> None:
    settings = Benchmark(configurations=["dense"], batch_sizes=[1], seconds=0.01, energy_seconds=0.01)
    measured = benchmark(*models(), BLOCK_SHAPE, settings, "cpu")
    write_parquet(measured.choices, tmp_path / "choices.parquet", CHOICES)
    assert measured.speed["speed_up"].tolist() == [1]


# --- layers ----------------------------------------------------------------------------------------------------------


def test_every_shape_of_layer_is_timed_once_at_the_sparsities_that_its_blocks_give(tmp_path: Path) -> None:
    costs = measure_costs(create_model("vit_tiny_patch16_224", 10, IMAGE | {"depth": 2}))
    options = {"batch_size": 2, "dtype": torch.float32, "device": "cpu", "seconds": 0.001}
    table = measure_latency(costs, (32, 20), sparsities=(0.5, 0.51, 0.9), **options)
    write_parquet(table, tmp_path / "latency.parquet", LATENCY)
    shapes = table.groupby(["out_features", "in_features", "tokens"])
    assert set(shapes.groups) == {(144, 48, 17), (48, 48, 17), (192, 48, 17), (48, 192, 17)}  # no patches, no head
    assert (shapes["sparsity"].first() == 0).all()
    square = shapes.get_group((48, 48, 17))  # 2 x 3 blocks, those at the edges of 16 rows or 8 columns
    assert len(square) == 3  # half of the blocks is meant twice
    assert all(round(48 * 48 * sparsity) % 8 == 0 for sparsity in square["sparsity"])
    assert (milliseconds(table, 48, 48, 17, [0.0, 0.5, 1.0]) > 0).all()


def test_a_sparse_layer_is_timed_against_the_dense_one_and_by_the_image(clock: Clock, monkeypatch) -> None:
    def layer(*seconds: float) -> nn.Module:
        call, module = clock.function(str(seconds), *seconds), nn.Identity()
        module.forward = lambda _: call()
        return module

    busy = [9.0] * WARM_UP + [0.4] * LEAST_ROUNDS + [4.0] * (WARM_UP + LEAST_ROUNDS) + [0.4]
    dense = layer(*busy)
    dense.to = lambda *_: dense
    monkeypatch.setattr("lpvit.inference.layer_latency.nn.Linear", lambda *_: dense)
    layers = {0.3: layer(0.3), 0.5: layer(2.0), 0.9: layer(0.1)}  # the machine is busy while the second is timed
    monkeypatch.setattr("lpvit.inference.layer_latency._block_sparse", lambda *_: layers)
    costs = pd.DataFrame([("qkv", 32, 32, 5)], columns=["role", "out_features", "in_features", "tokens"])
    table = measure_latency(costs, (16, 16), batch_size=8, dtype=torch.float32, device="cpu", seconds=0.1)
    assert table["sparsity"].tolist() == [0, 0.3, 0.5, 0.9]
    assert table["milliseconds"].tolist() == pytest.approx([50, 37.5, 25, 12.5])


@pytest.mark.gpu
def test_a_gpu_is_benchmarked_in_bfloat16_at_the_largest_batch() -> None:
    settings = Benchmark(
        configurations=["dense", "masked", "sparse", "dense_compiled", "sparse_compiled"],
        batch_sizes=[1, "largest"],
        dtype="bfloat16",
        seconds=0.1,
        energy_seconds=0.5,
    )
    measured = benchmark(*models(), BLOCK_SHAPE, settings, "cuda")
    assert set(measured.speed["kernel"]) == {"triton"}
    assert measured.speed["batch_size"].max() == benchmarks.LARGEST_BATCH["cuda"]
    assert len(measured.speed) == 10


def test_factors_are_timed_at_ranks_that_save_something_and_layers_without_any_alone() -> None:
    rows = [("fc1", 64, 48), ("scorer", 1, 48)]
    costs = pd.DataFrame(
        [
            {"layer": name, "role": name, "out_features": height, "in_features": width, "tokens": 3}
            for name, height, width in rows
        ]
    )
    table = measure_latency(costs, FACTORS, batch_size=2, dtype=torch.float32, device="cpu", seconds=0.001)
    assert (table[["block_rows", "block_columns"]] == 0).all(axis=None)
    assert (table["milliseconds"] > 0).all()
    of_layer = table[table["out_features"] == 64]
    ranks = (1 - of_layer["sparsity"].iloc[1:]) * 64 * 48 / (64 + 48)
    assert of_layer["sparsity"].iloc[0] == 0
    assert sorted({round(rank) for rank in ranks if rank > 7}) == [8, 16, 24]
    assert table.loc[table["out_features"] == 1, "sparsity"].tolist() == [0]
