"""Runs a config as the workflow."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import lpvit
from lpvit.config.files import read_config, read_yaml
from lpvit.errors import LpvitError
from lpvit.stages.console import VARIABLE

PROFILE = "profiles/default/config.yaml"  # beside the Snakefile
_PACKAGE = Path(lpvit.__file__).parent


def run_workflow(
    configs: Sequence[Path], cores: str, *, dry_run: bool = False, benchmark: bool = False, verbose: bool = False
) -> int:
    """Runs the workflow on a config, in the current folder; returns its exit status.

    Args:
        configs: Later ones win.
        cores: Number of CPU cores, or ``all``.
        dry_run: List what would run.
        benchmark: Measure speed and energy as well.
        verbose: Print Snakemake's lines too.

    Raises:
        LpvitError: The config has errors that do not depend on images and models, Snakemake is missing, or it cannot
            write where it must; or ``cores`` is no number.
    """
    if cores != "all" and not (cores.isdecimal() and int(cores)):
        raise LpvitError(f"--cores: found '{cores}', expected a positive number or 'all'")
    arguments = ["--cores", cores, *(["all", "benchmark"] if benchmark else [])]
    if dry_run:
        return snakemake(configs, [*arguments, "--dry-run"])
    if verbose:
        code = snakemake(configs, arguments)
    else:  # the profile by hand, as Snakemake tells of every profile that it reads
        plain = ["--quiet", "all", "--workflow-profile", "none", *_profile(snakefile().parent / PROFILE)]
        code = snakemake(configs, [*arguments, *plain], {VARIABLE: "1"})
    if code:
        print("not finished; run the same command again to resume", file=sys.stderr)
    return code


def _require_writable(folder: Path, remedy: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise LpvitError(f"{folder}: cannot be written ({error.strerror}), but Snakemake must; {remedy}") from None


def write_report(configs: Sequence[Path], output: Path) -> None:
    """Writes Snakemake's report of a finished run: every figure, with code and parameters of every file.

    Raises:
        LpvitError: The run is not finished, or as `run_workflow`.
    """
    if snakemake(configs, ["--report", str(output), "--quiet", "all", "--workflow-profile", "none"]):
        names = " ".join(map(str, configs))
        raise LpvitError(f"{output}: not written; finish the run first: lpvit prune {names}")


def snakemake(configs: Sequence[Path], arguments: Sequence[str], environment: Mapping[str, str] = {}) -> int:
    """Calls Snakemake with the workflow of this package; returns its exit status.

    Raises:
        LpvitError: As `run_workflow`.
    """
    results = Path(read_config(*configs).results)
    if find_spec("snakemake") is None:
        raise LpvitError("the workflow needs the package 'snakemake'; pip install 'lpvit[workflow]'")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - as Snakemake does
    _require_writable(Path.cwd() / ".snakemake", "run it in another folder")
    if results.exists():
        _require_writable(results, "make it a folder that can be, or name another by 'results' in the config")
    _require_writable(caches / "snakemake", "set XDG_CACHE_HOME to a folder for caches")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile())]
    command += [*arguments, "--configfile", *map(str, configs)]
    process = subprocess.Popen(command, env={**os.environ, **environment})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # Snakemake receives it as well and ends its jobs first
            continue


def _profile(file: Path) -> list[str]:
    """The settings of a profile as arguments."""
    arguments: list[str] = []
    for key, value in read_yaml(file).items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        arguments += [f"--{key}", *map(str, values)]
    return arguments


def snakefile() -> Path:
    """The workflow of this checkout, or that installed with the package.

    Raises:
        LpvitError: Neither exists.
    """
    for folder in (_PACKAGE.parent, _PACKAGE / "_workflow"):
        if (folder / "workflow/rules").is_dir():
            return folder / "Snakefile"
    raise LpvitError(f"{_PACKAGE}: installed without its workflow; install lpvit again")
