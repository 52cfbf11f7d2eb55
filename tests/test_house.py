"""The house: imports flow one way, public names are exact, the command line is quick, files are clean."""

import ast
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import slicebook

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "slicebook"

# A module imports only from those before it.
ORDER = (
    "errors",
    "atomic",
    "text",
    "config",
    "provenance",
    "tensor_file",
    "discovery",
    "nifti_file",
    "volumes",
    "dicom_tags",
    "dicom_file",
    "dicom_pixels",
    "dicom_stacks",
    "dicom",
    "pelvis",
    "canvas",
    "anatomy",
    "phantom",
    "sources",
    "hipmri2d",
    "nnunet",
    "bids",
    "dicom_layout",
    "layouts",
    "reader",
    "checking",
    "manifest",
    "transforms",
    "preparation",
    "dataset",
    "networks",
    "quantizer",
    "grain",
    "tokenizer",
    "labels",
    "stages",
    "prior",
    "book",
    "token_set",
    "sampling",
    "likelihood",
    "metrics",
    "checkpoint",
    "pictures",
    "sheets",
    "devices",
    "display",
    "objectives",
    "prior_objective",
    "run_folder",
    "training",
    "decoder",
    "prior_training",
    "stack",
    "token_file",
    "inference",
    "synthesis",
    "generating",
    "inpainting",
    "anomalies",
    "judging",
    "evaluation",
    "evaluate",
    "reporting",
    "demo",
    "commands",
    "cli",
    "__main__",
)


def modules() -> dict[str, list[Path]]:
    """Files by the name in ORDER that they belong to; a package counts as one."""
    found: dict[str, list[Path]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).with_suffix("").parts[0]
        found.setdefault(name, []).append(path)
    return found


def imported(path: Path) -> Iterator[str]:
    """Names in ORDER that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            package, *rest = target.split(".")
            if package == "slicebook" and rest and rest[0] != "__version__":
                yield rest[0]


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


def test_every_module_has_a_place_in_the_order():
    assert set(modules()) - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize("name", [name for name in modules() if name != "__init__"])
def test_a_module_imports_only_from_those_above_it(name):
    above = {*ORDER[: ORDER.index(name)], name}
    for path in modules()[name]:
        assert set(imported(path)) <= above, path


def test_the_documents_tell_the_same_order():
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    block = text.partition("```text\n")[2].partition("```")[0]
    assert tuple(re.findall(r"\w+", block)) == tuple(name for name in ORDER if name != "__main__")


def test_the_documents_say_what_each_module_is_for():
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    named = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    plain = {"errors", "text", "config", "demo", "cli", "__main__"}  # their names say it
    assert set(ORDER) - named == plain


def test_public_names_are_exactly_these():
    assert slicebook.__all__ == [
        "CheckpointError",
        "ConfigError",
        "DataError",
        "LoadedPrior",
        "LoadedTokenizer",
        "PreparedData",
        "Recipe",
        "ShapeError",
        "SlicebookError",
        "Tokenizer",
        "Volume",
        "__version__",
        "anomaly",
        "check",
        "decode",
        "encode",
        "generate",
        "inpaint",
        "load_prior",
        "load_recipe",
        "load_tokenizer",
        "prepare",
        "read_nifti",
        "recipe_names",
        "reconstruct",
        "train_prior",
        "train_tokenizer",
        "write_nifti",
    ]


@pytest.mark.parametrize("name", slicebook.__all__)
def test_a_public_name_is_there(name):
    assert getattr(slicebook, name) is not None


def test_the_command_line_loads_nothing_heavy():
    loaded = python("-c", "import sys, slicebook.cli; print(*{name.split('.')[0] for name in sys.modules})")
    assert not {"torch", "numpy", "matplotlib", "nibabel", "pydicom", "pydantic", "skimage"} & set(
        loaded.split()
    )


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
    named = [path for path in files() if place.search(path.read_text(encoding="utf-8"))]
    assert named == []


def test_one_module_alone_writes_files_whole_or_not_at_all():
    writers = re.compile(
        r"os\.(replace|fsync)\(|\.(write_text|write_bytes)\(|csv\.(DictW|w)riter\(|\.tofile\("
    )
    named = [path.name for path in SOURCE.rglob("*.py") if writers.search(path.read_text(encoding="utf-8"))]
    assert set(named) - {"diagnose.py"} == {"atomic.py"}
