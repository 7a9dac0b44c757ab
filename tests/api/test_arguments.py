"""Arguments of the public functions that are something else than what they take: one line, or it works."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VIT, dense_model, photographs
from torch import nn

import lpvit
from lpvit.models.sources.timm import Timm
from lpvit.models.sources.torchvision import Torchvision

BLOCK_SHAPE = (8, 4)
RECIPE = lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3)
TAUGHT = lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3, distillation="soft", teacher="dense")
IMAGES = photographs("vit", 8)
LABELLED = [(IMAGES, torch.arange(8) % 5)]

NUMBERS = (None, "8", 0, -1, 2.5, math.nan, math.inf, -math.inf, True, [8], 10**30)
MODELS = (None, "vit", 3, nn.Linear(3, 3), nn.Identity(), nn.Sequential(), dense_model("vit").to("meta"), object())
LOADERS = (
    *(None, 3, "photos", [], [None], ["a"], [[]], [()], {}, {"images": IMAGES}, iter([IMAGES]), [IMAGES[0]], object()),
    *([IMAGES.byte()], [IMAGES[:0]], [IMAGES * math.nan], [IMAGES[..., :9]], [IMAGES.repeat(1, 3, 1, 1)]),
    *([(IMAGES, None)], [(IMAGES, torch.zeros(3))], [(IMAGES, torch.full((8,), 99))], [(IMAGES.to("meta"),) * 2]),
)
PATHS = (None, 3, "", "/", ".", "/dev/null/file", "absent/\0", "a" * 300, b"file", torch.zeros(3))
SETTINGS = (None, "int8", 3, {}, {"precision": "int8"}, lpvit.Budget, RECIPE, object())
WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("model", "pruned"), MODELS),
    **dict.fromkeys(("loader", "validation", "held_out"), LOADERS),
    **dict.fromkeys(("pruning", "energy", "scheme", "quantisation", "recipe", "schemes", "options"), SETTINGS),
    **dict.fromkeys(("budget", "batch_size", "shown"), NUMBERS),
    "schemes": (*SETTINGS, [None], ["token_merging"], "token_merging"),
    "options": (*SETTINGS, {"depth": "many"}, {3: 4}, {"depth": -1}, {"checkpoint_path": "/etc/passwd"}, []),
    "block_shape": (*NUMBERS, (0, 4), (8,), (8, 4, 2), (10**9, 10**9), (8.5, 4), (-8, 4), "84", (None, 4)),
    "path": PATHS,
    "opset": ("18", 0, -1, 18.5, True, [], object()),
    "image_size": (3, None, "", "any", (32, 32), object()),
    "precision": (*NUMBERS[1:], "fp8", "", torch.int8),
    **dict.fromkeys(("teacher", "reference"), (*MODELS[1:], dense_model("swin"))),
    "task": (None, 3, "classify", "multi_label", "regression", lambda output, batch: output, object()),
    "keep_masks": (None, 3, [], {"absent": torch.ones(2, 2) > 0}, {"blocks.0.mlp.fc1": None}, {3: 4}),
    "output": (3.5, {}, [], object(), "absent", 99, -99, [None], lambda output: None),
    "classes": (None, 3, "abcde", [], ["a"], {}, [None] * 5, list("aabcd"), object()),
    "dense_costs": (3, "costs", {}),
    "source": (3, "timm", {}, Timm, Timm(name="absent", num_classes=5), Torchvision(name="absent"), object()),
    "outcomes": (3, "outcomes", {}),
}


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Function -> arguments that it takes."""
    folder = tmp_path_factory.mktemp("arguments")
    pruning = lpvit.Blocks(block_shape=BLOCK_SHAPE, saliency="l1", distortion="taylor", layers=("fc1",))
    model = dense_model("vit")
    pruned = lpvit.prune(model, [IMAGES], budget=lpvit.Budget(macs=0.9), pruning=pruning)
    lpvit.save(pruned, folder / "model.safetensors", options=VIT)
    torch.save(model.state_dict(), folder / "weights.pt")
    return {
        "prune": {"model": model, "loader": [IMAGES], "budget": lpvit.Budget(macs=0.9), "pruning": pruning},
        "finetune": {"pruned": pruned, "loader": LABELLED, "validation": LABELLED, "recipe": RECIPE},
        "evaluate": {"model": pruned, "loader": LABELLED},
        "probe": {"model": pruned, "loader": LABELLED, "validation": LABELLED},
        "quantise": {"pruned": pruned, "loader": [IMAGES]},
        "sparsify": {"pruned": pruned},
        "save": {"pruned": pruned, "path": folder / "other.safetensors"},
        "load": {"path": folder / "model.safetensors"},
        "load_weights": {"model": dense_model("vit"), "path": folder / "weights.pt"},
        "original_state_dict": {"pruned": pruned},
        "export_onnx": {"pruned": pruned, "path": folder / "model.onnx"},
        "export_openvino": {"pruned": pruned, "path": folder / "model.xml"},
        "add_scheme": {"model": dense_model("vit"), "scheme": lpvit.Scheme(scheme="token_merging", merged_tokens=1)},
        "transform": {"model": pruned},
        "name_classes": {"model": model, "classes": list("abcde")},
        "show_progress": {"shown": True},
        "Pruned": {"model": pruned.model, "keep_masks": pruned.keep_masks, "block_shape": BLOCK_SHAPE},
    }


FUNCTIONS = [
    *(name for name in lpvit.__all__ if inspect.isfunction(getattr(lpvit, name))),
    "Pruned",
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_wrong_argument_is_refused_in_one_line_or_works(
    right: dict[str, dict[str, Any]], function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call: Callable[..., Any] = getattr(lpvit, function)
    wrong = []
    for parameter in inspect.signature(call).parameters:
        for value in WRONG[parameter]:
            arguments = right[function] | {parameter: value}
            if parameter == "teacher":
                arguments["recipe"] = TAUGHT
            if parameter == "block_shape" and function == "prune":
                arguments["pruning"] = None
            if fault := _fault(call, arguments):
                wrong.append(f"{function}({parameter}={' '.join(repr(value).split())[:80]}): {fault}")
    assert not wrong, "\n" + "\n".join(wrong)


def _fault(call: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """What is wrong with the outcome of a call; empty if nothing is."""
    try:
        call(**arguments)
    except lpvit.LpvitError as error:
        lines = str(error).splitlines()
        return "" if len(lines) == 1 and len(lines[0]) < 600 else f"{len(lines)} lines, {len(str(error))} letters"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return ""
