"""Thousands of damaged and lying files: each is refused in one clear line, or read as it should be.

A process reads a hundred of them: what ends it, hangs, or takes memory without end is a failure.
`python -m pytest -m slow tests/io/test_fuzz.py` reads all 10,000; a part of them is read each time.
"""

import json
import os
import resource
import shutil
import signal
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.mutations import KINDS, dicom_seeds, model_seed, mutant, prior_seed, same_weights, token_seed

from slicebook.cli import main
from slicebook.errors import SlicebookError
from slicebook.inference.generate import generate
from slicebook.inference.reconstruct import decode, encode
from slicebook.io.dicom_series import find_dicom_series, read_dicom_series
from slicebook.io.nifti import qform_of, read_nifti, text_fields, write_nifti
from slicebook.io.tokens import TokenFile
from slicebook.models.checkpoint import PriorInfo, load_tokenizer, read_info

CHUNK = 100
"""Files that one process reads."""
SECONDS = 60
"""After which a file of a few thousand bytes is taken to hang."""
MEGABYTES = 1024
"""By which no file may make the process grow."""


# --- What is right


def read_one(kind: str, folder: Path, seeds: Path) -> str:
    """Return "read" or "refused" for the files in a folder; everything else raises."""
    try:
        {"NIfTI": _nifti, "DICOM": _dicom, "token file": _tokens, "model": _model}[kind](folder, seeds)
    except SlicebookError:
        return "refused"
    return "read"


def _nifti(folder: Path, seeds: Path) -> None:
    (path,) = folder.iterdir()
    text_fields(path)
    volume = read_nifti(path)
    assert np.isfinite(volume.array).all()
    assert np.isfinite(volume.affine).all()
    qform_of(volume)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            content = path.read_bytes()
            kind = nib.Nifti1Image if int(volume.geometry.sizeof_hdr) == 348 else nib.Nifti2Image
            image = kind.from_bytes(
                nib.openers.Opener(str(path)).fobj.read() if content[:2] == b"\x1f\x8b" else content
            )
            wanted = np.asarray(image.dataobj, np.float64).reshape(volume.array.shape)
    except Exception:  # nibabel refuses some headers that can be read
        wanted = volume.array
    assert np.allclose(volume.array, wanted, rtol=1e-5, atol=1e-30)
    encode(model_seed(seeds), path, folder / "out" / "tokens.safetensors", device="cpu")
    decode(model_seed(seeds), folder / "out" / "tokens.safetensors", folder / "out" / "a.nii", device="cpu")
    again = read_nifti(folder / "out" / "a.nii")
    assert again.array.shape == volume.array.shape
    assert np.array_equal(again.affine, volume.affine)
    write_nifti(folder / "out" / "b.nii", volume.array, volume)
    assert np.array_equal(read_nifti(folder / "out" / "b.nii").array, volume.array)


def _dicom(folder: Path, seeds: Path) -> None:
    refused: list[SlicebookError] = []
    found = find_dicom_series(
        folder, unreadable=lambda _, error: refused.append(error), skipped=lambda *_: None
    )
    for series in found:
        assert series.label
        try:
            volume = read_dicom_series(series)
        except SlicebookError as error:
            refused.append(error)
            continue
        assert np.isfinite(volume.array).all()
        assert np.isfinite(volume.affine).all()
        assert volume.array.shape == (*series.shape[::-1], series.frames)
    if refused:
        raise refused[0]


def _tokens(folder: Path, seeds: Path) -> None:
    (path,) = folder.iterdir()
    tokens = TokenFile.read(path)
    decode(model_seed(seeds), path, folder / "out" / "a.nii", device="cpu")
    volume = read_nifti(folder / "out" / "a.nii")
    assert volume.shape_on_disk == tokens.shape_on_disk
    if path.read_bytes() == token_seed(seeds).read_bytes():
        assert same_weights(path, token_seed(seeds))


def _model(folder: Path, seeds: Path) -> None:
    (path,) = folder.iterdir()
    if isinstance(read_info(path), PriorInfo):
        generate(path, folder / "out" / "set", count=1, device="cpu")
    assert load_tokenizer(path).codebook_hash
    encode(path, seeds / "volume.nii.gz", folder / "out" / "tokens.safetensors", device="cpu")


def through_commands(kind: str, folder: Path, seeds: Path) -> None:
    """Give the files to commands, as a person would: they end with 0 or 1, and print no traceback."""
    out = str(folder / "command-out")
    lines = {
        "NIfTI": [["check", str(folder)], ["prepare", str(folder), "-o", out, "--patient-regex", "(.)"]],
        "DICOM": [["check", str(folder)], ["prepare", str(folder), "-o", out, "--plane", "axial"]],
        "token file": [
            ["decode", str(model_seed(seeds)), str(folder / "tokens.safetensors"), "-o", out + ".nii"]
        ],
        "model": [["info", str(folder / "model.safetensors")]],
    }
    for line in lines[kind]:
        assert main.main(line) in (0, 1), line


# --- A process


def _resident_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _read_chunk(kind: str, numbers: range, place: Path, seeds: Path) -> None:
    """Read files; write number and outcome of each to `place`/log as soon as it is known."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with (place / "log").open("a") as log, open(os.devnull, "w") as null, redirect_stdout(null):
        for number in numbers:
            folder = place / "files"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, content in mutant(kind, number, seeds).items():
                (folder / name).write_bytes(content)
            print(number, end=" ", file=log, flush=True)
            before = _resident_megabytes()
            signal.alarm(SECONDS)
            outcome = read_one(kind, folder, seeds)
            if number % 10 == 0:
                shutil.rmtree(folder / "out", ignore_errors=True)
                through_commands(kind, folder, seeds)
            signal.alarm(0)
            grown = _resident_megabytes() - before
            assert grown < MEGABYTES, f"grew by {grown:.0f} MB"
            print(outcome, file=log, flush=True)


def read_in_a_process(kind: str, numbers: range, place: Path, seeds: Path) -> list[str]:
    """Return the outcome of each file, the last of them a description of the fault if there was one."""
    (place / "log").write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads; none holds a lock here
        process = os.fork()
    if not process:
        try:
            with (place / "errors").open("w") as errors:
                try:
                    with warnings.catch_warnings(), redirect_stderr(errors):
                        warnings.simplefilter("ignore")
                        _read_chunk(kind, numbers, place, seeds)
                except BaseException:
                    traceback.print_exc(file=errors)
                    errors.flush()
                    os._exit(1)
            os._exit(0)
        finally:
            os._exit(2)
    _, status = os.waitpid(process, 0)
    outcomes = [line.split()[1:] for line in (place / "log").read_text().splitlines()]
    done = [outcome[0] for outcome in outcomes if outcome]
    if status:
        reason = os.waitstatus_to_exitcode(status)
        text = (place / "errors").read_text(errors="replace")
        done.append(f"{kind} {numbers[len(done)]}: ended with {reason}\n{text[-2500:]}")
    return done


def read_all(kind: str, numbers: range, place: Path) -> tuple[dict[str, int], list[str]]:
    """Return how many files were read and refused, and a description of each fault."""
    seeds = place / "seeds"
    seeds.mkdir(exist_ok=True)
    token_seed(seeds)
    prior_seed(seeds)
    dicom_seeds(seeds)  # once, not in every process
    counts, faults = {"read": 0, "refused": 0}, []
    at = numbers.start
    while at < numbers.stop:
        chunk = range(at, min(at + CHUNK, numbers.stop))
        outcomes = read_in_a_process(kind, chunk, place, seeds)
        at += len(outcomes)
        for outcome in outcomes:
            if outcome in counts:
                counts[outcome] += 1
            else:
                faults.append(outcome)
                print(outcome)
    return counts, faults


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_damaged_files_are_refused_or_right(kind, tmp_path):
    counts, faults = read_all(kind, range(80), tmp_path)
    assert faults == []
    assert min(counts.values()) > 0


@pytest.mark.fault("files damaged at random", "refused or right; at most 1 GiB and a minute for a file")
@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_damaged_files_are_refused_or_right(kind, tmp_path):
    counts, faults = read_all(kind, range(KINDS[kind]), tmp_path)
    if record := os.environ.get("SLICEBOOK_FUZZ_RECORD"):
        with Path(record).open("a") as file:
            print(json.dumps({"kind": kind, **counts, "faults": len(faults)}), file=file)
    assert faults == []
    assert sum(KINDS.values()) == 10_000
