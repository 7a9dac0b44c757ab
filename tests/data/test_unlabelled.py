"""Images without classes: how they are found and listed, and which settings go with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from libraries import member
from PIL import Image

from lpvit.cli.check import planned
from lpvit.cli.main import main
from lpvit.config.config import parse_config
from lpvit.config.files import read_config
from lpvit.data.index import class_names, index_images
from lpvit.data.layouts import recognise
from lpvit.data.settings import ImageSet
from lpvit.errors import LpvitError
from lpvit.models.settings import Model
from lpvit.models.sources.dense import dense_model
from lpvit.stages.plan import plan_experiments

Change = Callable[..., dict[str, Any]]


def write(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (number, 9, 99)).save(root / name)
    return root


@pytest.mark.parametrize(
    ("files", "train", "validation"),
    [
        (["a.png", "b.png"], ".", None),
        (["a.png", "deep/er/b.png"], ".", None),
        (["train/a.png", "train/b.png", "val/a.png"], "train", "val"),
        (["train/a.png", "train/b.png"], "train", None),
        (["photos/a.png", "photos/b.png", "notes/c.txt.png/d.png"], None, None),  # two class folders
        (["train/cat/a.png", "train/dog/a.png", "train/stray.png"], None, None),
    ],
)
def test_images_without_class_folders_are_recognised(
    tmp_path: Path, files: list[str], train: str | None, validation: str | None
) -> None:
    found = recognise(write(tmp_path, *files))
    assert found is not None
    assert (found.layout.name == "unlabelled") == (train is not None)
    if train is not None:
        assert (found.root, found.train, found.validation) == (tmp_path, train, validation)


def test_every_image_is_listed_once_with_no_class(tmp_path: Path) -> None:
    write(tmp_path, "train/1.png", "train/deep/2.png", "train/.hidden.png", "val/3.png")
    (tmp_path / "val/notes.txt").write_text("no image")
    images = index_images(ImageSet.model_validate({"source": "unlabelled", "root": tmp_path}))
    assert images["path"].tolist() == ["train/1.png", "train/deep/2.png", "val/3.png"]
    assert images["split"].tolist() == ["train", "train", "validation"]
    assert set(images["label"]) == {0}
    assert class_names(images) == []
    assert images["problem"].isna().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_order": "natural"}, "class_order: source 'unlabelled' has no classes; leave it out"),
        ({"train": "nowhere"}, "nowhere: folder not found"),
        ({"train": "empty"}, "empty: holds no images"),
        ({"train": "one", "validation_share": 0.2}, "the dataset has one image, which cannot both train and validate"),
    ],
)
def test_what_cannot_be_a_split_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write(tmp_path, "one/1.png", "val/1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LpvitError, match=message):
        index_images(ImageSet(**{"source": "unlabelled", "root": tmp_path, **settings}))


@pytest.fixture
def config(tiny_config: dict[str, Any], change: Change, tmp_path: Path) -> dict[str, Any]:
    """Of images without classes, which a headless model follows."""
    write(tmp_path, *(f"{split}/{number}.png" for split in ("train", "val") for number in range(70)))
    unlabelled = {"source": "unlabelled", "root": str(tmp_path), "loader": "timm"}
    config = change(tiny_config, "datasets", {**tiny_config["datasets"], "photos": unlabelled})
    config = change(config, "experiments.main.dataset", "photos")
    config = change(config, "models.vit", {**config["models"]["vit"], "weights": "random", "num_classes": 0})
    config["models"]["vit"].pop("recipe")
    config["models"]["vit"]["data_config"] = {}
    config["models"]["vit"]["options"] = {**config["models"]["vit"]["options"], "in_chans": 3}
    return change(
        config, "recipes.short", {**config["recipes"]["short"], "distillation": "features", "teacher": "dense"}
    )


def test_the_plan_takes_a_model_without_a_head(config: dict[str, Any], change: Change) -> None:
    plan = plan_experiments(parse_config(config)).iloc[0]
    assert plan["classes"] == 0
    headed = plan_experiments(parse_config(change(config, "models.vit.num_classes", 7))).iloc[0]
    assert headed["dense_macs"] == plan["dense_macs"] + 7 * 32


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "recipes.short",
            {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
            r"'photos' has no classes; give recipe",
        ),
        (
            "budgets.half",
            {"points_lost": 1.0},
            r"experiments.main.dataset: 'photos' has no classes, which 'points_lost'",
        ),
        ("experiments.main.published", {"row": "x"}, r"experiments.main.dataset: .*leave 'published' out"),
        ("experiments.main.dataset", "digits", r"models.vit.num_classes: 'digits' has classes; leave it out"),
        ("datasets.photos.probe", "nowhere", r"datasets.photos.probe: no 'nowhere' in datasets"),
        (
            "datasets.photos.probe",
            "photos",
            r"datasets.photos.probe: 'photos' has no classes; name a dataset with some",
        ),
        ("datasets.digits.probe", "digits", r"datasets.digits: probe: is for images without classes"),
    ],
)
def test_what_needs_labels_is_refused_in_a_line(
    config: dict[str, Any], change: Change, key: str, value: Any, message: str
) -> None:
    with pytest.raises(LpvitError, match=message) as caught:
        parse_config(change(config, key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.thorough
def test_init_writes_a_config_that_passes_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos", *(f"{number}.png" for number in range(40)))
    member("Dinov2Model").save_pretrained(tmp_path / "dino")
    assert main(["init", "photos", "--model", "dino", "--epochs", "2"]) == 0
    assert "photos: no classes, 40 images (40 .png)" in capsys.readouterr().out
    text = Path("lpvit.yaml").read_text().replace("macs: 0.35", "macs: 0.45")  # the model is small
    Path("lpvit.yaml").write_text(text)
    settings = read_config("lpvit.yaml")
    assert settings.recipes["short"].distillation == "features"
    assert "dense" not in settings.recipes
    assert settings.experiments["half"].recipe == "short"
    told = list(planned([Path("lpvit.yaml")]))
    assert told[0].startswith("half: dino on images without classes of 'photos'; ")
    assert told[-1] == "lpvit.yaml: no errors found"


def test_the_head_and_its_names_stay_those_of_the_weights(tmp_path: Path) -> None:
    model = member("ViTForImageClassification")
    model.config.id2label = dict(enumerate("abcde"))
    model.save_pretrained(tmp_path / "vit")
    architecture, dense = dense_model(Model(transformers=str(tmp_path / "vit")), ())
    assert architecture.source.num_classes == 5
    assert architecture.classes == tuple("abcde")
    assert dense.classifier.out_features == 5
    with pytest.raises(LpvitError, match="no weights of torchvision's 'VisionTransformer' say its head; set 'num_c"):
        dense_model(Model(torchvision="VisionTransformer", weights="random"), ())
