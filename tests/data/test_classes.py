"""Which label a class has: one rule, asked for where it would be a guess."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import member
from timm.data import ImageNetInfo
from tiny import dense_model
from torch.utils.data import DataLoader, TensorDataset

import lpvit
from lpvit.data.classes import natural_key, ordered_classes, require_same_order
from lpvit.data.layouts import Split
from lpvit.errors import LpvitError
from lpvit.models.labels import require_labels_of_weights
from lpvit.models.settings import Model


def order(names: list[str], class_order: object = None, numbered: bool = False, known: list[str] | None = None) -> list:
    split = Split([str(number) for number in range(len(names))], names, known)
    return list(ordered_classes({"train": split, "validation": split}, class_order, numbered, "set").values())  # type: ignore[arg-type]


NUMBERS = [str(number) for number in range(11)]


def test_classes_are_sorted_by_name_and_numbers_of_the_dataset_stay() -> None:
    assert order(["b", "a10", "a9", "B"]) == ["B", "a10", "a9", "b"]
    assert order(NUMBERS[::-1], numbered=True) == NUMBERS
    assert order(["owl", "cat"], known=["owl", "cat"]) == ["owl", "cat"]
    assert order(["00", "01", "10"]) == ["00", "01", "10"]


def test_folders_of_unpadded_numbers_ask_for_an_order() -> None:
    with pytest.raises(LpvitError, match=r"'10' comes before '2' by name; set 'class_order: natural'"):
        order(NUMBERS)
    assert order(NUMBERS, "natural") == NUMBERS
    assert order(NUMBERS, "name")[:3] == ["0", "1", "10"]


def test_numbers_with_a_gap_are_refused_or_sorted() -> None:
    with pytest.raises(LpvitError, match=r"no image of class 0; classes are numbered from 0 on without gaps, or set"):
        order(NUMBERS[1:], numbered=True)
    assert order(NUMBERS[1:], "natural", numbered=True) == NUMBERS[1:]


def test_a_file_gives_the_order_or_names_numbers(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("owl\n\ncat \n")
    assert order(["cat", "owl"], file) == ["owl", "cat"]
    assert order(["1", "0"], file, numbered=True) == ["owl", "cat"]
    with pytest.raises(LpvitError, match=r"classes\.txt: lacks 'dog' and has 'owl' besides"):
        order(["cat", "dog"], file)
    file.write_text("cat\ncat\n")
    with pytest.raises(LpvitError, match=r"classes\.txt: names 'cat' twice"):
        order(["cat"], file)
    with pytest.raises(LpvitError, match=r"class_order: nowhere: cannot be read"):
        order(["cat"], Path("nowhere"))


def test_classes_at_the_end_that_have_no_images_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    assert order(["owl", "cat"], known=["owl", "cat", "yak"]) == ["owl", "cat"]
    assert "classes without images are left out: 'yak'" in caplog.text
    with pytest.raises(LpvitError, match="no image of class 'yak'"):
        order(["owl", "cat"], known=["yak", "owl", "cat"])


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1))
def test_natural_order_of_numbers_is_that_of_the_numbers(numbers: list[int]) -> None:
    for start in ("", "class "):
        names = [f"{start}{number}" for number in numbers]
        assert sorted(names, key=natural_key) == [f"{start}{number}" for number in sorted(numbers)]


def test_a_model_that_knows_the_classes_in_another_order_is_refused() -> None:
    require_same_order((), ["a", "b"], "model")
    require_same_order(("a", "b"), ["a", "b"], "model")
    with pytest.raises(LpvitError, match="model: label 0 is 'a', in the dataset 'b'; correct 'class_order'"):
        require_same_order(("a", "b"), ["b", "a"], "model")
    with pytest.raises(LpvitError, match="model: label 1 is 'b', in the dataset 'c'; it was trained on others"):
        require_same_order(("a", "b"), ["a", "c"], "model")
    with pytest.raises(LpvitError, match="model: knows 2 classes, the dataset has 3"):
        require_same_order(("a", "b"), ["a", "b", "c"], "model")


def test_timms_weights_are_used_with_imagenets_order_alone() -> None:
    classes, model = ImageNetInfo().label_names(), Model(timm="deit_tiny_patch16_224")
    require_labels_of_weights(model, classes)
    require_labels_of_weights(model, [str(number) for number in range(1000)])
    with pytest.raises(LpvitError, match="models: timm's weights of 'deit_tiny_patch16_224': label 0 is 'n01440764'"):
        require_labels_of_weights(model, classes[::-1])
    require_labels_of_weights(Model(timm="deit_tiny_patch16_224", recipe="again"), classes[::-1])


def folder_of_transformers(folder: Path, *names: str) -> Model:
    """A model of transformers whose classes have these names."""
    model = member("ViTForImageClassification")
    model.config.id2label = dict(enumerate(names))
    model.save_pretrained(folder)
    return Model(transformers=str(folder))


def test_a_folder_of_transformers_is_used_with_its_own_order_alone(tmp_path: Path) -> None:
    names = ("Hen", "barn_owl", "cat", "dog", "fox")
    model = folder_of_transformers(tmp_path / "vit", *names)
    require_labels_of_weights(model, ["hen", "barn owl", "cat", "dog", "fox"])
    require_labels_of_weights(model, list("01234"))  # numbers say nothing
    refused = r"^models: .*vit': label 0 is 'Hen', in the dataset 'barn_owl'; correct 'class_order'"
    with pytest.raises(LpvitError, match=refused):
        require_labels_of_weights(model, ["barn owl", "cat", "dog", "fox", "hen"])
    with pytest.raises(LpvitError, match="label 1 is 'barn_owl', in the dataset 'yak'; it was trained on others"):
        require_labels_of_weights(model, ["hen", "yak", "cat", "dog", "fox"])
    require_labels_of_weights(Model(transformers=str(tmp_path / "vit"), recipe="again"), list("abcde"))
    unnamed = folder_of_transformers(tmp_path / "other", *(f"LABEL_{label}" for label in range(5)))
    require_labels_of_weights(unnamed, list("edcba"))


def test_names_of_imagenet_are_compared_with_its_synsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of its classes have the same name, 'crane'."""
    names, synsets = ImageNetInfo().label_descriptions(), ImageNetInfo().label_names()
    monkeypatch.setattr("lpvit.models.labels.configured_source", lambda *_: SimpleNamespace(known_labels=names))
    require_labels_of_weights(Model(transformers="vit"), synsets)
    with pytest.raises(LpvitError, match="label 0 is 'tench, Tinca tinca', in the dataset 'toilet tissue"):
        require_labels_of_weights(Model(transformers="vit"), synsets[::-1])


def test_labels_of_a_loader_whose_classes_are_in_another_order_are_refused_in_python() -> None:
    images, labels = torch.randn(8, 1, 16, 16), torch.arange(8) % 5
    dataset = TensorDataset(images, labels)
    loader = DataLoader(dataset, batch_size=8)
    dataset.classes = list("edcba")  # type: ignore[attr-defined]  # as torchvision's
    pruned = lpvit.prune(dense_model("vit"), [images], budget=0.6)
    recipe = lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3)
    lpvit.evaluate(pruned, loader)  # its classes have no names
    lpvit.name_classes(pruned, list("abcde"))
    for call in (
        lambda: lpvit.evaluate(pruned, loader),
        lambda: lpvit.finetune(pruned, [(images, labels)], loader, recipe=recipe),
        lambda: lpvit.prune(pruned.model, [images], budget=lpvit.Budget(points_lost=1), held_out=loader),
    ):
        with pytest.raises(LpvitError, match="loader: the model: label 0 is 'a', in the dataset 'e'; correct"):
            call()
    assert lpvit.evaluate(pruned, loader, reference=pruned.model).same_class == 100  # looks at no labels
