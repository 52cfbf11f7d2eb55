"""The benchmark of study sizes: what it writes, what it measures, and that it goes on where it was."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from slicebook.data.check import check
from slicebook.data.prepare import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scale():
    """The script, imported as Python does when it runs it, with small studies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import scale

        patch.setattr(scale, "SLICES", 4)
        patch.setattr(scale, "SIDE", 32)
        patch.setattr(scale, "ANATOMIES", 2)
        yield scale


def test_a_study_has_axial_slices_and_no_volume_twice(scale, tmp_path: Path) -> None:
    scale.write_study(tmp_path / "raw", 5)
    report = check(tmp_path / "raw")
    assert (report.layout, report.patients, report.volumes, report.masks) == ("hipmri3d", 5, 5, 5)
    assert (report.planes, report.shapes) == ({"axial": 5}, {"32 × 32": 20})
    assert not report.problems


def test_the_memory_is_that_of_a_process_and_those_it_started(scale) -> None:
    child = "import time; held = b'1' * 150_000_000; print('held', flush=True); time.sleep(30)"
    parent = (
        "import subprocess, sys; held = b'1' * 150_000_000;"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE);"
        "child.stdout.readline(); print('held', flush=True); sys.stdin.readline(); child.kill(); child.wait()"
    )
    peak, ended = [0], threading.Event()
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        watcher = threading.Thread(target=scale.watch, args=(process.pid, ended, peak))
        watcher.start()
        process.stdout.readline()
        threading.Event().wait(4 * scale.SAMPLED)
        ended.set()
        watcher.join()
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert 300e6 < peak[0] < 500e6


def test_steps_that_were_measured_are_not_repeated(scale, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "4"
    scale.write_study(folder / "raw", 4)
    (folder / "written").touch()
    for name in ("prepared", "again"):
        prepare(folder / "raw", folder / name)
    run: list[str] = []
    killed = [True]

    def measured(_, words):
        run.append(words[0])
        if words[0] == "train" and killed:
            raise SystemExit("killed")
        return {"seconds": 2.0, "cpu_seconds": 1.0, "peak_mib": 100.0}

    monkeypatch.setattr(scale, "run", measured)
    with pytest.raises(SystemExit):
        scale.measure(tmp_path, 4)
    assert run == ["check", "prepare", "prepare", "train"]
    run.clear()
    killed.clear()
    result = scale.measure(tmp_path, 4)
    assert run == ["train", "train", "evaluate", "evaluate"]
    assert (result["patients"], result["slices"], result["same_bytes_with_2_processes"]) == (4, 16, True)
    images = np.fromfile(folder / "again" / "images.f32", "<f4")
    images[3] += 1
    images.tofile(folder / "again" / "images.f32")
    assert not scale.measure(tmp_path, 4)["same_bytes_with_2_processes"]


def test_the_table_has_a_column_per_size_and_the_speed_of_reading(scale) -> None:
    from scale_tables import study_sizes

    machine = json.loads((ROOT / "benchmarks" / "results" / "processes.json").read_text())["machine"]
    sizes = [
        {
            "patients": patients,
            "slices": 60 * patients,
            "same_bytes_with_2_processes": True,
            "steps": {
                step: {"seconds": 9.0, "cpu_seconds": patients / 4, "peak_mib": 100.0 + patients}
                for step in ("check", "prepare")
            },
        }
        for patients in (160, 40)
    ]
    shown = study_sizes({"scale": {"machine": machine, "slices_per_patient": 60, "side": 64, "sizes": sizes}})
    assert "| check | 10 | 40 | 140 | 260 |" in shown
    assert "`check` reads 240 and `prepare` 240 volumes per minute" in shown
    assert "40, 160 patients" in shown
    assert "wrote the same bytes" in shown
