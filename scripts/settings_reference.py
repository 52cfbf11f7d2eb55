"""Prints docs/settings.md: every setting with its type, default and meaning, from `slicebook.config`.

python scripts/settings_reference.py > docs/settings.md
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slicebook import config
from slicebook.config import Recipe, Settings

HEAD = """\
# Settings

Every setting of a recipe, written from `slicebook.config` by `scripts/settings_reference.py`. A recipe file
is YAML and has only the settings that differ from these defaults. On the command line, `key=value` changes
one, for example `training.epochs=10`. An unknown name is an error that names the nearest known one.
`config.yaml` of a run contains all of them.
"""
LIMITS = (("minimum", "≥ "), ("exclusiveMinimum", "> "), ("maximum", "≤ "), ("exclusiveMaximum", "< "))
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}
LARGE = 2**62  # a limit beyond this is that of the number's format


def meanings(group: type[Settings]) -> dict[str, str]:
    """Return the string below each field of a class and of those that it extends."""
    found: dict[str, str] = {}
    for base in reversed(group.__mro__):
        if base.__module__ != config.__name__:
            continue
        (node,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(node, ast.ClassDef)
        for field, below in zip(node.body, node.body[1:], strict=False):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = inspect.cleandoc(text)
    return found


def kind(schema: dict[str, Any]) -> str:
    """Return a JSON schema's type and limits in words."""
    if "anyOf" in schema:
        return " or ".join(kind(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return "group"
    if schema.get("type") == "array":
        parts = schema.get("prefixItems") or [schema["items"]]
        return "list: " + "; ".join(dict.fromkeys(kind(part) for part in parts))
    limits = ", ".join(
        f"{sign}{schema[key]:g}" for key, sign in LIMITS if abs(schema.get(key, LARGE)) < LARGE
    )
    steps = f"a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
    return ", ".join(part for part in (TYPES[schema["type"]], limits, steps) if part)


def plain(value: Any) -> str:
    """Return a default as it is written in a recipe."""
    if isinstance(value, tuple):
        return "[" + ", ".join(plain(item) for item in value) + "]"
    return json.dumps(value) if not isinstance(value, str) or not value else value


def rows(group: Settings) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, type, default and meaning of each setting of a group that is not a group itself."""
    described, schema = meanings(type(group)), type(group).model_json_schema()["properties"]
    for name in type(group).model_fields:
        value = getattr(group, name)
        if not isinstance(value, Settings):
            text = " ".join(described.get(name, "").split())
            yield name, kind(schema[name]), f"`{plain(value)}`", text.replace("|", "\\|")


def groups(group: Settings, path: str = "") -> Iterator[tuple[str, Settings]]:
    """Yield each group with its path, outer ones first."""
    yield path, group
    for name in type(group).model_fields:
        value = getattr(group, name)
        if isinstance(value, Settings):
            yield from groups(value, f"{path}.{name}" if path else name)


def section(path: str, group: Settings, first: dict[type[Settings], tuple[str, Settings]]) -> str:
    """Return the section of one group: a table, or what differs from a group of the same kind."""
    title = f"## `{path}`" if path else "## Top level"
    lead = " ".join((inspect.getdoc(type(group)) or "").partition("\n\n")[0].split())
    if type(group) in first:
        where, other = first[type(group)]
        before = {name: default for name, _, default, _ in rows(other)}
        changed = [f"`{name}` {default}" for name, _, default, _ in rows(group) if default != before[name]]
        return f"{title}\n\nThe settings of `{where}`. Other defaults: {', '.join(changed) or 'none'}.\n"
    first[type(group)] = (path, group)
    lines: list[tuple[str, ...]] = [("setting", "type", "default", "meaning"), ("---",) * 4]
    lines += [(f"`{name}`", *rest) for name, *rest in rows(group)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{title}\n\n{lead}\n" + (f"\n{table}\n" if len(lines) > 2 else "")


def text() -> str:
    """Return what docs/settings.md must hold."""
    first: dict[type[Settings], tuple[str, Settings]] = {}
    parts = [section(path, group, first) for path, group in groups(Recipe())]
    contrast = section("training.augment.contrast", config.ContrastConfig(), first)
    return "\n".join([HEAD, *parts, contrast])


if __name__ == "__main__":
    print(text(), end="")
