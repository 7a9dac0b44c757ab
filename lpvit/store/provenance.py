"""Digests of what a result depends on.

The digest of the code behind a script makes an edited module rerun the stages that import it and no others.

Snakemake watches a rule's script, not what the script imports. Every rule therefore carries this digest as a param.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
BESIDE = ("csrc", "template")  # folders of what modules use beside Python


def source_digest(script: str | Path, package: Path = PACKAGE) -> str:
    """Digest of a script and of every module of the package that it imports, directly or not.

    Kernels and templates beside a module count with it.

    Of a package that is imported by its name (``from lpvit.data import loaders``), all modules count.

    Comments, docstrings, layout, the version number and imports for type checkers do not count: rewording or a release
    reruns nothing.

    Args:
        script: Python file.
        package: Folder of the package whose imports are followed.

    Returns:
        Twelve hexadecimal digits.
    """
    seen: dict[Path, str] = {}
    waiting = [Path(script)]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        tree = _without_prose(ast.parse(file.read_text(), str(file)))
        waiting += _imported_files(tree, package)
        seen[file] = ast.dump(tree)
    for folder in {file.parent / kind for file in seen if file.parent != Path(script).parent for kind in BESIDE}:
        seen |= {file: file.read_text() for file in folder.glob("*") if file.is_file()}
    ordered = sorted((file.name, dump) for file, dump in seen.items())
    return hashlib.sha256(repr(ordered).encode()).hexdigest()[:12]


def fingerprint(settings: object, *files: str | Path) -> str:
    """Digest of settings and of the content of files: names all that a resumable training depends on.

    Args:
        settings: Plain values.
        files: Inputs, read whole.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _imported_files(tree: ast.Module, package: Path) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names[1:]:  # a package taken by its name holds variants, of which any may be used
                if name.startswith(f"{package.name}."):
                    yield from package.joinpath(*name.split(".")[1:]).glob("*.py")
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == package.name:
                yield from _files_of(parts[1:], package)


def _files_of(parts: list[str], package: Path) -> Iterator[Path]:
    """Files that importing ``package.parts`` runs: the ``__init__`` of every folder on the way, and the module."""
    folder = package
    yield from _existing(folder / "__init__.py")
    for part in parts:
        yield from _existing(folder / f"{part}.py")
        folder = folder / part
        yield from _existing(folder / "__init__.py")


def _existing(file: Path) -> Iterator[Path]:
    if file.is_file():
        yield file


def _without_prose(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_prose(statement)]
    return tree


def _is_prose(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) == "TYPE_CHECKING" and not statement.orelse
    if isinstance(statement, ast.Assign):
        return ast.unparse(statement.targets[0]) == "__version__"
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
