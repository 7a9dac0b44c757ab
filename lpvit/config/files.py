"""Config files: YAML with errors by file and line, and without duplicate keys."""

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from lpvit.config.config import Config, parse_config
from lpvit.config.places import loose_mistakes, placed, places_of
from lpvit.errors import LpvitError, one_line


def read_config(*files: str | Path) -> Config:
    """The config of one file, or of several merged as Snakemake does.

    Raises:
        LpvitError: A file is missing or not YAML, a key is duplicated, or the config is invalid: one line per problem.
    """
    raw: dict[str, Any] = {}
    for file in files:
        content = read_yaml(file)
        if not isinstance(content, dict):
            raise LpvitError(f"{file}: expected keys with values, found {content!r}")
        raw = _laid_over(raw, content)
    try:
        return parse_config(raw)
    except LpvitError as error:
        found = [line.removeprefix("config: ") for line in str(error).splitlines()]
        also = [line for line in loose_mistakes(raw) if line not in found]
        raise LpvitError(located([*found, *also], files)) from None


def located(lines: Iterable[str], files: Sequence[str | Path]) -> str:
    """Messages that start with a dotted key, each after its file and line."""
    places, names = places_of(*files), ", ".join(map(str, files))
    return "\n".join(placed(line, places, names) for line in lines)


def read_yaml(file: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        LpvitError: The file is missing or not YAML, or a key is duplicated; with the line.
    """
    try:
        return yaml.load(Path(file).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise LpvitError(f"{file}: config not found; correct the path, or make one with 'lpvit init'") from None
    except IsADirectoryError:
        raise LpvitError(f"{file}: is a folder, expected a config; 'lpvit init {file}' makes one") from None
    except UnicodeDecodeError as error:
        raise LpvitError(f"{file}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise LpvitError(f"{file}: cannot be read ({error.strerror})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}, line {mark.line + 1}" if mark else str(file)
        raise LpvitError(f"{place}: {' '.join(filter(None, (error.context, error.problem)))}") from None
    except yaml.YAMLError as error:
        raise LpvitError(f"{file}: {one_line(error)}") from None


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which YAML's own loader keeps the last; keys merged by ``<<`` may recur."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in self.written.get(id(node)) or node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' appears here and in line {seen[key.value]}; rename one", key.start_mark
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.written: dict[int, list[tuple[yaml.Node, yaml.Node]]] = {}

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Records the written keys before others are merged into them."""
        self.written.setdefault(id(node), list(node.value))
        super().flatten_mapping(node)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key for key in below.keys() & above.keys() if isinstance(below[key], dict) and isinstance(above[key], dict)}
    return {**below, **above, **{key: _laid_over(below[key], above[key]) for key in both}}


def require_sound(files: Iterable[str | Path]) -> None:
    """Checks files for errors only, after Snakemake has read their content.

    Raises:
        LpvitError: As `read_yaml`.
    """
    for file in files:
        read_yaml(file)
