"""Prints docs/api.md: the public names of the package, from their docstrings.

python scripts/api_reference.py > docs/api.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import slicebook

HEAD = """\
# Python API

All public names of the package `slicebook`, written from the docstrings by `scripts/api_reference.py`.

```text
import slicebook

model = slicebook.load("starter:compact")
model.reconstruct("scan.nii.gz").write("copy.nii.gz")
```

The [how-to](how-to/python.md) has examples. Other modules may change in any version.
"""
SECTIONS = {
    "Use a model": ("load", "Model", "GeneratedSample", "Volume", "TokenFile"),
    "Data": ("check", "prepare", "PreparedData"),
    "Train and evaluate": (
        "load_recipe",
        "train_tokenizer",
        "train_generator",
        "TrainingOptions",
        "evaluate",
    ),
    "Errors": ("SlicebookError", "CheckpointError", "ConfigError", "DataError", "ShapeError"),
}
PART = re.compile(r"^(Args|Returns|Raises|Attributes):$", re.MULTILINE)


def described(item: object) -> str:
    """Return a docstring as Markdown: its text, and its sections as blocks."""
    before, *parts = PART.split(inspect.getdoc(item) or "")
    text = re.sub(r"(?m)^>>> .*\n(?:(?!\n).+\n?)*", "", before).strip()  # examples run elsewhere
    blocks = [
        f"**{name}**\n\n```text\n{inspect.cleandoc(content)}\n```"
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    return "\n\n".join([text, *blocks])


def written(argument: inspect.Parameter) -> str:
    """Return an argument as in its signature; an annotation is text already."""
    kind = "" if argument.annotation is inspect.Parameter.empty else f": {argument.annotation}"
    default = "" if argument.default is inspect.Parameter.empty else f" = {argument.default!r}"
    return f"{argument.name}{kind}{default}"


def signature(name: str, item: Any) -> str:
    """Return the call of a function, one argument per line where it is long."""
    call = inspect.signature(item)
    arguments = [written(argument) for argument in call.parameters.values() if argument.name != "self"]
    kinds = [argument.kind for argument in call.parameters.values() if argument.name != "self"]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        arguments.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    back = (
        ""
        if call.return_annotation in (inspect.Signature.empty, None, "None")
        else f" -> {call.return_annotation}"
    )
    line = f"{name}({', '.join(arguments)}){back}"
    if len(line) > 100:
        line = f"{name}(\n    " + ",\n    ".join(arguments) + f",\n){back}"
    return f"```text\n{line}\n```"


def members(owner: type) -> Iterator[str]:
    """Yield the public properties and methods that a class defines itself."""
    for name, item in vars(owner).items():
        plain = getattr(item, "__func__", item)
        if name.startswith("_") or not inspect.getdoc(plain) or isinstance(plain, type):
            continue
        if isinstance(item, property):
            yield f"#### `{owner.__name__}.{name}`\n\n{described(item)}"
        elif inspect.isfunction(plain):
            call = signature(f"{owner.__name__}.{name}", getattr(owner, name))
            yield f"#### `{owner.__name__}.{name}`\n\n{call}\n\n{described(plain)}"


def text() -> str:
    """Return what docs/api.md must hold."""
    lines = [HEAD]
    for title, names in SECTIONS.items():
        lines.append(f"## {title}\n")
        for name in names:
            item = getattr(slicebook, name)
            entry = [f"### `slicebook.{name}`"]
            if not (isinstance(item, type) and (issubclass(item, Exception) or item is slicebook.Model)):
                entry.append(signature(f"slicebook.{name}", item))
            entry.append(described(item))
            if isinstance(item, type):
                entry += members(item)
            lines += ["\n\n".join(entry) + "\n"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(text(), end="")
