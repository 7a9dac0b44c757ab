"""Old paths, which lead to what is there now."""

import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from lpvit import moved

OLD = (Path(__file__).parent / "old_modules.txt").read_text().split()  # before packages were named by what they are for


@pytest.mark.parametrize("module", OLD)
def test_every_old_path_is_imported_and_has_the_names_of_the_new_one(module: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = import_module(module)
        new = moved.MODULES.get(module.removeprefix("lpvit."))
        for name in vars(import_module(f"lpvit.{new}")) if new else ():
            assert name.startswith("_") or hasattr(found, name)


def test_every_new_path_is_there_and_no_old_one():
    for old, new in moved.MODULES.items():
        import_module(f"lpvit.{new}")
        path = Path(moved.__file__).parent.joinpath(*old.split("."))
        assert not path.with_suffix(".py").exists()
        assert not (path / "__init__.py").exists()
    for name, new in moved.NAMES.items():
        assert hasattr(import_module(f"lpvit.{new}"), name.rpartition(".")[2])


def test_an_old_path_warns_once_in_one_line_that_names_the_new_one():
    code = "import lpvit.weights.settings\nlpvit.weights.settings.Quantisation\nimport lpvit.weights.settings"
    command = [sys.executable, "-W", "always::DeprecationWarning:__main__", "-c", code]
    lines = subprocess.run(command, text=True, capture_output=True, check=True).stderr.splitlines()
    assert lines == [
        "<string>:1: DeprecationWarning: lpvit.weights.settings is lpvit.quantisation.settings now; "
        "the next release removes the old path"
    ]


def test_a_name_that_left_its_module_is_forwarded_and_others_are_not():
    from lpvit.models import architecture

    with pytest.warns(DeprecationWarning, match=r"create_model is lpvit\.models\.sources\.timm\.create_model now"):
        found = architecture.create_model
    assert found is import_module("lpvit.models.sources.timm").create_model
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = architecture.absent
    with pytest.raises(ModuleNotFoundError):
        import_module("lpvit.curves.absent")
