"""However a dataset is stored: the same images, found by `init`, and watched."""

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from layouts import LAYOUTS, NAMES, SPLITS, Sample, jpeg, samples, write
from test_loaders import LOADERS, load

from lpvit.cli.init import survey
from lpvit.data.encoded import file_of, read_encoded
from lpvit.data.index import index_images, list_images, usable_images
from lpvit.data.layouts import Layout
from lpvit.data.settings import ImageSet
from lpvit.errors import LpvitError

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
ASKS = ("parquet, chosen columns",)  # what `init` cannot decide


def stored(root: Path, layout: str, given: list[Sample] | None = None) -> ImageSet:
    write(root, LAYOUTS[layout].files(samples() if given is None else given))
    return ImageSet(root=root, **LAYOUTS[layout].keys)


def test_every_layout_is_tested() -> None:
    sources = [ImageSet(root=Path(), **layout.keys).source.name for layout in LAYOUTS.values()]
    assert {*sources, "digits", "unlabelled"} == set(Layout.registry)  # the last in test_unlabelled.py


@every_layout
def test_all_layouts_hold_the_same_images_with_the_same_labels(tmp_path: Path, layout: str) -> None:
    images = index_images(stored(tmp_path, layout))
    assert images["problem"].isna().all()
    assert list(images.groupby("label")["class_name"].unique().explode()) == list(LAYOUTS[layout].names)
    found = {(row.split, row.label, read_encoded(tmp_path / row.path)) for row in images.itertuples()}
    names = {"train": "train", "val": "validation"}
    assert found == {(names[sample.split], sample.label, sample.content) for sample in samples()}
    assert len(images) == len(samples())


@every_layout
def test_every_loader_reads_every_layout_to_equal_arrays(
    tmp_path: Path, layout: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def arrays(name: str, root: Path, loader: str) -> torch.Tensor:
        images = usable_images(list_images(stored(root, name)), "validation")
        batches = load(images, root, loader, batch_size=6)
        pairs = [
            (label, image.tolist()) for part in batches for image, label in zip(part[0], part[1].tolist(), strict=True)
        ]
        return torch.tensor([image for _, image in sorted(pairs)])

    for loader in LOADERS:
        plain = arrays("folder", tmp_path_factory.mktemp("plain"), loader)
        assert torch.equal(arrays(layout, tmp_path, loader), plain), loader


@every_layout
def test_init_finds_what_the_config_would_say(tmp_path: Path, layout: str) -> None:
    dataset = stored(tmp_path / "photos", layout)
    if layout in ASKS:
        with pytest.raises(LpvitError, match=r"choose by 'source: \{name: parquet, "):
            survey(tmp_path)
        return
    found = survey(tmp_path)
    assert found.jpeg
    assert found.count == (len(NAMES) * SPLITS["train"], len(NAMES) * SPLITS["val"])
    there = list_images(found.dataset)
    resolved = {str(found.dataset.folder / path) for path in there["path"]}
    assert resolved == {str(dataset.folder / path) for path in list_images(dataset)["path"]}
    assert found.dataset.source.name == dataset.source.name


def added(given: list[Sample]) -> list[Sample]:
    return [*given, Sample("val", "dog", "new", jpeg(99))]


def removed(given: list[Sample]) -> list[Sample]:
    return given[:-1]


def replaced(given: list[Sample]) -> list[Sample]:
    return [given[0]._replace(content=jpeg(99)), *given[1:]]


def relabelled(given: list[Sample]) -> list[Sample]:
    return [*given[:-1], given[-1]._replace(of_class="cat")]


@every_layout
@pytest.mark.parametrize("edit", [added, removed, replaced, relabelled])
def test_no_image_comes_goes_or_changes_unseen(tmp_path: Path, layout: str, edit) -> None:
    dataset = stored(tmp_path, layout)
    before = dataset.listing()
    stored(tmp_path, layout)
    assert dataset.listing() == before
    stored(tmp_path, layout, edit(samples()))
    assert dataset.listing() != before


@every_layout
def test_every_image_lies_in_a_file_that_is_watched(tmp_path: Path, layout: str) -> None:
    dataset = stored(tmp_path, layout)
    for path in list_images(dataset)["path"].map(file_of).unique():
        before = dataset.listing()
        status = (tmp_path / path).stat()
        os.utime(tmp_path / path, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))
        assert dataset.listing() != before, path


@every_layout
def test_what_is_not_there_is_an_empty_listing_and_one_line(tmp_path: Path, layout: str) -> None:
    dataset = ImageSet(root=tmp_path / "nowhere", **LAYOUTS[layout].keys)
    assert dataset.listing().files == 0
    with pytest.raises(LpvitError, match="nowhere") as error:
        list_images(dataset)
    assert "\n" not in str(error.value)


def test_of_several_layouts_in_a_folder_the_one_with_splits_is_meant(tmp_path: Path) -> None:
    files = LAYOUTS["folder"].files(samples())
    rows = [f"{name},{name.split('/')[1]}" for name in files]
    write(tmp_path, {**files, "birds.csv": "\n".join(["filepaths,labels", *rows]).encode()})
    assert survey(tmp_path).dataset.source.name == "folder"
    without = {name.replace("val/", "train/"): content for name, content in files.items()}
    table = "\n".join(["filepaths,labels", *rows]).replace("val/", "train/")
    write(tmp_path / "unsplit", {**without, "birds.csv": table.encode()})
    found = survey(tmp_path / "unsplit").dataset
    assert (found.source.name, found.train, found.validation_share) == ("csv", "birds", 0.2)


@pytest.mark.parametrize("name", ["photos.tar", "embeddings.parquet"])
def test_class_folders_are_meant_where_an_archive_lies_beside_them(tmp_path: Path, name: str) -> None:
    write(tmp_path, {**LAYOUTS["folder"].files(samples()), name: b"?"})
    assert survey(tmp_path).dataset.source.name == "folder"
    unsplit = {f"{sample.of_class}/{sample.name}.jpg": sample.content for sample in samples()}
    write(tmp_path / "unsplit", {**unsplit, name: b"?"})
    assert survey(tmp_path / "unsplit").dataset.source.name == "folder"


def test_kaggles_imagenet_is_found_from_any_folder_within_and_asks_for_its_solution_file(tmp_path: Path) -> None:
    stored(tmp_path, "Kaggle's ImageNet")
    for within in ("", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"):
        assert survey(tmp_path / within).dataset.folder.samefile(tmp_path)
    (tmp_path / "LOC_val_solution.csv").rename(tmp_path / "elsewhere.csv")
    with pytest.raises(
        LpvitError, match=r"LOC_val_solution\.csv: not found; it has the classes of ILSVRC/Data/CLS-LOC/val"
    ):
        survey(tmp_path)


def folders(root: Path, names: dict[str, list[str]]) -> ImageSet:
    files = [f"{split}/{name}/{n}.jpg" for split, classes in names.items() for name in classes for n in range(2)]
    write(root, {file: jpeg(number) for number, file in enumerate(files)})
    return ImageSet(root=root)


def test_class_folders_that_are_links_are_read_and_watched_and_so_are_folders_linked_within(tmp_path: Path) -> None:
    dataset = folders(tmp_path / "set", {"train": ["a", "b"], "val": ["a", "b"]})
    write(tmp_path / "far", {"1.jpg": jpeg(1), "deep/2.jpg": jpeg(2)})
    for link in ("set/train/c", "set/val/c", "set/train/a/more"):
        (tmp_path / link).symlink_to(tmp_path / "far")
    (tmp_path / "far/deep/back").symlink_to(tmp_path / "set/train/a/more")
    images = list_images(dataset)
    assert images["class_name"].value_counts().to_dict() == {"a": 6, "b": 4, "c": 4}
    before = dataset.listing()
    (tmp_path / "far/deep/3.jpg").write_bytes(jpeg(3))
    assert dataset.listing() != before
    assert len(list_images(dataset)) == len(images) + 3


def test_a_link_to_a_folder_that_contains_it_ends(tmp_path: Path) -> None:
    dataset = folders(tmp_path, {"train": ["a", "b"], "val": ["a", "b"]})
    images, listing = list_images(dataset), dataset.listing()
    (tmp_path / "train/a/up").symlink_to(tmp_path / "train")
    (tmp_path / "train/a/self").symlink_to(tmp_path / "train/a")
    assert (len(list_images(dataset)), dataset.listing()) == (len(images), listing)


def test_a_name_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    dataset = folders(tmp_path, {"train": ["a", composed], "val": ["a", decomposed]})
    assert set(list_images(dataset)["class_name"]) == {"a", composed}


def test_a_name_that_is_not_utf_8_is_told_in_one_line(tmp_path: Path) -> None:
    dataset = folders(tmp_path, {"train": ["a", "b"], "val": ["a", "b"]})
    (tmp_path / "train/a/0.jpg").rename(os.fsdecode(os.fsencode(tmp_path / "train/a/") + b"/caf\xe9.jpg"))
    assert dataset.listing().files == 8
    with pytest.raises(LpvitError, match=r"train/a/caf\\udce9\.jpg: its name is not UTF-8; rename it"):
        list_images(dataset)


def test_names_of_classes_in_another_order_in_the_other_split_are_refused_or_decide(tmp_path: Path) -> None:
    given = samples()
    dataset = stored(tmp_path, "parquet", given)
    table = pq.read_table(tmp_path / "val-00000-of-00001.parquet")
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["dog", "cat", "owl"]}}}}
    labels = pa.array([{0: 1, 1: 0, 2: 2}[label] for label in table["label"].to_pylist()])
    table = table.set_column(1, "label", labels).replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, tmp_path / "val-00000-of-00001.parquet")
    with pytest.raises(LpvitError, match=r"class 0 is 'cat' in train, 'dog' in validation; .*'class_order: name'"):
        list_images(dataset)
    images = list_images(dataset.model_copy(update={"class_order": "name"}))
    found = {(row.label, read_encoded(tmp_path / row.path)) for row in images.itertuples()}
    assert found == {(sample.label, sample.content) for sample in given}


def test_an_image_that_is_null_is_a_bad_image(tmp_path: Path) -> None:
    dataset = stored(tmp_path, "parquet")
    file = tmp_path / "train-00000-of-00001.parquet"
    table = pq.read_table(file)
    images = pa.array([None, *table["image"].to_pylist()[1:]], table.schema.field("image").type)
    pq.write_table(table.set_column(0, "image", images), file)
    problems = index_images(dataset)["problem"].dropna()
    assert problems.tolist() == ["empty file"]


@pytest.mark.parametrize(
    ("layout", "member", "message"),
    [
        ("tar, names", ("x.txt", b"cat"), None),
        ("tar, names", ("x.jpg", b"?"), r"x\.cls: missing, expected the number or name"),
        ("tar, json", ("x.jpg", b"?", "x.json", b'{"class": 1}'), r"x\.json: no key 'label' among class"),
        ("tar, json", ("x.jpg", b"?", "x.json", b"[]"), r"x\.json: no JSON object"),
        (
            "tar, names",
            ("x.jpg", b"?", "x.png", b"?", "x.cls", b"cat"),
            r"x: has images with \.jpg and \.png; choose",
        ),
        ("tar, names", ("x.jpg", b"?", "x.cls", b"cat\n1"), r"x\.cls: found 'cat\\n1', expected"),
        ("tar, names", ("x.jpg", jpeg(0), "x.cls", b"cat", "x.mask.png", b"?"), None),
    ],
)
def test_what_a_tar_holds_besides_is_left_out_or_told(
    tmp_path: Path, layout: str, member: tuple, message: str | None
) -> None:
    dataset = stored(tmp_path, layout)
    with tarfile.open(tmp_path / "train-00000.tar", "a") as archive:
        for name, content in zip(member[::2], member[1::2], strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if message is None:
        assert len(list_images(dataset)) == len(samples()) + (len(member) > 2)
        return
    with pytest.raises(LpvitError, match=message) as error:
        list_images(dataset)
    assert "\n" not in str(error.value)


def test_a_table_may_hold_absolute_paths(tmp_path: Path) -> None:
    dataset = stored(tmp_path, "csv, numbers")
    for split in SPLITS:
        table = (tmp_path / f"{split}.csv").read_text().replace(f"\n{split}", f"\n{tmp_path}/images/{split}")
        (tmp_path / f"{split}.csv").write_text(table)
    assert index_images(dataset)["problem"].isna().all()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "a,b\n1,2\n",
            r"columns a, b; expected one titled path, file, \.\.\.; choose by 'source: \{name: csv, path",
        ),
        ("path,label\n", "has no rows"),
        ("path,label\nx.jpg\n", "line 2: expected 2 columns"),
        ("path,label\nx.jpg,cat\n", "its first image, 'x.jpg', is not found"),
        ("path,label\nimages/traincat.jpg,cat\n", "is not found below"),
        ("image,label\ntrain0cat.jpg,cat\nnone.jpg,dog\n", "1 of its images are missing, such as .*images/none.jpg"),
        ("image,label\ntrain0cat.jpg,cat\ntrain0cat.jpg,dog\n", "is listed twice in 'train'"),
        (b"\xff\xfe", "cannot be read as a table"),
    ],
)
def test_a_wrong_table_is_named_in_one_line(tmp_path: Path, table: str | bytes, message: str) -> None:
    dataset = stored(tmp_path, "csv, numbers")
    (tmp_path / "train.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    assert dataset.listing().files > 0
    with pytest.raises(LpvitError, match=message) as error:
        list_images(dataset)
    assert "\n" not in str(error.value)
