import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import distributed

from lpvit.errors import LpvitError
from lpvit.training.launcher import launch


def sum_ranks(folder: Path, rank: int, processes: int) -> None:
    total = torch.tensor([float(rank)])
    distributed.all_reduce(total)
    (folder / str(rank)).write_text(f"{int(total)} of {processes}")


def fail(message: str, rank: int, processes: int) -> None:
    if rank == 1:
        raise (LpvitError if message.startswith("config") else ValueError)(message)
    distributed.barrier()


def kill_parent_and_wait(folder: Path, rank: int, processes: int) -> None:
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    distributed.barrier()
    if rank == 0:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    distributed.barrier()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_form_a_group_even_when_a_script_without_a_guard_starts_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from lpvit.training.launcher import launch\n"
        "from test_launcher import sum_ranks\n"
        "launch(sum_ranks, Path(__file__).parent, 2, 'gloo')\n"
        "print('done')\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["1 of 2", "1 of 2"]


def test_an_error_of_the_user_in_one_process_arrives_as_its_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LpvitError, match=r"^config: it is wrong$"):
        launch(fail, "config: it is wrong", 2, "gloo")
    assert "Traceback" not in capfd.readouterr().err


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import test_launcher as t\n"
        "t.launch(t.kill_parent_and_wait, Path(sys.argv[1]), 2, 'gloo')\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(__file__).parent,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # the killed process leaves its temporary folder
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in (0, 1)]
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))
