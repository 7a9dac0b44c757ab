"""What `lpvit prune` prints of a run besides the lines of its stages. Snakemake's own lines are switched off.

`lpvit.stages.stage` logs what happens in a stage.
"""

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpvit.stages.labels import label_of

VARIABLE = "LPVIT_CONSOLE"  # of the environment, set by `lpvit prune`
_OF_A_STAGE = "CalledProcessError"
_NOTHING = "Nothing to be done"


class Console(logging.Handler):
    """Handles the records of Snakemake's logger: a line for every stage that starts, and errors."""

    def __init__(self, config: Mapping[str, Any], report: str) -> None:
        """Takes the raw config and the page of its report."""
        super().__init__()
        self._config, self._report = config, report
        self._started = self._total = 0
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record if it is for people."""
        event, told = str(getattr(record, "event", None) or ""), vars(record)
        if event == "run_info":
            counts = told.get("stats") or {}
            self._total = int(counts.get("total", 0)) - sum(int(counts.get(name, 0)) for name in ("all", "benchmark"))
        elif event == "job_info" and told.get("log"):  # targets have none
            self._started += 1
            stage = f"stage {self._started} of {max(self._started, self._total)}: {told['rule_name']}"
            label = label_of(told["log"][0], self._config)
            self._say(f"{time.strftime('%H:%M:%S')} {f'[{label}] ' if label else ''}{stage}")
        elif event in ("job_error", "group_error"):
            self._failed = True
            log = next(iter(told.get("log") or ()), "")
            self._say(f"failed: {told.get('rule_name', 'a stage')}{f' (log: {log})' if log else ''}")
        elif record.levelno >= logging.ERROR:
            if not self._failed and _OF_A_STAGE not in record.getMessage():  # of a failed job its stage has said all
                self._say(record.getMessage())
        elif _NOTHING in record.getMessage():
            when = f": {self._report}" if Path(self._report).is_file() else ""
            print(f"nothing to do, every result is up to date{when}", flush=True)

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
