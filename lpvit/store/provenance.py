"""Digests of the code and inputs of a result.

Snakemake detects changes of a rule's script, not of the modules it imports. Every rule therefore has the digests of
this code as a param: an edited module reruns the stages that import it and no others, and is named.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent
BESIDE = ("csrc", "template")  # folders with files that modules use besides Python


# Modules that handle files, logs and errors, not results; only their imported constants count: schemas.
NEUTRAL = (
    "__init__",
    "errors",
    "lazy",
    "moved",
    "mistakes",
    "progress",
    "settings",
    "stages/stage",
    "store/",
    "strategies",
)


def source_digests(script: str | Path, package: Path = PACKAGE) -> dict[str, str]:
    """Digests of a script and of all modules of the package that it imports, directly or not, including kernels.

    Of a package that is imported by its name (``from lpvit.data import loaders``), all modules count.

    Comments, docstrings, formatting, the version number and imports for type checkers do not count, nor do `NEUTRAL`
    modules: rewording, a release or another error message reruns nothing.

    Args:
        script: Python file.
        package: Folder of the package whose imports are followed.

    Returns:
        File, as seen from the package's folder, or constant of a neutral module -> eight hexadecimal digits.
    """
    digests: dict[str, str] = {}
    seen: set[Path] = set()
    waiting = [Path(script)]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        module = _read(file, package, file.read_text())
        waiting += module.imported
        for source, name in module.constants:
            if value := _assignments(source.read_text()).get(name):
                digests[f"{_name(source, package)}: {name}"] = value
        if not _is_neutral(file, package):
            digests[_name(file, package)] = module.digest
    for folder in {file.parent / kind for file in seen if file.is_relative_to(package) for kind in BESIDE}:
        digests |= {_name(file, package): _digest(file.read_bytes()) for file in folder.glob("*") if file.is_file()}
    return dict(sorted(digests.items()))


def fingerprint(settings: object, *files: str | Path) -> str:
    """Digest of settings and file contents: identifies everything that a resumable training depends on.

    Args:
        settings: Plain values.
        files: Inputs, read whole.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


class _Module(NamedTuple):
    digest: str
    imported: list[Path]
    constants: list[tuple[Path, str]]  # imported from neutral modules


@functools.cache
def _read(file: Path, package: Path, text: str) -> _Module:
    """One file; parsed once for all scripts."""
    tree = _without_prose(ast.parse(text, str(file)))
    return _Module(
        _digest(ast.dump(tree).encode()), list(_imported_files(tree, package)), list(_constants(tree, package))
    )


def _constants(tree: ast.Module, package: Path) -> Iterator[tuple[Path, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package.name}."):
            for file in _existing(package.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")):
                if _is_neutral(file, package):
                    yield from ((file, alias.name) for alias in node.names if alias.name.isupper())


@functools.cache
def _assignments(text: str) -> dict[str, str]:
    """Digest of the value that a module assigns to each of its names."""
    tree = ast.parse(text)
    assigned = (node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name))
    return {node.targets[0].id: _digest(ast.dump(node.value).encode()) for node in assigned}  # type: ignore[attr-defined]


def _is_neutral(file: Path, package: Path) -> bool:
    name = str(file.relative_to(package).with_suffix("")) if file.is_relative_to(package) else ""
    return any(name == neutral or (neutral.endswith("/") and name.startswith(neutral)) for neutral in NEUTRAL)


def _name(file: Path, package: Path) -> str:
    return str(file.relative_to(package)) if file.is_relative_to(package) else file.name


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _imported_files(tree: ast.Module, package: Path) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names[1:]:  # a package imported by name is a registry; any strategy may be used
                if name.startswith(f"{package.name}."):
                    yield from package.joinpath(*name.split(".")[1:]).rglob("*.py")
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == package.name:
                yield from _files_of(parts[1:], package)


def _files_of(parts: list[str], package: Path) -> Iterator[Path]:
    """Files that importing ``package.parts`` runs: the ``__init__`` of every parent package, and the module."""
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
