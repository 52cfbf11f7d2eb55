"""Prints constraints-lowest.txt: the oldest version of each dependency that pyproject.toml allows.

python scripts/lowest_constraints.py > constraints-lowest.txt
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest depends on it there

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
HEAD = """\
# The oldest versions that pyproject.toml allows, for Python 3.10; written by scripts/lowest_constraints.py:
#   .venv/bin/pip install -c constraints-lowest.txt -e '.[dev]'
"""


def requirements(project: dict[str, Any]) -> Iterator[str]:
    """Yield the requirements of the package and of its extras, without those that name the package itself."""
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        yield from (line for line in group if not line.startswith(f"{project['name']}["))


def lowest(project: dict[str, Any]) -> dict[str, str]:
    """Return the lower bound of each requirement of a `[project]` table, by name.

    Raises:
        ValueError: A requirement has no lower bound, or two requirements of a package differ in it.
    """
    bounds: dict[str, str] = {}
    for line in requirements(project):
        match = re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", line)
        if match is None:
            raise ValueError(f"pyproject.toml: {line!r} has no lower bound; write it as name>=version")
        name, version = match.groups()
        if bounds.setdefault(name, version) != version:
            raise ValueError(
                f"pyproject.toml: {name} has the lower bounds {bounds[name]} and {version}; keep one"
            )
    return bounds


def text() -> str:
    """Return what constraints-lowest.txt must hold."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    pinned = sorted(lowest(project).items(), key=lambda item: item[0].lower())
    return HEAD + "".join(f"{name}=={version}\n" for name, version in pinned)


if __name__ == "__main__":
    print(text(), end="")
