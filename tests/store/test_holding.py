"""One run works in a folder, and its jobs end with it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lpvit.errors import LpvitError
from lpvit.store import holding
from lpvit.store.artifacts import write_text
from lpvit.store.holding import RUN, Run, hold, release

IMPORTS = "import sys, time; from lpvit.store.holding import end_with_the_run, hold; "
HOLD = IMPORTS + "hold(sys.argv[1]); print('held', flush=True); time.sleep(60)"
JOB = IMPORTS + "end_with_the_run(); time.sleep(60)"


@pytest.fixture(autouse=True)
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN, "")


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def elsewhere(folder: Path, silent_for: float) -> Run:
    """A run of another machine that holds the folder."""
    run = replace(Run.this(folder), machine="another", host="node7", process=12)
    run.file.write_text(json.dumps(asdict(run)))
    os.utime(run.file, (time.time() - silent_for,) * 2)
    return run


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    first = holder(tmp_path)
    with pytest.raises(LpvitError, match=rf"another run works in this folder \(process {first.pid} on "):
        hold(tmp_path)
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # dead, but its exit code is left to be asked for
    release(hold(tmp_path))
    assert (tmp_path / ".running").read_text() == ""
    first.wait()


def test_a_run_of_another_machine_holds_the_folder_as_long_as_it_gives_signs_of_life(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere(tmp_path, silent_for=30)
    with pytest.raises(LpvitError, match=r"\(process 12 on node7\); wait until it ends, or 120 s if it is dead"):
        hold(tmp_path)
    elsewhere(tmp_path, silent_for=300)
    release(hold(tmp_path))
    assert "was held by process 12 on node7" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(LpvitError, match="results: cannot be written"):
        hold(tmp_path / "results")


def test_a_result_takes_its_place_only_if_its_run_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "_give_signs_of_life", lambda run: None)  # it would end this process
    run = hold(tmp_path)
    write_text("first", tmp_path / "result")
    elsewhere(tmp_path, silent_for=0)
    with pytest.raises(LpvitError, match="no longer held by the run that started this job"):
        write_text("late", tmp_path / "result")
    assert (tmp_path / "result").read_text() == "first"
    assert not list(tmp_path.glob("*.partial"))
    assert not run.holds()


@pytest.mark.parametrize("how", ["killed", "taken over"])
def test_a_job_ends_when_its_run_does(tmp_path: Path, how: str) -> None:
    first = holder(tmp_path)
    environment = os.environ | {RUN: (tmp_path / ".running").read_text()}
    job = subprocess.Popen([sys.executable, "-c", JOB], env=environment)
    time.sleep(1.5)
    assert job.poll() is None
    if how == "killed":
        first.kill()
    else:
        elsewhere(tmp_path, silent_for=0)
    assert job.wait(timeout=120) == -signal.SIGKILL
    first.kill()
    first.wait()


def test_a_job_of_another_machine_ends_when_its_run_is_silent_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = holding._is_gone(elsewhere(tmp_path, silent_for=0))
    assert not gone()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert gone()
    os.utime(tmp_path / ".running")
    assert not gone()


AS_ANOTHER = "import os, sys; os.umask(0o027); os.setgroups([]); os.setgid(4242); os.setuid(int(sys.argv[2])); "


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of a group; not below `tmp_path`, whose parents only one user can enter."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.chown(folder, 0, 4242)
        folder.chmod(0o2770)
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
def test_users_of_a_group_take_turns_although_only_its_owner_can_write_a_lock_file(shared: Path) -> None:
    def run(user: int, then: str) -> subprocess.Popen[str]:
        code = IMPORTS.replace("hold; ", "hold, release; ") + AS_ANOTHER + then  # they cannot read this Python
        command = [sys.executable, "-c", code, str(shared), str(user)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    turn = "release(hold(sys.argv[1])); print('held')"
    first = run(4001, turn).communicate()[0]
    assert first == "held\n", first
    assert (shared / ".running").stat().st_mode & 0o777 == 0o640
    assert run(4002, turn).communicate()[0] == "held\n"
    holds = run(4001, "hold(sys.argv[1]); print('held', flush=True); time.sleep(60)")
    assert holds.stdout is not None
    assert holds.stdout.readline() == "held\n"
    assert "another run works in this folder (process" in run(4002, turn).communicate()[0]
    holds.kill()
    holds.communicate()
    assert run(4002, turn).communicate()[0] == "held\n", "the run was killed"
