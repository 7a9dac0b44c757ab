"""The documentation's reference of config keys and of artifact columns, generated from `config` and `schemas`.

``python -m lpvit.config.reference`` rewrites the text between the markers ``<!-- reference:NAME -->`` and
``<!-- /reference:NAME -->``, and ``config/schema.json``, which editors read; with ``--check`` it only checks that all
of this is up to date.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lpvit.config.config import Config
from lpvit.errors import LpvitError
from lpvit.store.artifacts import write_text
from lpvit.store.schemas import ALL
from lpvit.store.tables import Schema

JsonSchema = Mapping[str, Any]

PUBLIC = ("Budget", "Blocks", "Factors", "Mixed", "Width", "Recipe", "Quantisation")  # settings in Python

_BOUNDS = {"exclusiveMinimum": "> {}", "minimum": "≥ {}", "exclusiveMaximum": "< {}", "maximum": "≤ {}"}
_TYPES = {"string": "text", "path": "path", "object": "keys with values", "null": "`null`"}


def config_reference() -> str:
    """Every config key with its type, default and meaning: one markdown table for each section."""
    schema = Config.model_json_schema()
    return "\n\n".join([_keys(schema), *_sections(schema)])


def artifact_reference() -> str:
    """Every parquet table with its columns, their types, units and meaning: one markdown table for each."""
    return "\n\n".join(_artifact(schema) for schema in ALL)


def api_reference() -> str:
    """The fields of the settings that are public names: one markdown table for each."""
    schema = Config.model_json_schema()
    names = [name for name in PUBLIC if name in schema["$defs"]]
    return "\n\n".join(_section(name, f"`lpvit.{name}`", f"#/$defs/{name}", schema) for name in names)


def update(text: str, references: Mapping[str, str], source: str | Path) -> str:
    """Puts each reference between its pair of markers.

    Args:
        text: Markdown.
        references: Name in the markers -> markdown.
        source: Origin of the text, for the message.

    Raises:
        LpvitError: A pair of markers is missing.
    """
    for name, reference in references.items():
        start, end = f"<!-- reference:{name} -->", f"<!-- /reference:{name} -->"
        if not 0 <= text.find(start) < text.find(end):
            raise LpvitError(f"{source}: the markers '{start}' and '{end}' are missing; add them for the reference")
        before, rest = text.split(start, 1)
        text = f"{before}{start}\n\n{reference}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 if the file is (now) up to date."""
    parser = argparse.ArgumentParser(
        prog="python -m lpvit.config.reference", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs"), help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    options = parser.parse_args(arguments)
    try:
        for name, (file, reference) in _FILES.items():
            _bring_up_to_date(options.folder / file, {name: reference()}, options.check)
        _write_schema(options.folder.parent / _SCHEMA, options.check)
    except LpvitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


_SCHEMA = Path("config", "schema.json")
_FILES = {
    "config": ("configuration.md", config_reference),
    "artifacts": ("artifacts.md", artifact_reference),
    "api": ("api.md", api_reference),
}


def _bring_up_to_date(file: Path, references: Mapping[str, str], check: bool) -> None:
    if not file.is_file():
        raise LpvitError(f"{file}: not found; run this in the root of the repository or name the folder")
    text = file.read_text(encoding="utf-8")
    updated = update(text, references, file)
    if check and updated != text:
        raise LpvitError(f"{file}: its reference is out of date; run: python -m lpvit.config.reference")
    if updated != text:
        write_text(updated, file)


def editor_schema() -> str:
    """The config as JSON schema (draft 2020-12), for editors that complete and check keys."""
    return json.dumps(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}, indent=1
    )


def _write_schema(file: Path, check: bool) -> None:
    schema = f"{editor_schema()}\n"
    if file.is_file() and file.read_text(encoding="utf-8") == schema:
        return
    if check:
        raise LpvitError(f"{file}: is out of date; run: python -m lpvit.config.reference")
    write_text(schema, file)


def _sections(schema: JsonSchema) -> Iterator[str]:
    """The sections that the top-level keys hold, in the order of those keys."""
    for key, field in schema["properties"].items():
        title = f"{key}.<name>" if "patternProperties" in field else key
        if reference := _reference(field):
            yield _section(title, f"`{title}`", reference, schema)
        elif union := _union(field):
            for name, reference in union["mapping"].items():
                yield _section(title, f"`{title}` with `{union['propertyName']}: {name}`", reference, schema)


def _section(place: str, title: str, reference: str, schema: JsonSchema) -> str:
    section = _definition(reference, schema)
    chosen = {key: union for key, field in section["properties"].items() if (union := _union(field))}
    tables = [f"##### `{place}.{key}`\n\n{_strategies(union, schema)}" for key, union in chosen.items()]
    return "\n\n".join([f"#### {title}\n\n{section['description']}\n\n{_keys(section)}", *tables])


def _strategies(union: JsonSchema, schema: JsonSchema) -> str:
    """What a key chooses from: a row for every strategy, followed by its keys."""
    rows = []
    for name, reference in union["mapping"].items():
        section = _definition(reference, schema)
        rows.append((f"`{union['propertyName']}`", f"`{name}`", "", section["description"].partition("\n")[0]))
        keys = [row for row in _rows(section) if row[0] != f"`{union['propertyName']}`"]
        rows += [(key, value, default, f"of `{name}`: {meaning}") for key, value, default, meaning in keys]
    return _table(("key", "value", "default", "meaning"), rows)


def _entries(field: JsonSchema) -> list[JsonSchema]:
    """A field and what it may hold: entries by name, or one of several forms."""
    inside = [field, *field.get("patternProperties", {}).values()]
    return [form for entry in inside for form in (entry, *entry.get("anyOf", ()))]


def _reference(field: JsonSchema) -> str | None:
    """The definition of the section of a key; None for a key with a plain value or with one of several sections."""
    entries = [field, *field.get("patternProperties", {}).values()]
    return next((entry["$ref"] for entry in entries if "$ref" in entry), None)


def _union(field: JsonSchema) -> JsonSchema | None:
    """The key that says which of several sections a field holds, and where each is defined; None for other fields."""
    return next((entry["discriminator"] for entry in _entries(field) if "discriminator" in entry), None)


def _definition(reference: str, schema: JsonSchema) -> JsonSchema:
    definition: JsonSchema = schema["$defs"][reference.removeprefix("#/$defs/")]
    return definition


def _keys(section: JsonSchema) -> str:
    return _table(("key", "value", "default", "meaning"), _rows(section))


def _rows(section: JsonSchema) -> list[tuple[str, str, str, str]]:
    return [
        (f"`{key}`", _type(field), _default(field, key in section.get("required", ())), field.get("description", ""))
        for key, field in section["properties"].items()
    ]


def _type(field: JsonSchema) -> str:
    if "patternProperties" in field or _reference(field):
        return "names, see below" if "patternProperties" in field else "see below"
    if names := _names(field):
        return ", ".join(f"`{name}`" for name in names) + "; with keys, see below" * (_union(field) is not None)
    if "anyOf" in field:
        return " or ".join(_type(branch) for branch in field["anyOf"])
    if field["type"] == "array":
        items = field.get("prefixItems") or [field["items"]]
        return f"[{', '.join(_type(item) for item in items)}{', ...' * ('items' in field)}]"
    bounds = [text.format(field[bound]) for bound, text in _BOUNDS.items() if bound in field]
    kind: str = field.get("format", field["type"])
    return f"{_TYPES.get(kind, kind)} {', '.join(bounds)}".rstrip()


def _names(field: JsonSchema) -> list[Any]:
    """The values that a field takes one of."""
    if union := _union(field):
        return list(union["mapping"])
    return list(field.get("enum", [field["const"]] if "const" in field else []))


def _default(field: JsonSchema, required: bool) -> str:
    if required:
        return "required"
    if _reference(field) or "patternProperties" in field:
        return ""
    return f"`{_yaml(field['default'])}`"


def _yaml(value: Any) -> str:
    """A default as one would write it in the config."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "null" if value is None else str(value)


def _artifact(schema: Schema) -> str:
    rows = [
        (f"`{c.name}`", f"{c.dtype}{', or null' if c.nullable else ''}", c.unit, c.description) for c in schema.columns
    ]
    table = _table(("column", "type", "unit", "meaning"), rows)
    return f"#### `{schema.file}`\n\nOne row per {schema.row}.\n\n{table}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(cell: str) -> str:
    """Escapes bars, which would end the cell, and angle brackets, which would be read as tags."""
    return re.sub(r"\||<(?=\w)", r"\\\g<0>", cell)


if __name__ == "__main__":
    sys.exit(main())
