"""`prepare` and `check` with several processes, and `prepare` that was interrupted."""

import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from slicebook.cli.main import main
from slicebook.data import convert as conversion
from slicebook.data import prepare as preparation
from slicebook.data import reader
from slicebook.data.check import check
from slicebook.data.layouts.sources import SourceOptions
from slicebook.data.prepare import PrepareOptions, prepare
from slicebook.errors import DataError
from slicebook.io.resumable import partial_path

NAMED = SourceOptions(patient_regex=r"(p\d+)", mask="_seg")
RESIZED = PrepareOptions(size=(8, 8), class_regex=r"_(w\d)")
PATIENTS = 24


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([0.5, 0.5, 3.0, 1.0])), path)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, (8, 6, 3)).astype(np.float32)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with masks, blank slices, a damaged file, a copy, and sizes that differ."""
    for patient in range(PATIENTS):
        array = noise(patient)[:, : 6 - patient % 2]
        array[:, :, 0] *= patient % 3
        save(tmp_path / f"in/p{patient:02}_w{patient % 2}.nii.gz", array)
        if patient % 4:
            save(tmp_path / f"in/p{patient:02}_w{patient % 2}_seg.nii.gz", (array > 50).astype(np.uint8))
    (tmp_path / "in/p05_w1.nii.gz").write_bytes(b"damaged")
    copy = tmp_path / "in/p07_w1.nii.gz"
    (tmp_path / "in/p07_w3.nii.gz").write_bytes(copy.read_bytes())
    return tmp_path / "in"


def content(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_several_processes_give_the_same_bytes_and_the_same_report(study: Path, tmp_path: Path) -> None:
    alone = prepare(study, tmp_path / "alone", NAMED, RESIZED)
    together = prepare(study, tmp_path / "together", NAMED, RESIZED, workers=2)
    assert content(tmp_path / "together") == content(tmp_path / "alone")
    assert {"images.f32", "labels.u8", "manifest.csv", "dataset.json"} < content(tmp_path / "alone").keys()
    assert (together.info, together.quarantined, together.notes) == (
        alone.info,
        alone.quarantined,
        alone.notes,
    )
    assert (alone.info.duplicates, alone.info.quarantined) == (1, 1)
    assert check(study, NAMED, workers=2) == check(study, NAMED)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "alone", "together"}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_the_same_with_several_processes(study: Path, tmp_path: Path, workers: int) -> None:
    (study / "p04_w0.nii.gz").write_bytes((study / "p02_w0.nii.gz").read_bytes())
    with pytest.raises(DataError, match=r"p04_w0\.nii\.gz: .*p02_w0\.nii\.gz, of another patient"):
        prepare(study, tmp_path / "out", NAMED, workers=workers)


@pytest.mark.fault("killed prepare", "goes on where it was; the same bytes as without the kill")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_prepare_goes_on_and_reads_no_volume_twice(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    script = f"""
import os, signal
from pathlib import Path
from slicebook.data import prepare as preparation
from slicebook.data.layouts.sources import SourceOptions
from slicebook.data.prepare import PrepareOptions

def kill_in_the_middle(done, total):
    if done == 13:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    preparation.KEEP_SECONDS = 0.0
    preparation.prepare(
        Path({str(study)!r}), Path({str(tmp_path / "out")!r}), {NAMED!r}, {RESIZED!r},
        workers={workers}, progress=kill_in_the_middle,
    )
"""
    path = tmp_path / "killed.py"
    path.write_text(script, encoding="utf-8")
    ended = subprocess.run([sys.executable, str(path)], check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (tmp_path / "out").exists()
    unfinished = partial_path(tmp_path / "out")
    with (unfinished / "set" / "images.f32").open("ab") as images:
        images.write(b"half of a volume")

    read: Counter[str] = Counter()
    as_ever = reader.read_parts

    def counted(source, plane):
        read[source.images[0].name] += 1
        return as_ever(source, plane)

    monkeypatch.setattr(conversion, "read_parts", counted)
    resumed = prepare(study, tmp_path / "out", NAMED, RESIZED)
    assert sum(read.values()) == PATIENTS + 1 - 13
    read.clear()
    uninterrupted = prepare(study, tmp_path / "whole", NAMED, RESIZED)
    assert sum(read.values()) == PATIENTS + 1
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert (resumed.info, resumed.quarantined, resumed.notes) == (
        uninterrupted.info,
        uninterrupted.quarantined,
        uninterrupted.notes,
    )
    assert not unfinished.exists()


@pytest.mark.fault("SIGTERM or SIGUSR1", "of prepare: exit status 75; the same command goes on")
def test_a_signal_stops_prepare_with_the_status_that_a_job_reads(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_ever = conversion.convert
    calls: list[object] = []
    stopped: list[bool] = []

    def stop_at_the_fifth(*arguments, **how):
        calls.append(arguments)
        if len(calls) == 5 and not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return as_ever(*arguments, **how)

    monkeypatch.setattr(preparation, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(preparation, "convert", stop_at_the_fifth)
    command = ["prepare", str(study), "-o", str(tmp_path / "out"), "--patient-regex", NAMED.patient_regex]
    assert main([*command, "--mask", "_seg"]) == 75
    assert not (tmp_path / "out").exists()
    calls.clear()
    assert main([*command, "--mask", "_seg"]) == 0
    assert len(calls) == PATIENTS + 1 - 4
    prepare(study, tmp_path / "whole", NAMED)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def interrupt(study: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare until Ctrl-C after 13 volumes."""

    def stop(done: int, total: int) -> None:
        if done == 13:
            raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "KEEP_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        prepare(study, out, NAMED, RESIZED, progress=stop)


def test_another_request_or_a_changed_file_starts_anew(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[int] = []

    def begun(done: int, total: int) -> None:
        if not first:
            first.append(done)

    interrupt(study, tmp_path / "out", monkeypatch)
    prepare(study, tmp_path / "out", NAMED, PrepareOptions(size=(6, 6)), progress=begun)
    assert first == [0]
    interrupt(study, tmp_path / "other", monkeypatch)
    save(study / "p01_w1.nii.gz", noise(1001)[:, :5])
    first.clear()
    prepare(study, tmp_path / "other", NAMED, RESIZED, progress=begun)
    assert first == [0]
    prepare(study, tmp_path / "whole", NAMED, RESIZED)
    assert content(tmp_path / "other") == content(tmp_path / "whole")


def test_the_same_request_after_an_interruption_does_not_start_anew(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(study, tmp_path / "out", monkeypatch)
    first: list[int] = []
    prepare(study, tmp_path / "out", NAMED, RESIZED, progress=lambda done, _: first.append(done))
    assert first[0] == 13


def test_a_partial_folder_cut_short_is_refused(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(study, tmp_path / "out", monkeypatch)
    os.truncate(partial_path(tmp_path / "out") / "set" / "images.f32", 100)
    with pytest.raises(DataError, match=r"is damaged \(images\.f32 is too short\); remove this folder"):
        prepare(study, tmp_path / "out", NAMED, RESIZED)


@pytest.mark.fault("few open files allowed", "a study of more files is read, prepared and read again")
def test_a_study_of_more_files_than_may_be_open_is_prepared(tmp_path: Path) -> None:
    for number in range(150):
        save(
            tmp_path / f"in/keras_slices_train/case_004_week_0_slice_{number}.nii.gz", noise(number)[:, :, 0]
        )
    for case, side in ((5, "validate"), (6, "test")):
        save(tmp_path / f"in/keras_slices_{side}/case_{case:03}_week_0_slice_0.nii.gz", noise(case)[:, :, 1])
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 60, allowed[1]))
    try:
        check(tmp_path / "in", workers=2)
        info = prepare(tmp_path / "in", tmp_path / "out", workers=2).info
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
    assert info.counts["train"].slices == 150
