"""Every key of every section changes something, or is refused where it cannot.

A key has another value here and, if it needs them, others beside it. What a section decides is computed with and
without: a trained model, a pruned one, a sample. Keys of `EFFORT` decide only what a computation costs, and other tests
that its result stays. Sections that are read by the workflow alone are followed to the code that reads their keys.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from sections import sections_of
from tiny import dense_model, photographs
from torch import Tensor

import lpvit
from lpvit.allocation.allocators import Allocator
from lpvit.allocation.settings import Budget
from lpvit.benchmark.settings import Benchmark
from lpvit.config.config import Config, Experiment, Published
from lpvit.costs.energy import layer_energy
from lpvit.costs.settings import Energy
from lpvit.data.calibration import sample_calibration
from lpvit.data.layouts import Layout
from lpvit.data.settings import Calibration, Dataset
from lpvit.export.settings import Export
from lpvit.models.settings import Model
from lpvit.quantisation.settings import Quantisation
from lpvit.schemes.edit import add_scheme
from lpvit.schemes.scheme import anneal
from lpvit.schemes.settings import Scheme
from lpvit.settings import Compute, Section
from lpvit.structures.blocks.distortions import Distortion
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.factors.settings import Factors
from lpvit.structures.mixed.settings import Mixed
from lpvit.structures.settings import StructureSettings
from lpvit.structures.width.settings import Width
from lpvit.training.settings import Recipe

IMAGES, LABELS = photographs("vit"), torch.arange(24) % 5
BATCHES = list(zip(IMAGES.split(8), LABELS.split(8), strict=True))
ALLOCATORS, DISTORTIONS, SCHEMES = Allocator.registry, Distortion.registry, Scheme.registry
EFFORT = {(Recipe, "accumulation"), *((structure, "batch_size") for structure in StructureSettings.registry.values())}
TAGS = ("name", "scheme", "structure")  # choose the section itself


# --- what a section decides ------------------------------------------------------------------------------------------


def pruned_by(budget: Budget | None = None, pruning: StructureSettings | None = None) -> list[Tensor]:
    pruning = pruning or Blocks(block_shape=(5, 4), points=11)
    budget = budget or Budget(macs=0.6)
    pruned = lpvit.prune(dense_model("vit"), IMAGES.split(8), budget=budget, pruning=pruning)
    return list(pruned.model.state_dict().values())


def trained_by(recipe: Recipe) -> list[Tensor]:
    teacher = dense_model("vit") if recipe.distillation != "none" else None
    tuned = lpvit.finetune(PRUNED, BATCHES, BATCHES, recipe=recipe, teacher=teacher)
    return list(tuned.model.state_dict().values())


def quantised_by(quantisation: Quantisation) -> list[Tensor]:
    return list(lpvit.quantise(PRUNED, IMAGES.split(8), quantisation).model.state_dict().values())


def logits_with(scheme: Scheme) -> list[Tensor]:
    torch.manual_seed(0)
    model = add_scheme(dense_model("vit").train(), scheme)
    anneal(model, 1.0)
    (sum_of := model(IMAGES)).square().sum().backward()
    return [sum_of.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def energy_by(energy: Energy) -> list[Tensor]:
    return [torch.tensor(1e12 * layer_energy(8, 16, 32, 100.0, energy))]


def sample_by(calibration: Calibration) -> list[Tensor]:
    rows = {"split": "train", "path": [f"{n:03}" for n in range(99)], "label": range(99), "problem": None}
    sample = sample_calibration(pd.DataFrame(rows), calibration.images, calibration.seed)
    return [torch.tensor(sample["label"].to_numpy())]


PRUNED = lpvit.prune(dense_model("vit"), IMAGES.split(8), budget=0.6, block_shape=(8, 4))

Values = dict[str, Any]
SOFT: Values = {"distillation": "soft", "teacher": "dense"}
FEATURES: Values = {"distillation": "features", "teacher": "dense"}
GAUSS_NEWTON = {"saliency": "gauss_newton", "distortion": "gauss_newton"}

LAWS: dict[type[Section], tuple[Callable[[Any], list[Tensor]], Values, dict[str, tuple[Any, Values]]]] = {
    Recipe: (
        trained_by,
        {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3},
        {
            "epochs": (3, {}),
            "batch_size": (4, {}),
            "accumulation": (2, {}),
            "learning_rate": (2e-3, {}),
            "learning_rate_batch_size": (16, {}),
            "min_learning_rate": (1e-4, {}),
            "warmup_epochs": (1, {}),
            "weight_decay": (0.5, {}),
            "clip_grad_norm": (0.01, {}),
            "label_smoothing": (0.1, {}),
            "drop_path": (0.9, {}),
            "mixup": (0.8, {}),
            "cutmix": (1.0, {}),
            "crop_scale": ((0.5, 1.0), {}),
            "crop_ratio": ((0.5, 1.0), {}),
            "horizontal_flip": (0.0, {}),
            "color_jitter": (0.1, {}),
            "rand_augment": ("rand-m9", {}),
            "random_erasing": (0.9, {}),
            "repeated_augmentation": (2, {}),
            "ema_decay": (0.9, {}),
            "choose_by": (0.5, {}),
            "pruned_over": (0.5, {}),
            "distillation": ("hard", SOFT),
            "teacher": ("vit_tiny_patch16_224", SOFT),
            "teacher_checkpoint": (Path("x.pt"), SOFT),
            "features_loss": ("cosine", FEATURES),
            "distillation_alpha": (0.9, SOFT),
            "distillation_blocks": (2.0, SOFT),
            "distillation_temperature": (9.0, SOFT),
            "precision": ("bfloat16", {}),
            "seed": (1, {"mixup": 0.8}),
        },
    ),
    Blocks: (
        lambda pruning: pruned_by(pruning=pruning),
        {"block_shape": (5, 4), "points": 11},
        {
            "block_shape": ((4, 4), {}),
            "basis": ("aligned", {}),
            "saliency": ("l1", {}),
            "distortion": ("empirical", {}),
            "probes": (4, GAUSS_NEWTON),
            "points": (4, {}),
            "layers": (("fc1", "qkv"), {}),
            "batch_size": (2, {}),
        },
    ),
    Factors: (
        lambda pruning: pruned_by(Budget(macs=0.4, reconstruction="least_squares"), pruning),
        {"rank_multiple": 1},
        {
            "rank_multiple": (4, {}),
            "form": ("pivoted", {}),
            "metric": ("weights", {}),
            "refine_steps": (200, {}),  # 5 or 30 are no better on the images held out
            "probes": (4, {}),
            "layers": (("fc1", "qkv"), {}),
            "batch_size": (2, {}),
        },
    ),
    Budget: (
        pruned_by,
        {"macs": 0.6},
        {
            "macs": (0.5, {}),
            "sparsity": (0.7, {}),
            "parameters": (0.5, {}),
            "bytes": (0.5, {}),
            "energy": (0.3, {}),
            "allocator": ("uniform", {}),
            "min_keep_ratio": (0.5, {}),
            "reconstruction": ("least_squares", {}),
            "steps": (2, {}),
        },
    ),
    ALLOCATORS["lpvit"]: (
        lambda allocator: pruned_by(Budget(macs=0.6, allocator=allocator)),
        {"smoothing": 0.9, "stencil_step": 1},
        {"smoothing": (0.1, {}), "stencil_step": (3, {})},
    ),
    DISTORTIONS["gauss_newton"]: (
        lambda distortion: pruned_by(pruning=Blocks(block_shape=(5, 4), points=11, distortion=distortion)),
        {},
        {"form": ("diagonal", {}), "correction_images": (8, {})},
    ),
    DISTORTIONS["taylor"]: (
        lambda distortion: pruned_by(pruning=Blocks(block_shape=(5, 4), points=11, distortion=distortion)),
        {},
        {"order": (1, {})},
    ),
    Quantisation: (
        quantised_by,
        {},
        {"precision": ("bfloat16", {}), "layers": (("fc1",), {}), "rounding": ("nearest", {})},
    ),
    SCHEMES["token_selection"]: (
        logits_with,
        {"before_blocks": [1]},
        {"keep_tokens": (0.4, {}), "before_blocks": ([0], {}), "temperatures": ((5.0, 0.5), {})},
    ),
    SCHEMES["token_merging"]: (logits_with, {}, {"merged_tokens": (3, {})}),
    SCHEMES["sparse_attention"]: (logits_with, {"stride": 4}, {"pattern": ("block", {}), "stride": (5, {})}),
    Energy: (
        energy_by,
        {},
        {
            "dtype": ("int8", {}),
            "mac": (9.0, {}),
            "dram": (9.0, {}),
            "sram": (9.0, {}),
            "buffer": (9.0, {}),
            "reuse": (9.0, {}),
            "batch_size": (9, {}),
        },
    ),
    Calibration: (sample_by, {"images": 10}, {"images": (11, {}), "seed": (1, {})}),
}


def keys_of(section: type[Section]) -> set[str]:
    return {key for key in section.model_fields if key not in TAGS}


# What the workflow reads, what layers would have to be timed for, and what is worked by hand in test_allocation.py
FOLLOWED: dict[type[Section], tuple[str, ...]] = {
    **{layout: tuple(keys_of(layout)) for layout in Layout.registry.values()},
    **{
        section: tuple(section.model_fields)
        for section in (Dataset, Model, Compute, Benchmark, Export, Experiment, Published)
    },
    Config: tuple(Config.model_fields),
    Budget: ("latency", "latency_table", "points_lost", "milliseconds", "held_out"),
    Width: ("batch_size",),
    Mixed: tuple(keys_of(Mixed)),  # those of blocks and factors
    ALLOCATORS["lpvit"]: ("power_beta",),
}


def test_every_key_of_every_section_is_tested_here() -> None:
    tested = {
        section: {*(LAWS[section][2] if section in LAWS else ()), *FOLLOWED.get(section, ())} - set(TAGS)
        for section in set(sections_of(Config))
    }
    assert tested == {section: keys_of(section) for section in tested}


@pytest.mark.parametrize(
    ("section", "key"),
    [(section, key) for section, (_, _, keys) in LAWS.items() for key in keys],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_key_changes_something_or_is_refused_by_name(section: type[Section], key: str) -> None:
    decided, base, keys = LAWS[section]
    value, beside = keys[key]
    before = decided(section(**base, **beside))
    try:
        after = decided(section(**{**base, **beside, key: value}))
    except lpvit.LpvitError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert key in refusal
        assert "\n" not in refusal
        return
    alike = len(before) == len(after) and all(map(alike_numbers, before, after))
    assert not alike or (section, key) in EFFORT


def alike_numbers(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("section", "key"),
    [(section, key) for section, keys in FOLLOWED.items() for key in sorted(keys)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_key_of_the_workflow_is_read_by_code_that_is_not_its_settings(section: type[Section], key: str) -> None:
    reads = re.compile(rf"\.{key}\b|[\"']{key}[\"']")
    assert any(reads.search(text) for text in code_without(section.__module__))


def code_without(module: str) -> list[str]:
    """Code of the package and the workflow; of a strategy also its own, which has what it does beside its keys."""
    own = REPOSITORY / f"{module.replace('.', '/')}.py"
    files = [*(REPOSITORY / "lpvit").rglob("*.py"), *(REPOSITORY / "workflow").rglob("*.*")]
    return [
        file.read_text()
        for file in files
        if file.suffix in (".py", ".smk") and (file != own or "settings" not in own.name)
    ]
