"""An old locale, odd file names, a wrong clock and no network change nothing, and no name leaves the data."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.dicom import pixels_of, save, slice_of
from helpers.inference import model_file, volume_file
from helpers.training import prepared_folder, tiny, train
from safetensors.torch import load_file

from slicebook.cli import main
from slicebook.models.checkpoint import MODEL_NAME
from slicebook.training.tokenizer import TokenizerObjective

SMALL = ["tokenizer.width=16", "tokenizer.scaling_rates=[4, 2]", "tokenizer.codebook_sizes=[8, 4]"]
SMALL += ["tokenizer.code_dim=4", "training.epochs=1", "training.batch_size=4"]
IN_TURN = (
    "import sys\nfrom slicebook.cli.main import main\nsys.exit(max(main(x.split('|')) for x in sys.argv[1:]))"
)


def volumes(folder, name="ent{}.nii.gz", count=3):
    folder.mkdir(parents=True)
    for number in range(count):
        volume_file(folder / name.format(number), (24, 24, 3), seed=number)


@pytest.mark.fault("locale without UTF-8", "read and written; messages are printed as bytes or escapes")
def test_a_locale_without_utf_8_takes_names_with_marks(tmp_path):
    place = tmp_path / "Ünï ✓"
    model_file(place / "modèl.safetensors")
    volumes(place / "in", "pätient {}.nii.gz")
    (place / "in" / "schäden.nii").write_bytes(b"no image")
    lines = [
        ["prepare", place / "in", "-o", place / "präp", "--patient-regex", "(t .)"],
        [
            "encode",
            place / "modèl.safetensors",
            place / "in/pätient 0.nii.gz",
            "-o",
            place / "tök.safetensors",
        ],
        ["decode", place / "modèl.safetensors", place / "tök.safetensors", "-o", place / "öut" / "ä.nii"],
        ["reconstruct", place / "modèl.safetensors", place / "in", "-o", place / "zurück", "--device", "cpu"],
    ]
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", IN_TURN, *("|".join(map(str, line)) for line in lines)]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == 1  # the last command met the damaged file
    assert b"Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(b"slicebook: ")
    assert b"is not a NIfTI file" in ended.stderr.splitlines()[-1]
    assert (place / "öut" / "ä.nii").exists()
    assert "schäden".encode() not in (place / "präp" / "manifest.csv").read_bytes()


@pytest.mark.fault("file names of another encoding", "read and written; escaped where a file must be UTF-8")
def test_names_of_another_encoding_are_read_written_and_printed(tmp_path, capfdbinary):
    name = os.fsdecode(b"p\xe4tient-{}.nii.gz")  # Latin-1, as old systems wrote it
    try:
        volumes(tmp_path / "in", name)
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    (tmp_path / "in" / os.fsdecode(b"p\xe4tient-0b.nii")).write_bytes(b"no image")
    model = model_file(tmp_path / "model.safetensors")
    assert main.main(["check", str(tmp_path / "in")]) == 1
    line = ["prepare", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--patient-regex", "(t-.)"]
    assert main.main(line) == 0
    assert b"p\\udce4tient-0b.nii" in (tmp_path / "out" / "quarantine.csv").read_bytes()
    (tmp_path / "in" / os.fsdecode(b"p\xe4tient-0b.nii")).unlink()
    line = ["reconstruct", str(model), str(tmp_path / "in"), "-o", str(tmp_path / "back"), "--device", "cpu"]
    assert main.main(line) == 0
    assert (tmp_path / "back" / name.format(0)).exists()
    out, err = capfdbinary.readouterr()
    assert b"p\xe4tient-0b.nii" in out
    assert b"Traceback" not in out + err


@pytest.mark.fault("clock set back", "resumes to the same weights, bit for bit")
def test_a_clock_that_was_set_back_changes_no_training(tmp_path, monkeypatch):
    data, run = prepared_folder(tmp_path / "data"), tmp_path / "run"
    recipe = tiny("training.epochs=2", "training.validate_every=2", "training.save_minutes=1e-9")
    train(data, recipe, tmp_path / "whole")
    step = TokenizerObjective.training_step

    def interrupted(self, batch, number, fraction):
        if number == 4:
            raise KeyboardInterrupt
        return step(self, batch, number, fraction)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenizerObjective, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, recipe, run)
    future = time.time() + 10 * 365 * 86400
    for path in [*data.iterdir(), *run.iterdir()]:
        os.utime(path, (future, future))  # as seen by a clock that is now ten years earlier
    monkeypatch.setattr(time, "time", lambda: 0.0)
    train(data, recipe, run)
    first, second = load_file(run / MODEL_NAME), load_file(tmp_path / "whole" / MODEL_NAME)
    assert [name for name in first if not first[name].equal(second[name])] == []


# --- Nothing leaves

LONG = "x" * 248 + ".nii.gz"  # 255 bytes, the most that a disk takes
SECRETS = (b"SECRET", b"Secret", b"J\xc3\xb6rg")


def private_folder(folder):
    """Write NIfTI files with a patient's name in their text, an extension, and the names of their folders."""
    for number in range(3):
        path = folder / f"Secret_Jörg_{number}" / LONG
        path.parent.mkdir(parents=True)
        array = np.random.default_rng(number).gamma(2, 100, (24, 24, 3)).astype(np.float32)
        image = nib.Nifti1Image(array, np.diag([1.0, 1, 3, 1]))
        for field in ("descrip", "aux_file", "intent_name", "db_name"):
            image.header[field] = b"SECRET"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SECRET name"))
        nib.save(image, path)


@pytest.mark.fault(
    "no network", "check, prepare, train, evaluate, encode, decode and info open no connection"
)
@pytest.mark.fault("paths with spaces, Unicode and 255 bytes", "the same commands work there")
@pytest.mark.fault("patient data in file names", "absent from every output, log and report")
@pytest.mark.fault("patient data in NIfTI headers", "absent from every output, log and report")
def test_no_name_leaves_the_data_and_no_network_is_needed_in_any_folder(tmp_path, capfd, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    private_folder(tmp_path / "in")
    out = tmp_path / ("ä" * 100 + " folder [of] 'mine' & yours")
    regex = r"(Secret_Jörg_.)/"
    device = ["--device", "cpu"]
    lines = [
        ["check", str(tmp_path / "in"), "--patient-regex", regex],
        ["prepare", str(tmp_path / "in"), "-o", str(out / "data"), "--patient-regex", regex],
        ["train", "tokenizer", str(out / "data"), "--out", str(out / "run"), *device, *SMALL],
        [
            "evaluate",
            str(out / "run"),
            str(out / "data"),
            "--out",
            str(out / "report"),
            "--parts",
            "reconstruction",
        ],
        [
            "encode",
            str(out / "run"),
            str(tmp_path / "in/Secret_Jörg_0" / LONG),
            "-o",
            str(out / "t.safetensors"),
        ],
        ["decode", str(out / "run"), str(out / "t.safetensors"), "-o", str(out / "back.nii"), *device],
        ["info", str(out / "run")],
    ]
    for line in lines:
        assert main.main(line) == 0, line
    printed = "".join(capfd.readouterr()).encode()
    written = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(written) > 15
    texts = {"what was printed": printed} | {path.name: content for path, content in written.items()}
    assert [(name, secret) for name, text in texts.items() for secret in SECRETS if secret in text] == []
    assert not [path for path in out.rglob("*") if "Secret" in path.name]


@pytest.mark.fault("patient data near an error", "PatientID and PatientName are in no error")
@pytest.mark.parametrize("tags", [{"ImageOrientationPatient": None}, {"PixelData": None}, {"Rows": 60000}])
def test_an_error_about_a_dicom_tells_nothing_of_its_header(tags, tmp_path, capfd):
    save(slice_of(pixels_of(0), (0, 0, 0), **tags), tmp_path / "in" / "0.dcm")
    model = model_file(tmp_path / "model.safetensors")
    assert main.main(["reconstruct", str(model), str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 1
    assert main.main(["prepare", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 1
    assert main.main(["check", str(tmp_path / "in")]) == 1
    printed = "".join(capfd.readouterr())
    assert "0.dcm" in printed
    assert "SECRET" not in printed
    assert "Secret^Name" not in printed


@pytest.mark.fault("zip-slip", "no module can unpack an archive")
@pytest.mark.fault("pickle in a model's place", "the only pickle read is the one whose SHA-256 is pinned")
def test_nothing_unpacks_an_archive_or_reads_a_pickle_but_the_one_that_is_known():
    source = Path(main.__file__).parents[1]
    words = (
        "zipfile",
        "tarfile",
        "unpack_archive",
        "import pickle",
        "torch.load(",
        "eval(compile",
        "os.system",
    )
    used = [
        (path.name, word)
        for path in source.rglob("*.py")
        for word in words
        if word in path.read_text("utf-8")
    ]
    assert sorted(used) == [
        ("deep.py", "torch.load("),
        ("monai_bundle.py", "torch.load("),  # weights_only, in the process of the bundle
        ("packing.py", "zipfile"),  # writes
        ("study.py", "zipfile"),  # under new names, within limits
    ]
