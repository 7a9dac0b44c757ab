"""The lines of a run: none twice, none of Snakemake's."""

import logging
from typing import Any

import pytest

from lpvit.stages.console import Console
from lpvit.stages.labels import label_of

CONFIG: dict[str, Any] = {
    "experiments": {
        "a": {"dataset": "d", "model": "m", "calibration": "c", "pruning": "p", "budget": "half", "recipe": "short"},
        "b": {"dataset": "d", "model": "m", "calibration": "c", "pruning": "p", "budget": "third", "recipe": "short"},
    }
}


def test_lines_of_two_budgets_never_read_the_same() -> None:
    labels = [
        label_of(f"results/d/m/c/p/{budget}/short/finetuned/accuracy.log", CONFIG) for budget in ("half", "third")
    ]
    assert labels == ["half/finetuned", "third/finetuned"]
    assert label_of("results/d/m/dense.log", CONFIG) == "m"
    assert label_of("results/report/main/summary.log", CONFIG) == "report/main"
    assert label_of("elsewhere/a.log", {}) == "elsewhere"


def record(message: str = "", level: int = logging.INFO, **told: Any) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", level, "", 0, message, None, None)
    vars(made).update(told)
    return made


def test_stages_are_counted_and_everything_else_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(CONFIG, "report.html")
    console.emit(record(event="run_info", stats={"all": 1, "finetune": 2, "total": 3}))
    console.emit(record("Building DAG of jobs..."))
    console.emit(record(event="job_info", rule_name="finetune", log=["results/d/m/c/p/half/short/finetuned.log"]))
    console.emit(record(event="job_info", rule_name="all", log=[]))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("[half] stage 1 of 2: finetune\n")
    assert err.count("\n") == 1
    console.emit(record(event="job_info", rule_name="check_experiments", log=["results/plan.log"]))
    assert "[" not in capsys.readouterr().err


def test_a_second_run_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Console(CONFIG, "absent.html").emit(record("Nothing to be done (all requested files are present)."))
    assert capsys.readouterr().out == "nothing to do, every result is up to date\n"


def test_what_failed_is_told_once_with_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(CONFIG, "report.html")
    console.emit(record("the folder is locked", logging.ERROR))
    console.emit(record("RuleException:\nCalledProcessError in file pruning.smk", logging.ERROR))
    console.emit(record(event="job_error", rule_name="finetune", log=["a.log"]))
    console.emit(record("At least one job did not complete successfully.", logging.ERROR))
    assert capsys.readouterr().err == "the folder is locked\nfailed: finetune (log: a.log)\n"
