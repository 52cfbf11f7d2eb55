"""The wheel, installed somewhere else, holds everything that the package reads."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "src")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with only the installed wheel: built from a copy, so that the work tree stays clean."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "target"))
    for part in PARTS:
        origin = ROOT / part
        copy = shutil.copytree if origin.is_dir() else shutil.copy
        copy(origin, source / part)
    for stale in (source / "src").glob("*.egg-info"):
        shutil.rmtree(stale)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source))
    (wheel,) = wheels.glob("*.whl")
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    return target


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def test_the_wheel_holds_every_module_recipe_and_the_typing_marker(installed):
    wanted = {
        path.relative_to(ROOT / "src")
        for pattern in ("*.py", "*.yaml", "py.typed", "templates/*", "starters/*/*.*")
        for path in (ROOT / "src").rglob(pattern)
    }
    assert Path("slicebook/py.typed") in wanted
    assert any(path.suffix == ".yaml" for path in wanted)
    assert {path for path in wanted if not (installed / path).is_file()} == set()


def test_the_installed_package_runs_from_its_own_folder(installed):
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); import slicebook; print(slicebook.__file__)"
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=installed
    )
    assert printed.stdout.startswith(str(installed))


def test_the_wheel_names_its_licence_and_its_command(installed):
    (metadata,) = installed.glob("slicebook-*.dist-info")
    assert "License-Expression: Apache-2.0" in (metadata / "METADATA").read_text()
    assert "slicebook = slicebook.cli.main:main" in (metadata / "entry_points.txt").read_text()
