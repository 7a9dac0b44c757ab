import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lpvit.errors import LpvitError
from lpvit.store import artifacts
from lpvit.store.artifacts import load, remove_leftovers, replace_atomically, save
from lpvit.store.schemas import SAMPLES
from lpvit.store.tables import write_parquet

PAYLOAD = {"weight": torch.arange(6.0).view(2, 3), "mask": torch.tensor([True, False]), "shape": (2, 3), "name": "x"}


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_payload_comes_back_as_it_was_saved(tmp_path):
    save(PAYLOAD, tmp_path / "deep" / "a.pt", "dense", {"seed": 0})
    back = load(tmp_path / "deep" / "a.pt", "dense")
    assert back.keys() == PAYLOAD.keys()
    assert torch.equal(back["weight"], PAYLOAD["weight"])
    assert torch.equal(back["mask"], PAYLOAD["mask"])
    assert (back["shape"], back["name"]) == ((2, 3), "x")


def test_a_file_says_what_it_is_and_where_it_comes_from(tmp_path):
    save(PAYLOAD, tmp_path / "a.pt", "dense", {"seed": 7})
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["kind"] == "dense"
    assert content["format"] == artifacts.FORMAT_VERSION
    assert content["provenance"] == {"seed": 7}
    assert content["torch"] == torch.__version__


def test_another_kind_is_refused(tmp_path):
    save(PAYLOAD, tmp_path / "a.pt", "masks")
    with pytest.raises(LpvitError, match=r"a\.pt: holds 'masks' in format 1, expected 'dense'.*delete it and rerun"):
        load(tmp_path / "a.pt", "dense")


def test_another_format_is_refused(tmp_path):
    save(PAYLOAD, tmp_path / "a.pt", "dense", version=4)
    with pytest.raises(LpvitError, match="holds 'dense' in format 4, expected 'dense' in format 1; delete"):
        load(tmp_path / "a.pt", "dense")
    forms = {3: dict[str, object], 2: dict[str, object]}
    with pytest.raises(LpvitError, match="holds 'dense' in format 4, expected 'dense' in format 3 or 2; delete"):
        load(tmp_path / "a.pt", "dense", forms)


def damage_missing(path):
    path.unlink()


def damage_folder(path):
    path.unlink()
    path.mkdir()


def damage_pipe(path):
    path.unlink()
    os.mkfifo(path)


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:200])


def damage_empty(path):
    path.write_bytes(b"")


def damage_foreign(path):
    torch.save({"weight": torch.zeros(2)}, path)


def damage_no_dict(path):
    torch.save([1, 2], path)


def damage_pickle(path):
    torch.save({"kind": "dense", "format": 1, "payload": Path("x")}, path)  # not loadable with weights_only


DAMAGES = [
    damage_missing,
    damage_folder,
    damage_pipe,
    damage_truncated,
    damage_empty,
    damage_foreign,
    damage_no_dict,
    damage_pickle,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_missing_damaged_or_foreign_file_is_named_in_one_line(tmp_path, damage):
    save(PAYLOAD, tmp_path / "a.pt", "dense")
    damage(tmp_path / "a.pt")
    with pytest.raises(LpvitError, match=r"a\.pt: cannot be read .*delete it and rerun") as error:
        load(tmp_path / "a.pt", "dense")
    assert "\n" not in str(error.value)


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "a.txt"
    with replace_atomically(target) as partial:
        partial.write_text("new")
        assert not target.exists()
        assert partial.parent == target.parent
    assert target.read_text() == "new"
    assert contents(tmp_path) == ["a.txt"]


def fail_while_writing(target, error):
    with replace_atomically(target) as partial:
        partial.write_text("half")
        raise error


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyError):
        fail_while_writing(target, KeyError("anything"))
    assert target.read_text() == "old"
    assert contents(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_trouble_with_the_disk_is_told_in_one_line(tmp_path, number):
    with pytest.raises(LpvitError, match=r"a\.pt: cannot be written \(.*free some space") as error:
        fail_while_writing(tmp_path / "a.pt", OSError(number, "system call failed"))
    assert os.strerror(number) in str(error.value)
    assert contents(tmp_path) == []


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "images are gone"), RuntimeError("CUDA error")])
def test_other_trouble_is_not_dressed_up_as_a_full_disk(tmp_path, error):
    with pytest.raises(type(error)):
        fail_while_writing(tmp_path / "a.pt", error)


def test_a_folder_that_is_a_file_is_told_in_one_line(tmp_path):
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(LpvitError, match="cannot be written"):
        save(PAYLOAD, tmp_path / "results" / "a.pt", "dense")


@contextmanager
def small_disk():
    """No file grows beyond 16 KiB in here: not pytest's own log either, so nothing but the writing may happen in it."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def test_a_payload_without_room_is_told_in_one_line_and_leaves_the_old_file(tmp_path):
    save(PAYLOAD, tmp_path / "a.pt", "dense")
    with pytest.raises(LpvitError, match=r"a\.pt: cannot be written \(.*free some space") as error, small_disk():
        save({"weight": torch.zeros(2**18)}, tmp_path / "a.pt", "dense")
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == ["a.pt"]
    assert torch.equal(load(tmp_path / "a.pt", "dense")["weight"], PAYLOAD["weight"])


def test_a_table_without_room_is_told_in_one_line_and_leaves_nothing(tmp_path):
    paths = [np.random.default_rng(i).bytes(2**12).hex() for i in range(8)]
    table = pd.DataFrame({"path": paths, "label": range(8)})
    message = r"samples\.parquet: cannot be written \(.*free some space"
    with pytest.raises(LpvitError, match=message) as error, small_disk():
        write_parquet(table, tmp_path / "samples.parquet", SAMPLES)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == []


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from lpvit.store.artifacts import replace_atomically\n"
        "with replace_atomically(sys.argv[1]) as partial:\n"
        "    partial.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, target], check=False).returncode == -9
    assert target.read_text() == "old"
    (left,) = remove_leftovers(tmp_path.parent)
    assert left.name.endswith(".partial")
    assert contents(tmp_path) == ["a.txt"]
    with replace_atomically(target) as partial:
        partial.write_text("new")
    assert target.read_text() == "new"


def test_what_a_living_process_or_another_machine_writes_is_left_alone(tmp_path):
    with replace_atomically(tmp_path / "deep" / "a.txt") as partial:
        partial.write_text("half")
        process, _, host = partial.name.split(".")[-2].partition("@")
        others = [f".a.txt.{process}@another{host}.partial", ".a.txt.partial", ".a.txt.x@y.partial", "a.txt"]
        for name in others:
            (tmp_path / name).write_text("")
        assert remove_leftovers(tmp_path) == []
    assert contents(tmp_path) == sorted([*others, "deep"])
    assert remove_leftovers(tmp_path / "missing") == []


def test_two_words_that_change_places_are_noticed(tmp_path):
    save({"numbers": torch.arange(2**16)}, tmp_path / "a.pt", "dense")
    content = (tmp_path / "a.pt").read_bytes()
    start = content.index(torch.arange(2, 4).numpy().tobytes())
    for other in (start + 8, start + 2048, start + 2**18):
        swapped = bytearray(content)
        swapped[start : start + 8], swapped[other : other + 8] = content[other : other + 8], content[start : start + 8]
        (tmp_path / "a.pt").write_bytes(swapped)
        with pytest.raises(LpvitError, match="damaged: its content does not match its digest"):
            load(tmp_path / "a.pt", "dense")
