"""The command `lpvit`, from a folder of images to files of models."""

import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY, TINY, Run, Workflow
from PIL import Image
from tiny import VIT, dense_model, photographs

import lpvit
from lpvit.cli.check import told_time
from lpvit.cli.init import Images, choose
from lpvit.cli.main import main
from lpvit.config.files import read_config
from lpvit.data.index import index_images
from lpvit.data.settings import ImageSet
from lpvit.stages.plan import plan_experiments

PHOTOGRAPHS = REPOSITORY.parent / "shared" / "data" / "imagenet-sample.tar"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs; no weights can be fetched there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lpvit.cli.init._has_weights", lambda model: False)
    monkeypatch.setattr("lpvit.cli.init.has_gpu", lambda: False)
    return tmp_path


def make_images(folder: Path, count: int, suffix: str = ".png", side: int = 32) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}{suffix}")


def unsplit(root: Path) -> None:
    for name in "ab":
        make_images(root / name, 10)


def split(root: Path) -> None:
    for name in "ab":
        make_images(root / "train" / name, 8, ".jpg")
        make_images(root / "test" / name, 4, ".webp")


def nested(root: Path) -> None:
    for name in "ab":
        make_images(root / "photos of 2024" / name / "first", 5)
        make_images(root / "photos of 2024" / name / "second/half", 5)


def corrupt(root: Path) -> None:
    unsplit(root)
    (root / "a/3.png").write_bytes(b"no image")


def large(root: Path) -> None:
    for name in "ab":
        make_images(root / name, 3, side=200)


@pytest.mark.parametrize(
    ("make", "words", "dataset"),
    [
        (unsplit, "no validation split: 4 images, 20% of every class", {"train": ".", "validation_share": 0.2}),
        (split, "16 training images in 'train', 8 validation images in 'test'", {"validation": "test"}),
        (nested, "2 classes, 20 images (20 .png)", {"root": Path("photos/photos of 2024")}),
        (corrupt, "1 of 20 inspected images cannot be read", {"on_bad_image": "skip"}),
        (large, "a small ViT for 112 x 112 pixels, trained from scratch (the weights", {"loader": "memory"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_config_is_written_for_a_folder_of_images_and_works(
    make: Callable[[Path], None],
    words: str,
    dataset: dict[str, object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(Path("photos"))
    assert main(["init", "photos"]) == 0
    assert words in capsys.readouterr().out
    config = read_config("lpvit.yaml")
    (found,) = config.datasets.values()
    assert {key: getattr(found, key) for key in dataset} == dataset
    assert len(plan_experiments(config)) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "photos: folder not found; give the folder of your images"),
        (lambda root: root.mkdir(), "photos: holds no folders of images; expected photos/<class>/*.jpg, or photos/tr"),
        (lambda root: [unsplit(root), (root / "c").mkdir()], "photos/c: holds no images"),
        (lambda root: make_images(root / "train/a", 3), "photos/train: holds one class, 'a'; a classifier needs two"),
        (lambda root: make_images(root, 3), "photos: has no classes to train a model on; name one by --model"),
        (lambda root: Path("lpvit.yaml").touch(), "lpvit.yaml: exists; give another name by --output, or overwrite"),
    ],
)
def test_a_folder_that_cannot_work_is_told_in_one_line(
    make: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(Path("photos"))
    assert main(["init", "photos"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"lpvit init: {message}")
    assert told.count("\n") == 1


@pytest.mark.parametrize(("gpu", "model"), [(False, "deit_tiny_patch16_224"), (True, "deit_small_patch16_224")])
def test_a_pretrained_model_is_chosen_where_its_weights_can_be_had(
    gpu: bool, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(Path("photos"))
    monkeypatch.setattr("lpvit.cli.init._has_weights", lambda model: True)
    monkeypatch.setattr("lpvit.cli.init.has_gpu", lambda: gpu)
    assert main(["init", "photos", "--epochs", "4"]) == 0
    config = read_config("lpvit.yaml")
    assert (config.models["vit"].timm, config.models["vit"].weights) == (model, "pretrained")
    assert config.recipes["dense"].epochs == 4


@pytest.mark.parametrize(
    ("train", "gpu", "side", "weights", "epochs", "calibration"),
    [
        (400, False, 32, False, (60, 20), 400),
        (400, True, 32, False, (100, 33), 400),
        (50_000, False, 32, False, (4, 1), 512),
        (400, False, 300, True, (4, 1), 128),
        (5_000, False, 300, True, (2, 1), 128),
        (5_000, True, 300, True, (8, 2), 512),
        (10, False, 300, False, (100, 33), 10),
    ],
)
def test_trainings_fit_the_folder_and_the_machine(
    train: int,
    gpu: bool,
    side: int,
    weights: bool,
    epochs: tuple[int, int],
    calibration: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lpvit.cli.init._has_weights", lambda model: weights)
    monkeypatch.setattr("lpvit.cli.init.has_gpu", lambda: gpu)
    suffixes = Counter({".png": train + 10})
    images = Images(ImageSet(root=Path()), 2, (train, 10), suffixes, False, (side, side), 10, {})
    choice = choose(images, None, None)
    assert (choice.epochs, choice.calibration) == (epochs, calibration)


def test_a_config_is_checked_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["check", "config.yaml"]) == 0
    told = capsys.readouterr().out
    assert "main: vit_tiny_patch16_224 on 10 classes of 'digits'" in told
    assert "budget: macs 0.6" in told
    Path("more.yaml").write_text("budgets: {half: {macs: 0.001}}\ncalibrations: {c64: {images: 9999}}\n")
    assert main(["check", "config.yaml", "more.yaml"]) == 1
    told = capsys.readouterr().err
    assert told.count("experiments.main: ") == told.count("\n") == 2
    assert told.count("lpvit check: config.yaml, line ") == 2
    assert not Path("results").exists()


def test_all_mistakes_of_a_config_are_told_at_once_in_plain_words_with_their_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    Path("more.yaml").write_text(
        "budgets:\n  half: {macs: 50}\n"
        "recipes:\n  short: {epochs: 2, batch_size: 64, learning_rate: fast}\n"
        "datasets:\n  photos: {root: absent}\n"
        "experiments:\n  main: {pruning: b9}\n"
    )
    assert main(["check", "config.yaml", "more.yaml"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "lpvit check: more.yaml, line 2: budgets.half.macs: expected at most 1, found 50; it is a share: 50 % is 0.5",
        "lpvit check: more.yaml, line 4: recipes.short.learning_rate: expected a number, found 'fast'",
        "lpvit check: more.yaml, line 8: experiments.main.pruning: no 'b9' in prunings; known are b8",
        "lpvit check: more.yaml, line 6: datasets.photos.root: absent not found; correct the path",
    ]


def test_images_are_looked_at_where_a_bad_one_would_stop_the_run_and_the_time_is_told(
    change: Callable[..., dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        for name in "ab":
            make_images(Path("photos", split, name), 8, side=8)
    config = change(TINY, "datasets.digits", {"root": "photos", "loader": "memory"})
    config = change(config, "calibrations.c64.images", 8)
    Path("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["check", "config.yaml"]) == 0
    told = capsys.readouterr().out
    assert "digits: 32 of 32 images decoded" in told
    assert re.search(r"about \d+ (seconds|minutes) on this machine", told)
    Path("photos/train/a/3.png").write_bytes(b"no image")
    assert main(["check", "config.yaml"]) == 1
    told = capsys.readouterr().err
    assert "datasets.digits: 1 of 32 images looked at cannot be decoded (train/a/3.png: no image" in told
    assert "on_bad_image: skip" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: found 0, expected a positive number"),
        (["--model", "resnet18"], "--model: no repeated module with attention is found"),
        (["--model", "vit_tiny_patch16_22"], "--model: timm knows no model 'vit_tiny_patch16_22'; did you mean"),
    ],
)
def test_a_model_or_training_that_cannot_work_is_refused_before_images_are_read(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    unsplit(Path("photos"))
    assert main(["init", "photos", *arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"lpvit init: {message}")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "10 seconds"), (84, "80 seconds"), (600, "10 minutes"), (12_000, "3 h 20 min"), (200_000, "2 days")],
)
def test_a_time_has_no_more_digits_than_an_estimate(seconds: float, text: str) -> None:
    assert told_time(seconds) == text


def test_without_a_config_a_command_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune"]) == 1
    assert "lpvit.yaml: config not found; write one with 'lpvit init FOLDER'" in capsys.readouterr().err


def test_a_run_that_cannot_write_its_folders_is_refused_in_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(TINY))
    Path("a_file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(Path("a_file").resolve()))
    assert main(["prune", "config.yaml", "--dry-run"]) == 1
    told = capfd.readouterr().err
    assert "/a_file/.cache/snakemake: cannot be written (Not a directory), but Snakemake must; set XDG_CACHE" in told
    assert told.count("\n") == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("caches").resolve()))
    shutil.rmtree(".snakemake")
    Path(".snakemake").touch()
    assert main(["prune", "config.yaml", "--dry-run"]) == 1
    told = capfd.readouterr().err
    assert told.endswith("/.snakemake: cannot be written (File exists), but Snakemake must; run it in another folder\n")


def test_a_run_is_that_of_the_workflow(finished: tuple[Workflow, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    workflow, _ = finished
    command = [sys.executable, "-m", "lpvit", "prune", "config.yaml", "--dry-run", "--cores", "2"]
    environment = workflow.command(TINY)[1]
    run = subprocess.run(command, cwd=workflow.folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout + run.stderr
    again = subprocess.run(
        command[:5], cwd=workflow.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0
    assert again.stdout + again.stderr == (
        "nothing to do, every result is up to date: results/report/tiny/index.html\n"
    )


def test_files_of_a_run_say_what_they_are(finished: tuple[Workflow, Run], capsys: pytest.CaptureFixture[str]) -> None:
    results = finished[0].folder / "results/digits/vit"
    for file, words in (
        ("c64/b8/half/short/finetuned.pt", ("holds: finetuned", "Pruned(VisionTransformer", "blocks.0.attn.qkv")),
        ("c64/b8/half/pruned.pt", ("holds: pruned", "vit_tiny_patch16_224", "10 classes")),
        ("dense.pt", ("holds: dense", "vit_tiny_patch16_224", "10 classes")),
        ("c64/b8/statistics.pt", ("holds: statistics",)),
        ("c64/b8/half/allocation.parquet", ("a table: 8 rows, one per prunable layer", "keep_ratio")),
    ):
        assert main(["info", str(results / file)]) == 0
        told = capsys.readouterr().out
        assert all(word in told for word in words), told


def test_a_pruned_model_is_exported_described_and_timed(
    finished: tuple[Workflow, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = finished[0].folder / "results/digits/vit/c64/b8/half/pruned.pt"
    assert main(["export", str(pruned), "model.safetensors"]) == 0
    assert main(["info", "model.safetensors"]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    images = torch.rand(2, 1, 8, 8)
    expected = lpvit.load("model.safetensors").model(images)
    assert main(["export", "model.safetensors", "again.safetensors"]) == 0
    torch.testing.assert_close(lpvit.load("again.safetensors").model(images), expected)
    assert main(["bench", "model.safetensors", "--batch-size", "2", "--seconds", "0.05"]) == 0
    told = capsys.readouterr().out
    assert all(setup in told for setup in ("dense", "masked", "sparse", "95 % interval"))


def test_a_model_for_openvino_comes_with_its_library_or_one_line_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = lpvit.prune(dense_model("vit"), photographs("vit").split(8), budget=0.5, block_shape=(8, 4))
    lpvit.save(pruned, "model.safetensors", options=VIT)
    arguments = ["export", "model.safetensors", "out/model.xml", "--precision", "int8"]
    Path("out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("lpvit.api.export.find_spec", lambda package: None)
        assert main(arguments) == 1
    told = "lpvit export: out/model.xml: needs the package 'openvino'; pip install 'lpvit[engines]'\n"
    assert capsys.readouterr().err == told
    pytest.importorskip("openvino")
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "absent++")
        assert main(arguments) == 1
    told = capsys.readouterr().err
    assert told.startswith("lpvit export: the library for OpenVINO: no C++ compiler 'absent++'; install g++")
    assert told.count("\n") == 1
    assert not list(Path("out").iterdir())
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert all(f"wrote out/{name} (" in told for name in ("model.xml", "model.bin", "lpvit_openvino.so"))
    assert "core.add_extension('lpvit_openvino.so')" in told
    assert {path.name for path in Path("out").iterdir()} == {"model.xml", "model.bin", "lpvit_openvino.so"}


def test_who_reads_the_output_may_stop_early(folder: Path) -> None:
    make_images(folder / "photos/cat", 20)
    make_images(folder / "photos/dog", 20)
    command = [sys.executable, "-m", "lpvit", "init", "photos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_files_that_are_none_of_ours_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": 1}, "foreign.pt")
    Path("foreign.parquet").write_bytes(b"")
    pruned = lpvit.prune(dense_model("vit"), photographs("vit").split(8), budget=0.5, block_shape=(8, 4))
    lpvit.save(pruned, "model.safetensors", options=VIT)
    for arguments, message in (
        (["info", "absent.pt"], "absent.pt: file not found"),
        (["info", "foreign.pt"], "foreign.pt: cannot be read (it carries no digest"),
        (["info", "foreign.parquet"], "foreign.parquet: not a table of lpvit; these are images.parquet"),
        (["bench", "foreign.pt"], "foreign.pt: cannot be read (it carries no digest"),
        (["export", "model.safetensors", "model.tflite"], "model.tflite: found suffix '.tflite', expected one of"),
        (["export", "model.safetensors", "m.onnx", "--precision", "int8"], "m.onnx: --precision is for .xml files"),
    ):
        assert main(arguments) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"lpvit {arguments[0]}: {message}")
        assert told.count("\n") == 1


@pytest.mark.parametrize("path", ["", "..", "a_folder", "absent", "binary", "a" * 300])
@pytest.mark.parametrize(
    "command", ["info PATH", "bench PATH", "export PATH o.onnx", "check PATH", "prune PATH", "init PATH"]
)
def test_a_path_that_is_none_of_a_file_for_a_command_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], command: str, path: str
) -> None:
    Path("a_folder").mkdir()
    Path("binary").write_bytes(bytes(range(256)))
    assert main([path if word == "PATH" else word for word in command.split()]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_place_that_cannot_be_written_and_a_number_of_threads_below_one_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pruned = lpvit.prune(dense_model("vit"), photographs("vit").split(8), budget=0.5, block_shape=(8, 4))
    lpvit.save(pruned, "model.safetensors", options=VIT)
    for rest in (["export", "/proc/model.safetensors"], ["bench", "--threads", "0"]):
        assert main([rest[0], "model.safetensors", *rest[1:]]) == 1
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict model.safetensors photo.png --top -1", "--top: found -1, expected a positive number"),
        ("predict photos photo.png", "photos: is a folder, expected a file"),
        ("predict model.safetensors photos", "photos: is a folder, expected a file"),
        (
            "compare model.safetensors model.safetensors photos --limit 0",
            "--limit: found 0, expected a positive number",
        ),
        ("compare model.safetensors photos model.safetensors", "photos: is a folder, expected a file"),
        ("compare model.safetensors model.safetensors photo.png", "photo.png: is a file; give a folder of images"),
        ("bench model.safetensors --batch-size 1 0", "--batch-size: found 0, expected a positive number"),
        ("bench model.safetensors --seconds inf", "--seconds: found inf, expected a positive number"),
        ("bench notes.xml", "notes.xml: cannot be read by OpenVINO, whose models are XML"),
        ("export model.onnx again.safetensors", "model.onnx: found suffix '.onnx', expected a compressed model"),
        ("export model.safetensors folder.onnx", "folder.onnx: is a folder, expected a file to write"),
        ("check photos", "photos: is a folder, expected a config; 'lpvit init photos' makes one"),
        ("prune config.yaml --cores 0", "--cores: found '0', expected a positive number or 'all'"),
        ("prune config.yaml --cores two", "--cores: found 'two', expected a positive number or 'all'"),
    ],
)
def test_swapped_arguments_and_numbers_that_cannot_be_are_told_in_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "notes.xml" in arguments:
        pytest.importorskip("openvino")
    make_images(Path("photos/cat"), 1)
    Path("folder.onnx").mkdir()
    Path("notes.xml").write_text("notes")
    for name in ("model.onnx", "photo.png", "config.yaml"):
        Path(name).touch()
    model = dense_model("vit")
    model.pretrained_cfg |= {"mean": [0.4], "std": [0.3]}
    pruned = lpvit.prune(model, photographs("vit", 8).split(8), budget=0.5, block_shape=(8, 4))
    lpvit.save(pruned, "model.safetensors", options=VIT)
    assert main(arguments.split()) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"lpvit {arguments.split(maxsplit=1)[0]}: {message}")
    assert told.count("\n") == 1


def test_results_that_are_no_folder_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(TINY))
    Path("results").touch()
    assert main(["prune", "config.yaml"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("lpvit prune: results: cannot be written (File exists)")
    assert told.count("\n") == 1


def test_help_is_there_at_once_and_names_every_command() -> None:
    code = (
        "import sys; from lpvit.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'timm', 'pydantic')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    for command in ("init", "check", "prune", "info", "bench", "export"):
        assert f"    {command} " in run.stdout


def test_init_needs_no_torch() -> None:
    unsplit(Path("photos"))
    code = "import sys; from lpvit.cli.main import main; main(['init', 'photos']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="needs the sample of ImageNet")
def test_photographs_of_imagenet_go_through_init_and_check_as_kaggle_has_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, solution = Path("imagenet/ILSVRC/Data/CLS-LOC"), ["ImageId,PredictionString"]
    with tarfile.open(PHOTOGRAPHS) as archive:
        for number, member in enumerate([member for member in archive if member.isfile()][:30:2], start=1):
            content, synset = archive.extractfile(member).read(), member.name.split("/")[-2]  # type: ignore[union-attr]
            solution.append(f"ILSVRC2012_val_{number:08},{synset} 1 2 3 4")
            for file in (f"train/{synset}/{synset}_{number}.JPEG", f"val/ILSVRC2012_val_{number:08}.JPEG"):
                (images / file).parent.mkdir(parents=True, exist_ok=True)
                (images / file).write_bytes(content)
    Path("imagenet/LOC_val_solution.csv").write_text("\n".join(solution))
    assert main(["init", "imagenet"]) == 0
    assert "15 classes, 30 images (30 .jpeg), stored as 'kaggle_imagenet'" in capsys.readouterr().out
    assert main(["check"]) == 0
    (dataset,) = read_config("lpvit.yaml").datasets.values()
    listed = index_images(dataset)
    assert listed["problem"].isna().all()
    first, second = (listed[listed["split"] == split] for split in ("train", "validation"))
    assert first["class_name"].tolist() == sorted(first["class_name"]) == sorted(second["class_name"])
    assert {line.split()[0] for line in solution[1:]} == {
        f"{Path(path).stem},{name}" for path, name in zip(second["path"], second["class_name"], strict=True)
    }
