"""What a model is measured by, whatever it returns."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from libraries import images, member
from tiny import dense_model, photographs
from torch import Tensor, nn

import lpvit
from lpvit.errors import LpvitError
from lpvit.models.outputs import Reading, named_tensors, read, set_output

LOGITS, POOLED, HIDDEN = torch.randn(2, 5), torch.randn(2, 8), torch.randn(2, 7, 8)


@dataclass
class Found:
    """As many libraries return it."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (LOGITS, LOGITS),
        (HIDDEN, HIDDEN.flatten(1)),
        (OrderedDict(last_hidden_state=HIDDEN, logits=LOGITS), LOGITS),
        ({"last_hidden_state": HIDDEN, "pooler_output": POOLED}, POOLED),
        ({"last_hidden_state": HIDDEN, "mask": LOGITS}, HIDDEN.flatten(1)),
        (Found(HIDDEN, POOLED), POOLED),
        (Found(HIDDEN), HIDDEN.flatten(1)),
        ((LOGITS, HIDDEN), LOGITS),
        (namedtuple("Two", "logits extra")(LOGITS, POOLED), LOGITS),
        ([HIDDEN], HIDDEN.flatten(1)),
        ({"only": POOLED}, POOLED),
        ([HIDDEN, POOLED], torch.cat([HIDDEN.flatten(1), POOLED], dim=1)),
        ({"feature_maps": (HIDDEN, POOLED)}, torch.cat([HIDDEN.flatten(1), POOLED], dim=1)),
        (torch.arange(2.0), torch.arange(2.0)[:, None]),
    ],
)
def test_logits_count_before_pooled_features_before_hidden_states(found: object, expected: Tensor) -> None:
    assert torch.equal(Reading()(found), expected)


def test_a_key_a_place_several_or_a_function_name_what_counts() -> None:
    found = {"a": POOLED, "b": HIDDEN, "c": (LOGITS, POOLED)}
    assert torch.equal(Reading("b")(found), HIDDEN.flatten(1))
    assert torch.equal(Reading(1)([LOGITS, POOLED]), POOLED)
    assert list(named_tensors(found, ("a", "c"))) == ["a", "c.0", "c.1"]
    assert torch.equal(Reading(lambda output: output["b"][:, 0])(found), HIDDEN[:, 0])


@pytest.mark.parametrize(
    ("found", "output", "message"),
    [
        ({"a": POOLED, "b": HIDDEN}, None, r"returns a dict of a \(2, 8\), b \(2, 7, 8\); say with output="),
        ({"a": POOLED}, "b", r"there is no 'b' in a dict of a \(2, 8\)"),
        ("text", None, "returns a str; say with output="),
        ({"a": POOLED}, lambda found: "text", "the function returns a str, expected tensors"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_was_found(found: object, output: object, message: str) -> None:
    with pytest.raises(LpvitError, match=message):
        named_tensors(found, output)  # type: ignore[arg-type]


class Two(nn.Module):
    """Two outputs of very different size."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        flat = images.flatten(1)
        return {"small": 1e-3 * flat[:, :7], "large": 1e3 * flat[:, 7:9], "losses": flat.mean()}


def test_several_tensors_have_unit_energy_each() -> None:
    model, some = Two(), images(40)
    set_output(model, some, ("small", "large"))
    vectors = read(model, model(some)).split([7, 2], dim=1)
    for vector in vectors:
        assert vector.square().sum(dim=1).mean() == pytest.approx(1, rel=1e-5)
    with pytest.raises(LpvitError, match=r"'losses' for 40 images is not \(40, \.\.\.\)"):
        set_output(model, some, "losses")


class Wrapped(nn.Module):
    """A classifier in a dict, beside something else."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = dense_model("vit")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"scores": self.vit(images), "images": images}


def test_a_model_is_pruned_by_what_is_named_as_if_it_were_all() -> None:
    batches = photographs("vit").split(8)
    pruning = {"budget": lpvit.Budget(macs=0.6), "block_shape": (4, 4)}
    plain = lpvit.prune(dense_model("vit"), batches, **pruning)
    with pytest.raises(LpvitError, match=r"a dict of scores \(8, 5\), images \(8, 1, 16, 16\); say with output="):
        lpvit.prune(Wrapped(), batches, **pruning)
    for output in ("scores", lambda found: found["scores"]):
        named = lpvit.prune(Wrapped(), batches, output=output, **pruning)
        assert {name.removeprefix("vit."): mask.tolist() for name, mask in named.keep_masks.items()} == {
            name: mask.tolist() for name, mask in plain.keep_masks.items()
        }


def test_a_feature_pyramid_is_pruned_by_all_its_levels() -> None:
    model, some = member("backbone with features_only"), images(8)
    pruned = lpvit.prune(model, [some], budget=0.6)
    levels = pruned.model(some)
    assert [level.shape for level in levels] == [level.shape for level in model(some)]
    assert read(pruned.model, levels).shape[1] == sum(level[0].numel() for level in levels)
