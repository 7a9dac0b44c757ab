"""What is slower or absent on a machine is said, once."""

from pathlib import Path

import pytest
import torch
from tiny import VIT, dense_model, photographs

import lpvit
from lpvit.cli.bench import Bench, timed
from lpvit.cli.models import described
from lpvit.measure import precision
from lpvit.sparse import operator

CPU = torch.device("cpu")


@pytest.fixture
def pruned() -> lpvit.Pruned:
    return lpvit.prune(dense_model("vit"), photographs("vit").split(8), budget=0.6, block_shape=(8, 4))


@pytest.mark.parametrize(("factor", "warned"), [(8.1, True), (1.05, False), (0.5, False)])
def test_a_precision_that_is_slower_than_float32_is_a_warning_once(
    factor: float, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pruned: lpvit.Pruned
) -> None:
    monkeypatch.setattr(precision, "slowdown", lambda *_: factor)
    precision._warn.cache_clear()
    for _ in range(2):
        lpvit.sparsify(pruned, precision="bfloat16")
    message = "precision 'bfloat16': bfloat16 takes 8.1 times as long as float32 on this machine; use float32 here"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"].count(message) == warned


def test_a_slowdown_is_measured_and_float32_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.01 < precision.slowdown(torch.bfloat16, CPU, torch.get_num_threads()) < 1000
    monkeypatch.setattr(precision, "slowdown", lambda *_: pytest.fail("timed"))
    precision.warn_if_slower(torch.float32, CPU, "key")


def test_without_a_kernel_it_is_said_in_a_warning_in_the_model_and_by_the_commands(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pruned: lpvit.Pruned, tmp_path: Path
) -> None:
    lpvit.save(pruned, file := tmp_path / "model.safetensors", options=VIT)
    reason = "no C++ compiler found; install g++"
    monkeypatch.setattr("lpvit.inference.sparsify.path_of", lambda _: operator.Path("masked dense", reason))
    monkeypatch.setattr("lpvit.cli.bench.path_for", lambda *_: operator.Path("masked dense", reason))
    monkeypatch.setattr("lpvit.cli.models.build_obstacle", lambda: reason)
    operator.log_once.cache_clear()
    model = lpvit.sparsify(pruned)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.message == f"no kernel, pruned layers stay dense and take as long as before: {reason}"
    layers = [choice for choice in model.lpvit_choices if choice.kind == "layer"]  # type: ignore[union-attr]
    assert len(layers) == len(pruned.keep_masks)
    assert {choice.reason for choice in layers} == {reason}
    assert f"no CPU kernel on this machine, pruned layers run dense here: {reason}" in described(file)
    lines = list(timed([file], Bench(batch_sizes=[1], seconds=0.01)))
    assert f"no kernel, pruned layers take as long as dense ones: {reason}" in lines
