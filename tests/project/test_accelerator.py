"""`scripts/accelerator`: every part runs once in tiny sizes on the CPU; it resumes, and a failure is not lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slicebook.data.prepare import prepare
from slicebook.phantom import simulator

ROOT = Path(__file__).parents[2]
OF_256 = {"promise12-256-compact", "promise12-256-detail"}


def command(folder, *words):
    """Run the script; slices of 128 pixels stand in for real patients, of 256 there are none."""
    options = ["--device", "cpu", "--tiny", "--processes", "1", "--data", folder / "prepared"]
    places = ["--work", folder / "work", "--results", folder / "results"]
    return subprocess.run(
        [ROOT / "scripts" / "accelerator", *options, *places, *words],
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def parts():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "accelerator.py", "--list"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """All parts in one command: its folder, and what it returned."""
    folder = tmp_path_factory.mktemp("accelerator")
    simulator.write_hipmri(folder / "raw", patients=(1, 1, 1), slices=4, shape=(128, 64))
    prepare(folder / "raw", folder / "prepared")
    return folder, command(folder)


def test_all_parts(done, parts):
    folder, completed = done
    assert completed.returncode == 0, completed.stderr
