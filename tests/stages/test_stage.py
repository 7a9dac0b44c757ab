"""What every script does around its work."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lpvit.errors import LpvitError
from lpvit.stages.stage import stage
from lpvit.store.holding import RUN, Run
from lpvit.store.records import read_record


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What Snakemake gives to a script."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr(logging, "basicConfig", partial(logging.basicConfig, force=True))  # pytest logs as well
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    yield SimpleNamespace(
        rule="finetune", log=[tmp_path / "a.log"], params={"macs": 0.5}, config={}, threads=1, resources={}
    )
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def log_of(job: Any) -> str:
    return Path(job.log[0]).read_text()


def test_a_stage_that_went_well_leaves_the_settings_that_made_its_results(job: Any) -> None:
    with stage(job):
        assert read_record(job.log[0]) is None
    assert read_record(job.log[0]) == {"macs": 0.5}
    assert "finetune: done in" in log_of(job)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (LpvitError("it is wrong"), "finetune: it is wrong\n"),
        (MemoryError(), "finetune: out of memory; lower a 'batch_size', or give it a larger machine\n"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "finetune: out of memory",
        ),
        (ValueError("?"), "Traceback"),
    ],
)
def test_a_stage_that_failed_ends_in_a_line_and_leaves_no_settings(job: Any, error: Exception, line: str) -> None:
    with stage(job):
        pass
    with pytest.raises(SystemExit) as ended, stage(job):
        raise error
    assert ended.value.code == 1
    assert line in log_of(job)
    assert ("Traceback" in log_of(job)) == (line == "Traceback")
    assert read_record(job.log[0]) is None


def test_a_job_that_comes_too_late_touches_nothing(job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stage(job):
        pass
    before, late = log_of(job), Run.this(tmp_path)
    monkeypatch.setenv(RUN, json.dumps(asdict(late)))
    late.file.write_text(json.dumps(asdict(replace(late, token="newer"))))
    with pytest.raises(SystemExit, match=r"finetune: .* no longer held by the run that started this job"), stage(job):
        raise AssertionError("it began")
    assert log_of(job) == before
    assert read_record(job.log[0]) == {"macs": 0.5}


def test_a_signal_to_interrupt_ends_a_stage_without_a_traceback(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\nfrom types import SimpleNamespace\nfrom lpvit.stages.stage import stage\n"
        "job = SimpleNamespace(rule='r', log=['a.log'], params={}, config={}, threads=1, resources={})\n"
        "with stage(job):\n    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (-2, "")
