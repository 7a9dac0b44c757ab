"""Digests of the code and inputs of a result.

Snakemake detects changes of a rule's script, not of the modules it imports. Every rule therefore has the digests of
this code as a param: an edited module reruns the stages that import it and no others, and is named.

A *strategy* is a module that the config selects by name (`lpvit.strategies`). Code refers to the package of strategies
by an import, or by a string with its name. All strategies of such a package count, unless the caller gives the selected
ones.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent
BESIDE = ("csrc", "template")  # folders with files that modules use besides Python


# Modules that handle files, logs, errors and processes, not results; only their imported constants count: schemas.
NEUTRAL = (
    *("__init__", "errors", "lazy", "moved", "mistakes", "progress", "settings", "strategies", "precisions", "store/"),
    *("stages/stage", "stages/preloaded", "stages/gpus", "training/launcher", "training/nodes"),
)


def source_digests(
    script: str | Path, package: Path = PACKAGE, chosen: Mapping[str, Collection[str]] | None = None
) -> dict[str, str]:
    """Digests of a script and of all modules of the package that it imports, directly or not, including kernels.

    Of a package that is imported by its name (``from lpvit.data import loaders``) or named in a string
    (``"lpvit.schemes.kinds"``), the ``chosen`` modules count, or all of them if not given.

    Comments, docstrings, formatting, the version number and imports for type checkers do not count, nor do `NEUTRAL`
    modules: rewording, a release or another error message reruns nothing.

    Args:
        script: Python file.
        package: Folder of the package whose imports are followed.
        chosen: Package of strategies -> names that the script may run, as in the config.

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
        for folder, inside in module.packages:
            waiting += _strategies(folder, inside, package, chosen or {})
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
    packages: list[tuple[Path, str]]  # referred to by name, with the relevant file of each strategy, if not all
    constants: list[tuple[Path, str]]  # imported from neutral modules


@functools.cache
def _read(file: Path, package: Path, text: str) -> _Module:
    """One file; parsed once for all scripts."""
    tree = _without_prose(ast.parse(text, str(file)))
    nodes = list(ast.walk(tree))
    return _Module(
        _digest(ast.dump(tree).encode()),
        list(_imported_files(nodes, package)),
        list(_packages(nodes, package)),
        list(_constants(nodes, package)),
    )


def _constants(nodes: Iterable[ast.AST], package: Path) -> Iterator[tuple[Path, str]]:
    for node in nodes:
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


def _imported_files(nodes: Iterable[ast.AST], package: Path) -> Iterator[Path]:
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == package.name:
                yield from _files_of(parts[1:], package)


def _packages(nodes: Sequence[ast.AST], package: Path) -> Iterator[tuple[Path, str]]:
    """Packages referred to as a whole, by an import or in a string, with the first of the ``files`` of a `Registry`."""
    files = {
        id(node.args[0]): str(ast.literal_eval(keyword.value)[0])
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Registry"
        for keyword in node.keywords
        if keyword.arg == "files"
    }
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.JoinedStr) and len(node.values) == 3:  # f"lpvit.structures.{name}.structure"
            before, _, after = map(ast.unparse, node.values)
            names = [ast.literal_eval(before).rstrip(".")] if before[0] in "'\"" else []
            files[id(node)] = ast.literal_eval(after).lstrip(".") if after[0] in "'\"" else ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        for name in names:
            first, *parts = name.split(".")
            if parts and first == package.name and all(map(str.isidentifier, parts)):
                found = _existing(package.joinpath(*parts, "__init__.py"))
                yield from ((file.parent, files.get(id(node), "")) for file in found)


def _strategies(folder: Path, inside: str, package: Path, chosen: Mapping[str, Collection[str]]) -> Iterator[Path]:
    """Files of the selected strategies of a package, or of all; file names may have an additional underscore."""
    name = ".".join(folder.relative_to(package.parent).parts)
    yield folder / "__init__.py"
    for file in folder.glob(f"*/{inside}.py" if inside else "**/*.py"):
        strategy = file.relative_to(folder).parts[0].removesuffix(".py").rstrip("_")
        if name not in chosen or strategy in chosen[name]:
            yield file


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
