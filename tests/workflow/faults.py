"""A workflow that is disturbed on purpose, and what it shows and leaves."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from conftest import Run, Workflow

MEASURED = {"seconds"}  # columns that two equal runs differ in


class Disturbed:
    """A call of Snakemake that is under way."""

    def __init__(self, workflow: Workflow, config: dict[str, Any], *arguments: str, under: Sequence[str] = ()) -> None:
        """Starts it.

        Args:
            workflow: A copy of its own.
            config: Of the run.
            *arguments: Of Snakemake.
            under: Command that runs the command.
        """
        command, environment = workflow.command(config, *arguments)
        heard = ["env", "--default-signal=INT"]  # which is ignored where tests run in the background
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*heard, *under, *command], cwd=workflow.folder, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def until(self, pattern: str) -> "Disturbed":
        """Goes on until it prints a line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                return self
        raise AssertionError(f"'{pattern}' was never printed:\n{''.join(self.lines)}")

    def job(self, script: str) -> psutil.Process:
        """The process of the job that runs a script, once it has started."""
        for _ in range(2400):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):  # it ended while it was looked at
                    if any(f".{script}.py" in word for word in process.cmdline()):
                        return process
            time.sleep(0.05)
        raise AssertionError(f"no job of '{script}.py':\n{''.join(self.lines)}")

    def end(self, timeout: float = 300) -> Run:
        try:
            rest, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        return Run(self.process.returncode, "".join(self.lines) + rest)


def contents(folder: Path) -> dict[str, Any]:
    """What the tables and tensors of a folder say: file -> values that can be compared."""
    values: dict[str, Any] = {}
    for file in sorted(folder.rglob("*.parquet")):
        frame = pd.read_parquet(file)
        values[str(file.relative_to(folder))] = frame.drop(columns=MEASURED & set(frame.columns)).to_dict("list")
    for file in sorted(folder.rglob("*.pt")):
        values[str(file.relative_to(folder))] = _comparable(torch.load(file, weights_only=True)["payload"])
    return values


def differences(one: Path, other: Path) -> list[str]:
    """Files that two folders of results do not share, or that say something else."""
    first, second = contents(one), contents(other)
    return [file for file in sorted(first.keys() | second.keys()) if repr(first.get(file)) != repr(second.get(file))]


def wait_for(what: Callable[[], bool], seconds: float = 120) -> bool:
    """Whether it comes about in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.1)
    return False


def _comparable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    return [_comparable(item) for item in value] if isinstance(value, list | tuple) else value
