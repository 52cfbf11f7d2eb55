"""The house: imports flow one way, public names are exact, the command line is quick, files are clean."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import slicebook

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "slicebook"
LONGEST_FUNCTION = 60  # lines, without the docstring


def python(*arguments: str) -> str:
    """Run the interpreter as a user would, and return what it printed."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


def files() -> list[Path]:
    """The project's own text files."""
    listed = [*ROOT.glob("[!.]*.*"), ROOT / "LICENSE", ROOT / ".gitignore", ROOT / ".ci" / "run"]
    for folder in ("scripts", "src", "tests", "docs", "benchmarks"):
        inside = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*"))
        listed += [
            ROOT / path for path in inside if not re.search(r"(^|/)\.|egg-info|__pycache__", str(path))
        ]
    return [path for path in listed if path.is_file() and path.suffix not in {".pyc", ".png"}]


def test_no_import_is_relative():
    relative = [
        path
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_files_are_short_and_packages_small():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count >= 400} == {}
    packages = [path.parent for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE]
    modules = {package: len(list(package.glob("*.py"))) - 1 for package in packages}
    assert {package: count for package, count in modules.items() if count > 13} == {}


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, its docstring not counted."""
    docstring = function.body[0]
    without = docstring.end_lineno - docstring.lineno + 1 if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - without


def test_functions_are_short():
    lines = {
        f"{path.relative_to(SOURCE)} {node.name}": function_lines(node)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: count for name, count in lines.items() if count >= LONGEST_FUNCTION} == {}


def test_public_names_are_exactly_these():
    assert slicebook.__all__ == [
        "CheckpointError",
        "ConfigError",
        "DataError",
        "GeneratedSample",
        "Model",
        "PreparedData",
        "ShapeError",
        "SlicebookError",
        "TokenFile",
        "TrainingOptions",
        "Volume",
        "__version__",
        "check",
        "evaluate",
        "load",
        "load_recipe",
        "prepare",
        "train_generator",
        "train_tokenizer",
    ]


@pytest.mark.parametrize("name", slicebook.__all__)
def test_a_public_name_is_there(name):
    assert getattr(slicebook, name) is not None


def test_the_command_line_loads_nothing_heavy():
    loaded = python(
        "-c", "import sys, slicebook.cli.main; print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert not {"torch", "numpy", "matplotlib", "nibabel", "pydicom", "pydantic", "skimage"} & set(
        loaded.split()
    )


def test_the_package_loads_nothing_heavy():
    loaded = python("-c", "import sys, slicebook; print(*{name.split('.')[0] for name in sys.modules})")
    assert "slicebook" in loaded.split()
    assert not {"torch", "numpy", "matplotlib", "nibabel", "pydantic", "typer"} & set(loaded.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_command_line_answers_at_once(option):
    # The promise is half a second, shown by benchmarks/speed.py; this machine may be busy with other tests.
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        python("-m", "slicebook", option)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.5


def test_every_python_file_says_what_it_is_for():
    without = [path for path in files() if path.suffix == ".py" and not ast.get_docstring(parsed(path))]
    assert without == []


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_no_file_names_a_place_on_somebodys_machine():
    place = re.compile(r"(?<![\w.])/(?:work|root|home|Users|mnt)/\w")
    # Model files too: their settings and provenance are text.
    named = [path for path in files() if place.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert named == []


def test_one_module_alone_writes_files_whole_or_not_at_all():
    writers = re.compile(
        r"os\.(replace|fsync)\(|\.(write_text|write_bytes)\(|csv\.(DictW|w)riter\(|\.tofile\("
    )
    named = [path.name for path in SOURCE.rglob("*.py") if writers.search(path.read_text(encoding="utf-8"))]
    assert named == ["atomic.py"]
