"""Where the keys of config files stand, for messages; and checks of a config whose other parts are invalid."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lpvit.errors import nearest

DEEPEST = 12  # keys within keys; a config has fewer, an alias of itself has no end
SECTIONS = ("dataset", "model", "calibration", "pruning", "budget", "recipe", "quantisation")


def places_of(*files: str | Path) -> dict[str, str]:
    """Dotted key -> file and line; of a key in several files that of the last, which wins."""
    found: dict[str, str] = {}
    for file in files:
        root = yaml.compose(Path(file).read_text(encoding="utf-8"), yaml.SafeLoader)
        found |= {key: f"{file}, line {line}" for key, line in _keys(root, "", 0)}
    return found


def placed(message: str, places: Mapping[str, str], otherwise: str) -> str:
    """A message that starts with a dotted key, or with the names of experiments, after the place of that key."""
    key = message.partition(": ")[0].partition(",")[0]
    parts = key.split(".")
    known = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return f"{next((places[name] for name in known if name in places), otherwise)}: {message}"


def loose_mistakes(raw: Any) -> Iterator[str]:
    """Unknown names and missing folders, as far as they can be found in a config that may be invalid elsewhere."""
    for place, section, name in _references(raw):
        known = raw.get(section, {})
        if isinstance(known, Mapping) and name not in known:
            yield f"{place}: no '{name}' in {section}{nearest(name, map(str, known))}"
    for key, dataset in _entries(raw, "datasets"):
        root = dataset.get("root")
        if isinstance(root, str) and "$" not in root and "://" not in root and not Path(root).expanduser().exists():
            yield f"datasets.{key}.root: {root} not found; correct the path"
    for key, model in _entries(raw, "models"):
        file = model.get("checkpoint")
        if isinstance(file, str) and "$" not in file and not Path(file).expanduser().exists():
            yield f"models.{key}.checkpoint: {file} not found; correct the path"


def _references(raw: Any) -> Iterator[tuple[str, str, str]]:
    for key, model in _entries(raw, "models"):
        if isinstance(model.get("recipe"), str):
            yield f"models.{key}.recipe", "recipes", model["recipe"]
    for key, experiment in _entries(raw, "experiments"):
        for field in SECTIONS:
            if isinstance(experiment.get(field), str):
                yield f"experiments.{key}.{field}", f"{field}s", experiment[field]
        schemes = experiment.get("schemes", ())
        for name in schemes if isinstance(schemes, list) else ():
            yield f"experiments.{key}.schemes", "schemes", str(name)


def _entries(raw: Any, section: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    entries = raw.get(section) if isinstance(raw, Mapping) else None
    for key, entry in entries.items() if isinstance(entries, Mapping) else ():
        if isinstance(entry, Mapping):
            yield str(key), entry


def _keys(node: yaml.Node | None, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    if depth > DEEPEST:
        return
    inside: list[tuple[str, yaml.Node, int]] = []
    if isinstance(node, yaml.MappingNode):
        inside = [(str(key.value), value, key.start_mark.line) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inside = [(str(index), value, value.start_mark.line) for index, value in enumerate(node.value)]
    for name, value, line in inside:
        key = f"{prefix}.{name}" if prefix else name
        yield key, line + 1
        yield from _keys(value, key, depth + 1)
