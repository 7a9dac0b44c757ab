"""Which label a class has: one rule, asked for where it would be a guess."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.data import ImageNetInfo

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
