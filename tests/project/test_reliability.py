"""docs/reliability.md is that of the markers, and SECURITY.md names tests that exist."""

import importlib.util
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def script(name):
    """Load a script of the project as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reliability():
    """The script."""
    yield script("reliability")
    del sys.modules["reliability"]


def test_the_page_of_faults_is_that_of_the_markers(reliability):
    written = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert written == reliability.page(), "run scripts/reliability.py > docs/reliability.md"


def test_a_fault_without_a_test_and_a_marker_of_no_fault_are_refused(reliability, monkeypatch):
    monkeypatch.setitem(reliability.FAULTS, "The machine", ["earthquake"])
    with pytest.raises(ValueError, match=r"FAULTS lacks .*'clock set back'"):
        reliability.page()
    monkeypatch.undo()
    monkeypatch.setitem(reliability.FAULTS, "More", ["earthquake"])
    with pytest.raises(ValueError, match=r"no test is marked with \['earthquake'\]"):
        reliability.page()


def test_the_record_holds_20_kills_and_10000_files_without_a_fault():
    record = json.loads((ROOT / "docs" / "reliability.json").read_text(encoding="utf-8"))
    assert [number for number, _, _ in record["kills"]] == list(range(1, 21))
    assert sum(row["read"] + row["refused"] for row in record["fuzz"]) == 10_000
    assert {row["faults"] for row in record["fuzz"]} == {0}


def test_every_test_that_the_threat_model_names_exists():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > 20
    for path, test in named:
        content = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {test}\(", content, re.MULTILINE), f"{path}::{test}"


def test_the_lock_pins_every_dependency_by_hash_and_names_no_host():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = re.split(r"\n(?=\S)", text.strip())
    assert len(pins) > 60
    assert [pin for pin in pins if not re.match(r"[\w.-]+==\S+", pin) or "--hash=sha256:" not in pin] == []
    assert "://" not in text
    locked: dict[str, list[str]] = defaultdict(list)
    for pin in pins:
        name, version = re.match(r"([\w.-]+)==([^\s;]+)", pin).groups()
        locked[name.lower().replace("_", "-")].append(version)
    lowest = script("lowest_constraints")
    project = lowest.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(line) for line in lowest.requirements(project)]
    assert len(wanted) > 40
    unmet = {  # of the package and of every extra
        str(item)
        for item in wanted
        if not (versions := locked[item.name.lower().replace("_", "-")])
        or not all(map(item.specifier.contains, versions))
    }
    assert unmet == set()
