"""Checks a config, and runs it as the workflow."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import lpvit
from lpvit.config.config import Config
from lpvit.config.files import read_config
from lpvit.errors import LpvitError

QUIET = ("--quiet", "host", "reason", "rules")  # the stages log their own progress
_PACKAGE = Path(lpvit.__file__).parent


def planned(configs: Sequence[Path]) -> Iterator[str]:
    """Describes what every experiment of a config will prune.

    Raises:
        LpvitError: The config is invalid; one line per problem.
    """
    settings = read_config(*configs)
    from lpvit.stages.plan import plan_experiments  # imports torch, so errors of the config are reported first

    for row in plan_experiments(settings).to_dict("records"):
        experiment = settings.experiments[row["experiment"]]
        asked = ", ".join(f"{name} {target:g}" for name, target in settings.budgets[experiment.budget].stated.items())
        yield (
            f"{row['experiment']}: {settings.models[experiment.model].name} on {row['classes']} classes of "
            f"'{experiment.dataset}'; {row['dense_macs'] / 1e6:,.1f} M multiply-adds per image, "
            f"of which {row['prunable_macs'] / row['dense_macs']:.0%} can be pruned; budget: {asked}"
        )
    yield f"{', '.join(map(str, configs))}: no errors found"


def run_workflow(configs: Sequence[Path], cores: str, dry_run: bool) -> int:
    """Runs the workflow on a config, in the current folder; returns its exit status.

    Raises:
        LpvitError: The config has errors that do not depend on images and models, Snakemake is missing, or it cannot
            write where it must.
    """
    settings = read_config(*configs)
    if find_spec("snakemake") is None:
        raise LpvitError("the workflow needs the package 'snakemake'; pip install 'lpvit[workflow]'")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - as Snakemake does
    _require_writable(Path.cwd() / ".snakemake", "run it in another folder")
    _require_writable(caches / "snakemake", "set XDG_CACHE_HOME to a folder for caches")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile()), "--cores", cores]
    command += ["--configfile", *map(str, configs), *(["--dry-run"] if dry_run else QUIET)]
    process = subprocess.Popen(command)
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:  # Snakemake receives it as well and ends its jobs first
            continue
    if code == 0 and not dry_run:
        for file in final_models(settings):
            print(f"pruned model: {file}")
        print("next: lpvit info FILE, lpvit bench FILE, lpvit export FILE model.safetensors")
    elif code:
        print("not finished; run the same command again to resume", file=sys.stderr)
    return code


def _require_writable(folder: Path, remedy: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise LpvitError(f"{folder}: cannot be written ({error.strerror}), but Snakemake must; {remedy}") from None


def final_models(settings: Config) -> list[Path]:
    """The path of the last model of every experiment."""
    files = []
    for experiment in settings.experiments.values():
        budget = "@".join([experiment.budget, *experiment.schemes])
        folder = settings.results / experiment.dataset / experiment.model / experiment.calibration
        folder = folder / experiment.pruning / budget
        files.append(folder / "pruned.pt" if experiment.recipe is None else folder / experiment.recipe / "finetuned.pt")
    return list(dict.fromkeys(files))


def snakefile() -> Path:
    """The workflow of this checkout, or that installed with the package.

    Raises:
        LpvitError: Neither exists.
    """
    for folder in (_PACKAGE.parent, _PACKAGE / "_workflow"):
        if (folder / "workflow/rules").is_dir():
            return folder / "Snakefile"
    raise LpvitError(f"{_PACKAGE}: installed without its workflow; install lpvit again")
