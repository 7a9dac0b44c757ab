import logging
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from lpvit.data.preprocessing import Preprocessing
from lpvit.errors import LpvitError
from lpvit.settings import Compute
from lpvit.stages.training import history_table
from lpvit.store.artifacts import load
from lpvit.store.schemas import HISTORY
from lpvit.store.tables import write_parquet
from lpvit.strategies import module_names
from lpvit.structures.blocks.masks import expand_keep_masks, verify_pruned, zero_pruned
from lpvit.training.augmentation import BatchAugmentation
from lpvit.training.evaluation import Accuracy
from lpvit.training.gradual import GradualPruning
from lpvit.training.job import Training
from lpvit.training.nodes import Nodes
from lpvit.training.settings import Recipe
from lpvit.training.splits import SplitLoaders, held_out_of
from lpvit.training.train import train
from lpvit.training.trainer import Trainer, learning_rate_schedule

CPU = torch.device("cpu")
CLASSES = 4
ALL_RANDOM_PARTS = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "ema_decay": 0.9, "label_smoothing": 0.1}


class KilledError(Exception):
    """Stands for a kill in the middle of an epoch."""


@dataclass
class ToyLoader:
    """Training order by the epoch, alike in every rank; validation in order."""

    images: Tensor
    labels: Tensor
    batch_size: int  # over all ranks
    rank: int
    world_size: int
    shuffle: bool
    fault: str | None
    device: torch.device
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.images))
        if self.shuffle:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.epoch))
        for step, batch in enumerate(order.split(self.batch_size)):
            mine = batch[self.rank :: self.world_size]
            if self.shuffle and (self.epoch, step) == (2, 1):
                self.fail(mine)
            yield self.images[mine].to(self.device), self.labels[mine].to(self.device)

    def fail(self, batch: Tensor) -> None:
        if self.fault == "exception":
            raise KilledError
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "nan":
            self.images[batch] = math.nan


@dataclass
class ToyData:
    """Makes the loaders of a process: noisy images of one pattern per class."""

    images: int = 32
    batch_size: int = 8
    fault: str | None = None

    def __call__(self, rank: int, world_size: int, device: torch.device) -> tuple[ToyLoader, ToyLoader]:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(self.images) % CLASSES
        patterns = torch.randn(CLASSES, 1, 8, 8, generator=generator)
        images = patterns[labels] + 0.3 * torch.randn(self.images, 1, 8, 8, generator=generator)
        validation = ToyLoader(images.clone(), labels, 5 * world_size, rank, world_size, False, None, device)
        return ToyLoader(images, labels, self.batch_size, rank, world_size, True, self.fault, device), validation


def toy_model(distilled: bool = False, drop: float = 0.0, classes: int = CLASSES, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    name = "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_224"
    size = options.pop("img_size", 8)
    shape = {"img_size": size, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}
    data_config = {"input_size": (1, size, size), "mean": (0.5,), "std": (0.5,)} | options
    return timm.create_model(
        name, num_classes=classes, drop_path_rate=drop, proj_drop_rate=drop, pretrained_cfg_overlay=data_config, **shape
    )


def recipe(**settings: Any) -> Recipe:
    return Recipe(**({"epochs": 3, "batch_size": 8, "learning_rate": 3e-3} | settings))


def fit(
    folder: Path, settings: Recipe, data: ToyData | None = None, model: nn.Module | None = None, **options: Any
) -> tuple[dict[str, Tensor], pd.DataFrame]:
    options = {"device": CPU, "resume_file": folder / "training.pt", "fingerprint": "toy"} | options
    return train(Training(model or toy_model(), settings, data or ToyData(), **options))[:2]


def random_run(folder: Path, fault: str | None = None, **options: Any) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """A run in which everything random is on."""
    settings = recipe(**ALL_RANDOM_PARTS, clip_grad_norm=1.0)
    return fit(folder, settings, ToyData(fault=fault), toy_model(drop=0.2), **options)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def checkerboard(model: nn.Module, block: int) -> dict[str, Tensor]:
    """Keep masks with every second block gone."""
    masks = {}
    for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc1"):
        rows, columns = (side // block for side in model.get_submodule(name).weight.shape)
        masks[name] = (torch.arange(rows)[:, None] + torch.arange(columns)) % 2 == 0
    return masks


def test_training_learns_a_learnable_problem(tmp_path: Path) -> None:
    _, history = fit(tmp_path, recipe(epochs=8, learning_rate=1e-2))
    assert history["train_loss"].iloc[-1] < 0.5 * history["train_loss"].iloc[0]
    assert history["top1"].iloc[-1] > 90
    assert history["epoch"].tolist() == list(range(1, 9))
    write_parquet(history_table(history), tmp_path / "history.parquet", HISTORY)


def held_out() -> Callable[..., ToyLoader]:
    """Makes the loader of other images of the same patterns."""

    def make(rank: int, world_size: int, device: torch.device) -> ToyLoader:
        loader = ToyData(images=24)(rank, world_size, device)[1]
        loader.images = loader.images.flip(0)
        loader.labels = loader.labels.flip(0)
        return loader

    return make


def test_the_best_epoch_on_held_out_images_is_kept_and_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([(50, 1.0), (20, 9.0), (90, 1.0), (90, 0.5), (10, 9.0), (30, 1.0)])  # validation, held out, ...
    states: list[dict[str, Tensor]] = []

    def validate(trainer: Trainer, loader: object, epoch: int, shown: bool) -> Accuracy:
        states.append({name: value.clone() for name, value in trainer.evaluated.state_dict().items()})
        top1, loss = next(accuracies)
        return Accuracy(24, top1, 100.0, loss)

    monkeypatch.setattr(Trainer, "validate", validate)
    state, history = fit(tmp_path, recipe(epochs=3), make_held_out=held_out())
    assert history["held_out_top1"].tolist() == [20, 90, 30]
    assert history["top1"].tolist() == [50, 90, 10]
    assert_same(state, states[3])
    with pytest.raises(AssertionError):
        assert_same(state, states[-1])


def test_the_epoch_that_was_best_survives_an_interruption(tmp_path: Path) -> None:
    settings = recipe(epochs=4, learning_rate=1e-2)
    undisturbed, expected = fit(tmp_path / "one", settings, make_held_out=held_out())
    with pytest.raises(KilledError):
        fit(tmp_path / "two", settings, ToyData(fault="exception"), make_held_out=held_out())
    state, history = fit(tmp_path / "two", settings, make_held_out=held_out())
    assert_same(state, undisturbed)
    assert history["held_out_top1"].tolist() == expected["held_out_top1"].tolist()


def test_images_that_choose_the_epoch_are_of_every_class_and_not_trained_on() -> None:
    images = pd.DataFrame({"path": [f"{number}.png" for number in range(40)], "label": [0, 1] * 20})
    trained, chosen = held_out_of(images, 0.2)
    assert set(trained["path"]) & set(chosen["path"]) == set()
    assert len(trained) + len(chosen) == len(images)
    assert chosen["label"].value_counts().to_dict() == {0: 4, 1: 4}
    assert held_out_of(images.iloc[::-1], 0.2)[1]["path"].tolist()[::-1] == chosen["path"].tolist()
    assert len(held_out_of(images, 0)[1]) == 0
    with pytest.raises(LpvitError, match="choose_by: only the last epoch"):
        recipe(choose_by=0.1, pruned_over=0.5)


def test_the_model_that_is_passed_in_stays_as_it_is(tmp_path: Path) -> None:
    model, teacher = toy_model(), toy_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(tmp_path, recipe(epochs=1, distillation="hard", teacher="dense"), model=model, teacher=teacher)
    assert_same(before, model.state_dict())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_training_learns_in_mixed_precision(tmp_path: Path, precision: str, device: str) -> None:
    settings = recipe(epochs=8, learning_rate=1e-2, precision=precision)
    state, history = fit(tmp_path, settings, device=torch.device(device))
    assert history["train_loss"].iloc[-1] < 0.5 * history["train_loss"].iloc[0]
    assert state["head.weight"].dtype == torch.float32


def test_learning_rates_are_those_worked_out_by_hand() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = learning_rate_schedule(
        optimizer, recipe(epochs=3, learning_rate=1.0, min_learning_rate=0.2, warmup_epochs=1), steps_per_epoch=4
    )
    rates = [optimizer.param_groups[0]["lr"]]
    for step in range(1, 13):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    cosine = [0.6 + 0.4 * math.cos(math.pi * t / 8) for t in range(9)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, *cosine])
    assert rates[4] == 1.0
    assert rates[-1] == pytest.approx(0.2)


def test_history_tells_the_learning_rate_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    settings = recipe(epochs=3, learning_rate=1e-3, min_learning_rate=0, warmup_epochs=1)
    assert fit(tmp_path, settings)[1]["learning_rate"].tolist() == pytest.approx([1e-3, 5e-4, 0])


def test_biases_norms_and_embeddings_do_not_decay(tmp_path: Path) -> None:
    model = toy_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)  # equal tokens: gradients vanish everywhere but in the head
    state, _ = fit(tmp_path, recipe(epochs=1, weight_decay=10, learning_rate=1e-3), model=model)
    assert state["blocks.0.mlp.fc1.weight"].max() < 0.49
    for name in ("blocks.0.mlp.fc1.bias", "blocks.0.norm1.weight", "pos_embed"):
        assert state[name].sub(0.5).abs().max() < 0.006, name  # at most lr a step, from round-off in the gradient


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_pruned_weights_stay_exactly_zero_under_decay_clipping_momentum_and_averaging(
    tmp_path: Path, ema_decay: float | None
) -> None:
    model = toy_model()
    masks = checkerboard(model, 4)
    expanded = expand_keep_masks(model, masks, (4, 4))
    settings = recipe(weight_decay=0.5, clip_grad_norm=0.1, ema_decay=ema_decay, mixup=0.8)
    state, _ = fit(tmp_path, settings, model=model, keep_masks=masks, block_shape=(4, 4))
    saved = load(tmp_path / "training.pt", "training")
    for name, keep in expanded.items():
        for weights in (state[name], saved["model"][name]):
            assert not weights[~keep].any()
            assert weights[keep].all()
    moments = [entry["exp_avg"] for entry in saved["optimizer"]["state"].values()]
    shapes = {tuple(keep.shape) for keep in expanded.values()}
    assert any(tuple(moment.shape) in shapes and (moment == 0).float().mean() == 0.5 for moment in moments)


def test_gradients_of_pruned_weights_do_not_count_in_the_clipped_norm(tmp_path: Path) -> None:
    model = toy_model()
    masks = checkerboard(model, 4)
    expanded = expand_keep_masks(model, masks, (4, 4))
    zero_pruned(model.state_dict(), expanded)
    images, labels = next(iter(ToyData(images=8)(0, 1, CPU)[0]))
    nn.functional.cross_entropy(model.train()(images), labels).backward()
    alive = sum(
        (parameter.grad * expanded.get(name, torch.tensor(True))).square().sum()
        for name, parameter in model.named_parameters()
    )
    norms: list[float] = []
    original = nn.utils.clip_grad_norm_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", lambda *args: norms.append(float(original(*args))))
        data = ToyData(images=8)
        fit(tmp_path, recipe(epochs=1, clip_grad_norm=1.0), data, toy_model(), keep_masks=masks, block_shape=(4, 4))
    assert norms == pytest.approx([math.sqrt(alive)], rel=1e-5)


def test_averaged_weights_follow_their_formula_and_are_what_is_returned(tmp_path: Path) -> None:
    model = toy_model()
    start = model.head.weight.detach().clone()
    state, _ = fit(tmp_path, recipe(epochs=1, ema_decay=0.75), ToyData(images=8), model)  # one step
    last = load(tmp_path / "training.pt", "training")["model"]["head.weight"]
    assert not torch.equal(last, start)
    torch.testing.assert_close(state["head.weight"], 0.75 * start + 0.25 * last)


def test_an_interrupted_run_continues_to_the_very_same_weights(tmp_path: Path) -> None:
    undisturbed, history = random_run(tmp_path / "undisturbed")
    with pytest.raises(KilledError):
        random_run(tmp_path / "killed", fault="exception")
    assert len(load(tmp_path / "killed" / "training.pt", "training")["history"]) == 1
    resumed, resumed_history = random_run(tmp_path / "killed")
    assert_same(undisturbed, resumed)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), resumed_history.drop(columns="seconds"))


@dataclass
class Interrupted:
    """The loaders of a dataset, and a fault in the second epoch: before its first step, or after some."""

    loaders: SplitLoaders
    at: int | None

    def __call__(self, *place: Any) -> Any:
        training, validation = self.loaders(*place)
        return _Faulty(training, self.at), validation


class _Faulty:
    def __init__(self, loader: Any, at: int | None) -> None:
        self.loader, self.at = loader, at

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(self.loader):
            if self.loader.plan.epoch == 2 and step == self.at:
                raise KilledError
            yield batch


@pytest.mark.parametrize("loader", module_names("lpvit.data.loaders"))
def test_with_every_loader_an_interrupted_run_continues_to_the_very_same_weights(tmp_path: Path, loader: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (12, 12, 12, 3), dtype=np.uint8)
    for number, pixels in enumerate(colours):
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    rows = {"path": [f"{number}.jpg" for number in range(12)], "label": [number % CLASSES for number in range(12)]}
    images = pd.concat([pd.DataFrame(rows).assign(split=split, problem=None) for split in ("train", "validation")])
    settings = recipe(epochs=2, batch_size=4, crop_scale=(0.3, 1.0), **ALL_RANDOM_PARTS)
    preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    dataset, compute = {"root": tmp_path, "loader": loader}, Compute(threads=1)
    loaders = SplitLoaders(images, dataset, preprocessing, settings, compute)
    options = {"drop_path_rate": 0.3, "num_classes": CLASSES, "in_chans": 3, "img_size": 8, "patch_size": 4}
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=16, depth=2, num_heads=2, **options)

    def run(name: str, at: int | None = None) -> dict[str, Tensor]:
        file = tmp_path / f"{name}.pt"
        return train(Training(model, settings, Interrupted(loaders, at), file, "", CPU, checkpoint_minutes=1e-9)).state

    undisturbed = run("undisturbed")
    for at in (0, 2):  # after an epoch, and within one
        with pytest.raises(KilledError):
            run(f"killed at {at}", at)
        assert_same(undisturbed, run(f"killed at {at}"))


def test_a_run_killed_by_the_system_continues_to_the_very_same_weights(tmp_path: Path) -> None:
    undisturbed, _ = random_run(tmp_path / "undisturbed")
    program = "import sys; from pathlib import Path; import test_train as t; t.random_run(Path(sys.argv[1]), 'kill')"
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "killed")], cwd=Path(__file__).parent, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert_same(undisturbed, random_run(tmp_path / "killed")[0])


def test_a_long_epoch_is_told_of_whenever_its_state_is_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _, history = random_run(tmp_path, checkpoint_minutes=1e-9)
    lines = re.findall(r"epoch (\d+)/(\d+), step (\d+)/(\d+): loss (\d+\.\d+) so far, saved", caplog.text)
    assert {(epoch, epochs) for epoch, epochs, *_ in lines} == {(str(n), str(len(history))) for n in history["epoch"]}
    last = [float(loss) for *_, step, steps, loss in lines if step == steps]
    assert last == pytest.approx(history["train_loss"].tolist(), abs=1e-4)


def test_a_run_killed_within_an_epoch_goes_on_at_the_step_where_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    undisturbed, history = random_run(tmp_path / "undisturbed")
    program = (
        "import sys; from pathlib import Path; import test_train as t;"
        "t.random_run(Path(sys.argv[1]), 'kill', checkpoint_minutes=1e-9)"
    )
    folder = str(tmp_path / "killed")
    killed = subprocess.run([sys.executable, "-c", program, folder], cwd=Path(__file__).parent, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed, resumed_history = random_run(tmp_path / "killed")
    assert "resuming after epoch 1, step 1" in caplog.text
    assert_same(undisturbed, resumed)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), resumed_history.drop(columns="seconds"))


@pytest.mark.parametrize("accumulation", [2, 3, 8])
def test_accumulated_gradients_are_those_of_the_undivided_batch(tmp_path: Path, accumulation: int) -> None:
    settings: dict[str, Any] = {"epochs": 2, "mixup": 0.8, "ema_decay": 0.9, "clip_grad_norm": 1.0}
    whole, history = fit(tmp_path / "whole", recipe(**settings))
    parts, history_of_parts = fit(tmp_path / "parts", recipe(**settings, accumulation=accumulation))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5, msg=name)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), history_of_parts.drop(columns="seconds"), rtol=1e-4)


def test_the_learning_rate_follows_the_batch_size_if_it_is_told_which_it_is_for(tmp_path: Path) -> None:
    first, _ = fit(tmp_path / "first", recipe(epochs=1, learning_rate=1e-3, learning_rate_batch_size=4))
    second, _ = fit(tmp_path / "second", recipe(epochs=1, learning_rate=2e-3))
    assert_same(first, second)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_gradual_pruning_ends_at_the_counts_and_prunes_by_magnitude_on_the_way(
    tmp_path: Path, block: int, ema_decay: float | None
) -> None:
    model = toy_model()
    masks = checkerboard(model, block)
    options = {"device": CPU, "resume_file": tmp_path / "training.pt", "fingerprint": "toy"}
    settings = recipe(epochs=3, pruned_over=0.5, ema_decay=ema_decay)
    training = Training(model, settings, ToyData(), keep_masks=masks, block_shape=(block, block), **options)  # type: ignore[arg-type]
    trained = train(training)
    for layer, mask in masks.items():
        assert trained.keep_masks[layer].sum() == mask.sum()
    assert any(not torch.equal(trained.keep_masks[layer], mask) for layer, mask in masks.items())
    verify_pruned(trained.state, expand_keep_masks(model, trained.keep_masks, (block, block)))


@pytest.mark.parametrize("pruned_over", [0.01, 0.5, 0.8, 0.99])
@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 8), (1, 16), (2, 32), (1, 32)])
def test_however_short_a_training_that_prunes_is_it_ends_with_as_few_blocks_as_asked_for(
    tmp_path: Path, pruned_over: float, epochs: int, batch_size: int
) -> None:
    model = toy_model()
    masks = checkerboard(model, 4)
    options = {"device": CPU, "resume_file": tmp_path / "training.pt", "fingerprint": "toy"}
    settings = recipe(epochs=epochs, pruned_over=pruned_over, batch_size=batch_size)
    data = ToyData(batch_size=batch_size)
    trained = train(Training(model, settings, data, keep_masks=masks, block_shape=(4, 4), **options))  # type: ignore[arg-type]
    for layer, mask in masks.items():
        assert trained.keep_masks[layer].sum() == mask.sum()


def test_a_training_can_be_watched_in_tensorboard_also_after_a_restart(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = tmp_path / "events"
    fit(tmp_path / "half", recipe(epochs=2), events=events)
    _, history = fit(tmp_path / "whole", recipe(epochs=2, learning_rate=1e-3), events=events)
    shown = event_accumulator.EventAccumulator(str(events))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("top1")] == [
        (row.epoch, pytest.approx(row.top1)) for row in history.itertuples()
    ]


def test_a_model_can_be_its_own_teacher(tmp_path: Path) -> None:
    model = toy_model()
    fit(tmp_path, recipe(epochs=1, distillation="soft", teacher="dense"), model=model, teacher=model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_layer_that_is_not_trained_can_have_a_mask(tmp_path: Path) -> None:
    model = toy_model()
    masks = checkerboard(model, 4)
    model.blocks[0].mlp.fc1.requires_grad_(False)
    state, _ = fit(tmp_path, recipe(epochs=1), model=model, keep_masks=masks, block_shape=(4, 4))
    verify_pruned(state, expand_keep_masks(model, masks, (4, 4)))


def test_gradual_pruning_follows_the_cubic_law() -> None:
    model = toy_model()
    gradual = GradualPruning(model, checkerboard(model, 1), (1, 1), steps=10)
    gone = [
        sum(int((~mask).sum()) for mask in gradual.keep_masks(step).values()) / gradual_total(gradual)
        for step in (0, 1, 5, 10, 12)
    ]
    assert gone == pytest.approx([0, 1 - 0.9**3, 1 - 0.5**3, 1, 1], abs=2e-3)
    assert [step for step in range(15) if gradual.is_due(step)] == list(range(11))


def gradual_total(gradual: GradualPruning) -> int:
    return sum(int((~mask).sum()) for mask in gradual.final.values())


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    state, history = random_run(tmp_path)
    again, same_history = random_run(tmp_path, fault="exception")
    assert_same(state, again)
    pd.testing.assert_frame_equal(history, same_history)


def test_a_resume_file_of_another_training_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fit(tmp_path, recipe(epochs=2, learning_rate=1e-2), fingerprint="old")
    state, history = fit(tmp_path, recipe(epochs=1), fingerprint="new")
    assert "belongs to another training" in caplog.text
    assert len(history) == 1
    assert_same(state, fit(tmp_path / "fresh", recipe(epochs=1))[0])


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    first, second = (fit(tmp_path / str(seed), recipe(epochs=1, mixup=0.8, seed=seed))[0] for seed in (0, 1))
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(LpvitError, match=r"^recipe: the loss in epoch 2, step 2 is nan; lower 'learning_rate'.*$"):
        fit(tmp_path, recipe(), ToyData(fault="nan"))
    saved = load(tmp_path / "training.pt", "training")
    assert len(saved["history"]) == 1
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"batch_size": 9}, {"processes": 2}, "batch_size 9 cannot be split over 2 processes"),
        ({}, {"device": torch.device("cuda"), "processes": 64}, "processes 64 is more than"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LpvitError, match=message):
        fit(tmp_path, recipe(**settings), **options)


def test_a_training_split_without_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LpvitError, match="yields no batch"):
        fit(tmp_path, recipe(), ToyData(images=4))


def test_mixup_leaves_the_last_image_of_an_odd_batch_alone() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 2])
    original = images.clone()
    augment = BatchAugmentation(recipe(mixup=1.0, label_smoothing=0.2), CLASSES, CPU)
    mixed, targets = augment(images, labels)
    assert torch.equal(images, original)
    assert torch.equal(mixed[4], original[4])
    assert not torch.equal(mixed[:4], original[:4])
    assert targets[4].tolist() == pytest.approx([0.05, 0.05, 0.85, 0.05])
    assert targets.sum(dim=1).tolist() == pytest.approx([1.0] * 5)
    share = (targets[0, 0] - 0.05).item() / 0.8
    torch.testing.assert_close(mixed[0], share * original[0] + (1 - share) * original[3])


def test_random_erasing_leaves_the_tensors_of_the_loader_alone() -> None:
    torch.manual_seed(0)
    images = torch.zeros(4, 1, 8, 8)
    erased, targets = BatchAugmentation(recipe(random_erasing=1.0), CLASSES, CPU)(images, torch.arange(4))
    assert not images.any()
    assert all(image.any() for image in erased)
    assert torch.equal(targets, torch.eye(4))


def test_two_processes_train_to_the_weights_of_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings = recipe(epochs=2, ema_decay=0.9, clip_grad_norm=1.0, label_smoothing=0.1)
    masks = checkerboard(toy_model(), 4)
    (one, history), (two, history_of_two) = (
        fit(tmp_path / str(n), settings, processes=n, keep_masks=masks, block_shape=(4, 4)) for n in (1, 2)
    )
    for name, value in one.items():
        weights = [two[name], value]
        if name.endswith("qkv.bias"):  # softmax does not depend on that of the keys: its gradient is rounding alone
            weights = [torch.stack(each.chunk(3))[[0, 2]] for each in weights]
        torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5, msg=name)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), history_of_two.drop(columns="seconds"), rtol=1e-4)
    assert caplog.text.count("epoch 2/2, 0 s left") == 2


def test_two_nodes_train_to_the_weights_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two launchers on one machine, at two addresses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    settings = recipe(epochs=2, ema_decay=0.9)
    nodes = Nodes(("127.0.0.1", "127.0.0.2"), command="env LPVIT_NODE={host}")
    one, history = fit(tmp_path / "one", settings)
    two, history_of_two = fit(tmp_path / "two", settings, processes=2, nodes=nodes)
    for name, value in one.items():
        weights = [two[name], value]
        if name.endswith("qkv.bias"):  # softmax does not depend on that of the keys: its gradient is rounding alone
            weights = [torch.stack(each.chunk(3))[[0, 2]] for each in weights]
        torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5, msg=name)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), history_of_two.drop(columns="seconds"), rtol=1e-4)
    assert not list(tmp_path.glob("lpvit-*"))
