"""Prints docs/cli.md: every command with its arguments and options, from the code.

python scripts/cli_reference.py > docs/cli.md
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union

import typer
from typer.models import ArgumentInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slicebook.cli.main import app, slicebook

HEAD = """\
# Command line

Every command, written from the code by `scripts/cli_reference.py`. `slicebook COMMAND --help` prints the
same. Arguments of the form `key=value` are [settings](settings.md). [Exit statuses](how-to/errors.md) say how
a command ended.
"""
NAMES = {Path: "PATH", str: "TEXT", int: "INTEGER", float: "NUMBER"}


def commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the full name and the function of each command, in the order of `--help`."""
    for command in group.registered_commands:
        if command.callback:
            name = command.name or command.callback.__name__.replace("_", "-")
            yield f"{prefix} {name}", command.callback
    for inner in group.registered_groups:
        if inner.typer_instance:
            yield from commands(inner.typer_instance, f"{prefix} {inner.name}")


def parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield name, type, typer's description and default of each parameter."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if typing.get_origin(hints[name]) is typing.Annotated:
            kind, described = typing.get_args(hints[name])[:2]
            yield name, kind, described, parameter.default


def values(kind: Any, metavar: str | None) -> str:
    """Return what is typed after an option; empty for a switch."""
    if metavar:
        return f" {metavar}"
    if typing.get_origin(kind) in (Union, types.UnionType):
        return values(next(part for part in typing.get_args(kind) if part is not type(None)), None)
    if typing.get_origin(kind) is Literal:
        return " " + " \\| ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "".join(values(part, None) for part in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return values(typing.get_args(kind)[0], None)
    return "" if kind is bool else f" {NAMES[kind]}"


def is_switch(kind: Any) -> bool:
    """Return whether an option takes no value."""
    return kind is bool or bool in typing.get_args(kind)


def flags(name: str, kind: Any, option: Any) -> str:
    """Return an option as it is typed."""
    typed = f"--{name.replace('_', '-')}"
    opposite = "/--no-" + typed[2:] if is_switch(kind) else ""
    # Inside Annotated, typer takes the first name for its argument `default`.
    given = [option.default] if isinstance(option.default, str) else []
    given += option.param_decls or []
    names = [part for one in given or [typed + opposite] for part in one.split("/")]
    return ", ".join(f"`{part}`" for part in names) + values(kind, option.metavar)


def shown(name: str, default: Any) -> str:
    """Return a default as it is typed; a dash where there is none."""
    if default is inspect.Parameter.empty:
        return "required"
    if isinstance(default, bool):
        return f"`--{'' if default else 'no-'}{name.replace('_', '-')}`" if default else "–"
    if default in (None, [], ()):
        return "–"
    items = default if isinstance(default, (list, tuple)) else [default]
    return f"`{' '.join(str(item) for item in items)}`"


def meaning(described: Any) -> str:
    """Return the help of a parameter and its range, for a cell of a Markdown table."""
    low, high = described.min, described.max
    limits = {
        (True, True): f" From {low} to {high}.",
        (True, False): f" At least {low}.",
        (False, True): f" At most {high}.",
    }
    text = (described.help or "") + limits.get((low is not None, high is not None), "")
    return " ".join(text.split()).replace("|", "\\|")


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table and an empty line; nothing where there are no rows."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" if rows else ""


def entry(name: str, function: Callable[..., Any], level: int = 2) -> str:
    """Return the section of one command."""
    arguments, options, usage = [], [], [name]
    for key, kind, described, default in parameters(function):
        if isinstance(described, ArgumentInfo):
            usage.append(described.metavar or key.upper())
            arguments.append((f"`{usage[-1]}`", meaning(described)))
        else:
            options.append((flags(key, kind, described), shown(key, default), meaning(described)))
    usage[1:1] = ["[OPTIONS]"] if options else []
    parts = [
        f"{'#' * level} {name}\n",
        (inspect.getdoc(function) or "").partition("\f")[0].strip() + "\n",
        f"```text\n{' '.join(usage)}\n```\n",
        table(("argument", "meaning"), arguments),
        table(("option", "default", "meaning"), options),
    ]
    return "\n".join(part for part in parts if part.strip())


def text() -> str:
    """Return what docs/cli.md must hold."""
    entries = [entry(name, function) for name, function in commands(app, "slicebook")]
    return "\n".join([HEAD, entry("slicebook", slicebook), *entries])


if __name__ == "__main__":
    print(text(), end="")
