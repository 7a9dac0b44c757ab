"""The command ``lpvit``. Each command imports the packages that it needs."""

import argparse
import errno
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lpvit import __version__
from lpvit.errors import LpvitError
from lpvit.precisions import FLOATING, SPARSE

CONFIG = "lpvit.yaml"  # written by `init`, read by the others
_POSITIVE = ("epochs", "batch_size", "threads", "seconds", "top", "limit")  # options

_EXAMPLES = f"""from a folder of images to a pruned model:
  lpvit init photos      writes {CONFIG}; open it to change anything
  lpvit check            prints what will be pruned, or all errors of the config
  lpvit prune            trains, prunes, fine-tunes, evaluates; resumes if interrupted
  lpvit info FILE        describes a model and what was pruned
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0 on success, 1 after an error, 2 after an unknown option."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    try:
        _require_positive(options)
        run: Callable[[argparse.Namespace], int | None] = options.run
        status = run(options) or 0
        sys.stdout.flush()
        return status
    except LpvitError as error:
        for line in str(error).splitlines():
            print(f"lpvit {options.command}: {line}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has stopped; the rest of the output is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM):
            raise
        print(f"lpvit {options.command}: {str(error.filename)[:200]}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lpvit {options.command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _require_positive(options: argparse.Namespace) -> None:
    for name in _POSITIVE:
        given = getattr(options, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not 0 < value < math.inf:
                raise LpvitError(f"--{name.replace('_', '-')}: found {value}, expected a positive number")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lpvit",
        description="Compresses Vision Transformers under a compute budget: low-rank factors, block pruning.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lpvit {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log progress")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_config_commands(commands)
    _add_file_commands(commands)
    return parser


def _add_config_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    init = _command(commands, "init", _init, "inspect a folder of images and write a config for it")
    init.add_argument(
        "folder", type=Path, help="folder of images: <class>/*.jpg, or train/<class>/ and val/<class>/, or *.jpg"
    )
    init.add_argument("--output", type=Path, default=Path(CONFIG), help="the config to write (default: %(default)s)")
    init.add_argument("--force", action="store_true", help="overwrite an existing config")
    init.add_argument("--model", help="timm model, or folder of transformers (default: by image size)")
    init.add_argument("--epochs", type=int, help="epochs of the dense model's training (default: by data and machine)")

    check = _command(commands, "check", _check, "print what a config will prune, or all its errors")
    prune = _command(commands, "prune", _prune, "run a config: train, prune, fine-tune, evaluate, report")
    report = _command(commands, "report", _report, "write one file with every figure, and code and settings behind it")
    report.add_argument("--output", type=Path, default=Path("report.html"), help="file to write (default: %(default)s)")
    for command in (check, prune, report):
        command.add_argument(
            "config", nargs="*", type=Path, help=f"config; of several, later ones win (default: {CONFIG})"
        )
    prune.add_argument("--cores", default="all", help="CPU cores to use (default: all)")
    prune.add_argument("--dry-run", action="store_true", help="list what would run")
    prune.add_argument("--benchmark", action="store_true", help="also measure speed and energy on this machine")


def _add_file_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    info = _command(commands, "info", _info, "describe a file: a saved model or any output of a run")
    bench = _command(commands, "bench", _bench, "time a model on this machine, beside its dense form or other files")
    export = _command(commands, "export", _export, "convert a pruned model for other engines")
    info.add_argument("file", type=Path, help="a model (.safetensors, .pt, .onnx, .xml), a table, a log, a figure")
    export.add_argument("file", type=Path, help="model.safetensors, pruned.pt or finetuned.pt")
    what = "a compressed model, timed beside its dense form; or several of .safetensors, .pt, .onnx, .xml, in turns"
    bench.add_argument("files", type=Path, nargs="+", metavar="FILE", help=what)
    bench.add_argument("--batch-size", type=int, nargs="+", default=[1, 8], help="images per pass (default: 1 8)")
    bench.add_argument("--dtype", default="float32", choices=FLOATING, help="of the weights")
    bench.add_argument("--threads", type=int, help="CPU threads (default: as torch does)")
    bench.add_argument(
        "--seconds", type=float, default=3.0, help="per configuration, batch size (default: %(default)g)"
    )
    rivals = "further engines for one compressed model, such as openvino_float32 or onnxruntime_float32"
    bench.add_argument("--engines", nargs="+", default=[], metavar="ENGINE", help=rivals)
    bench.add_argument("--json", type=Path, help="also write the numbers to this file")
    bench.add_argument("--csv", type=Path, help="likewise")
    kinds = ".safetensors for lpvit.load, .onnx for other engines, .xml for OpenVINO with our kernels"
    predict = _command(commands, "predict", _predict, "print the most likely classes of images")
    predict.add_argument("file", type=Path, help="a model: .safetensors, .pt, .onnx or .xml")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="files of images")
    predict.add_argument("--top", type=int, default=3, help="classes to print (default: %(default)s)")
    compare = _command(commands, "compare", _compare, "compare two models on images, as a page")
    compare.add_argument("dense", type=Path, help="a model: .safetensors, .pt, .onnx or .xml")
    compare.add_argument("compressed", type=Path, help="the other")
    compare.add_argument("images", type=Path, help="folder of images, in class folders if their classes are known")
    compare.add_argument("--output", type=Path, default=Path("compare.html"), help="the page (default: %(default)s)")
    compare.add_argument("--limit", type=int, default=2000, help="most images, spread evenly (default: %(default)s)")
    export.add_argument("target", type=Path, help=f"file to write: {kinds}")
    export.add_argument("--precision", choices=SPARSE, help="of the products in OpenVINO (default: float32)")
    export.add_argument("--opset", type=int, help="version of the operators of ONNX (default: torch's choice)")
    sizes = "of ONNX; dynamic: any that the model takes (default: fixed)"
    export.add_argument("--image-size", choices=("fixed", "dynamic"), help=sizes)


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    what: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.set_defaults(run=run)
    return parser


def _init(options: argparse.Namespace) -> None:
    from lpvit.cli.init import write_config

    for line in write_config(options.folder, options.output, options.model, options.epochs, options.force):
        print(line)


def _check(options: argparse.Namespace) -> None:
    from lpvit.cli.check import planned

    for line in planned(_configs(options)):
        print(line)


def _prune(options: argparse.Namespace) -> int:
    from lpvit.cli.run import run_workflow

    modes = {name: getattr(options, name) for name in ("dry_run", "benchmark", "verbose")}
    return run_workflow(_configs(options), options.cores, **modes)


def _report(options: argparse.Namespace) -> None:
    from lpvit.cli.run import write_report

    write_report(_configs(options), options.output)
    print(f"wrote {options.output}")


def _info(options: argparse.Namespace) -> None:
    from lpvit.cli.models import described

    for line in described(options.file):
        print(line)


def _predict(options: argparse.Namespace) -> None:
    from lpvit.cli.predict import predicted

    for line in predicted(options.file, options.images, options.top):
        print(line)


def _compare(options: argparse.Namespace) -> None:
    from lpvit.cli.compare import compared

    for line in compared(options.dense, options.compressed, options.images, options.output, options.limit):
        print(line)


def _bench(options: argparse.Namespace) -> None:
    from lpvit.cli.bench import Bench, timed

    how = Bench(
        options.batch_size,
        options.dtype,
        options.threads,
        options.seconds,
        options.engines,
        options.json,
        options.csv,
    )
    for line in timed(options.files, how):
        print(line)


def _export(options: argparse.Namespace) -> None:
    from lpvit.cli.models import export

    for line in export(options.file, options.target, options.precision, options.opset, options.image_size):
        print(line)


def _configs(options: argparse.Namespace) -> list[Path]:
    """The given configs, or that of `init`, or that of a checkout."""
    found = options.config or [file for file in (Path(CONFIG), Path("config/config.yaml")) if file.is_file()][:1]
    if not found:
        raise LpvitError(f"{CONFIG}: config not found; write one with 'lpvit init FOLDER', or name another")
    return list(found)


if __name__ == "__main__":
    sys.exit(main())
