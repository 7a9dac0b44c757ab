"""Config files: mistakes of YAML by file and line."""

from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, TINY

from lpvit.config.config import parse_config
from lpvit.config.files import read_config, read_yaml
from lpvit.errors import LpvitError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1}\na: 2\n", "line 3: 'a' appears here and in line 1; rename one"),
        ("experiments:\n  x: {a: 1}\n  y: {a: 1}\n  x: {a: 2}\n", "line 4: 'x' appears here and in line 2; rename one"),
        ("a: {b: 1, b: 2}\n", "line 1: 'b' appears here and in line 1"),
        ("a: &n {b: 1}\nc: {<<: *n, b: 2, b: 3}\n", "line 2: 'b' appears here and in line 2"),
        ("a: [1, 2\nb: 3\n", "line 2: while parsing a flow sequence"),
        ("a:\n\tb: 1\n", "line 2: while scanning for the next token"),
        ("a: *missing\n", "line 1: found undefined alias 'missing'"),
    ],
)
def test_a_mistake_of_yaml_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(LpvitError) as error:
        read_yaml(file)
    assert str(error.value).startswith(f"{file}, {message}")
    assert "\n" not in str(error.value)


def test_merged_keys_may_recur(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: &n {b: 1, c: 2}\nd: {<<: *n, b: 3}\ne: {<<: *n, b: 4}\n")
    assert read_yaml(tmp_path / "config.yaml")["e"] == {"b": 4, "c": 2}


def test_files_are_laid_over_each_other(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "above.yaml").write_text("report: other\nbudgets: {half: {macs: 0.7}}\n")
    config = read_config(tmp_path / "below.yaml", tmp_path / "above.yaml")
    assert (config.report, config.budgets["half"].macs) == ("other", 0.7)
    assert config.datasets == parse_config(TINY).datasets


def test_what_is_no_config_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "latin.yaml").write_bytes("a: Übung".encode("latin-1"))
    for name, message in (
        ("absent.yaml", "config not found; .*'lpvit init'"),
        ("list.yaml", "expected keys with values"),
        ("latin.yaml", "byte 3 is not UTF-8 text"),
        (".", "is a folder, expected a config"),
    ):
        with pytest.raises(LpvitError, match=message):
            read_config(tmp_path / name)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "config").glob("*.yaml")), ids=lambda file: file.name)
def test_the_configs_that_are_shipped_are_sound(file: Path) -> None:
    assert read_config(file).experiments
