"""Every fault on the command line: one line that names the file and the way out, exit 1, nothing written."""

import os
import pickle
import re
import shutil
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.dicom import pixels_of, save, slice_of
from helpers.hostile_files import nifti_bytes
from helpers.inference import model_file, volume_file
from helpers.token_file import rewritten
from helpers.training import poison, prepared_folder, tiny, train

from slicebook.cli import main
from slicebook.inference.reconstruct import encode
from slicebook.io.tensors import State, load_state, save_state
from slicebook.models.checkpoint import load_tokenizer, save_tokenizer

FLOATS = np.ones((16, 16, 3), np.float32)


def nifti(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 3, 1]) if affine is None else affine), path)


def noise(seed, shape=(16, 12, 3)):
    return np.random.default_rng(seed).uniform(0, 100, shape).astype(np.float32)


def _volumes(here):
    files = {
        "nan.nii": nifti_bytes(FLOATS * np.nan),
        "4d.nii": nifti_bytes(np.ones((16, 16, 3, 2), np.int16)),
        "rgb.nii": nifti_bytes(np.zeros((16, 16, 3), [(c, "u1") for c in "RGB"])),
        "complex.nii": nifti_bytes(FLOATS.astype(np.complex64)),
        "text.nii.gz": b"this is no image",
        "empty.nii": b"",
        "torn.nii.gz": volume_file(here / "volume.nii.gz").read_bytes()[:-40],
        "short.nii": nifti_bytes(FLOATS)[:-7],
    }
    for name, content in files.items():
        (here / name).write_bytes(content)
    volume_file(here / "small.nii", (8, 8, 3))
    (here / "nothing").mkdir()
    save(
        slice_of(pixels_of(0), (0, 0, 0), PhotometricInterpretation="RGB", SamplesPerPixel=3),
        here / "colour/0.dcm",
    )


def _models(here):
    model = model_file(here / "model" / "model.safetensors")
    content = model.read_bytes()
    model_file(here / "other.safetensors", seed=1)
    (here / "pickle.safetensors").write_bytes(pickle.dumps({"weights": [1, 2]}))
    (here / "cut.safetensors").write_bytes(content[:-100])
    (here / "flipped.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    save_state(here / "state.safetensors", State({}, {}))
    encode(model, here / "volume.nii.gz", here / "tokens.safetensors", device="cpu")
    tokens = (here / "tokens.safetensors").read_bytes()
    (here / "cut-tokens.safetensors").write_bytes(tokens[:-30])
    (here / "text.safetensors").write_bytes(b"tokens")
    np.savez(here / "tokens.npz", tokens_0=np.zeros((3, 6, 10), np.uint16))
    faults: dict[str, dict[str, Any]] = {
        "beyond": {"tokens_1": torch.full((3, 3, 5), 16, dtype=torch.uint16)},
        "unfit": {"tokens_1": torch.zeros((3, 2, 2), dtype=torch.uint16)},
        "lacking": {"affine": None},
    }
    for name, changes in faults.items():
        (here / f"{name}.safetensors").write_bytes(tokens)
        rewritten(here / f"{name}.safetensors", **changes)


def _data_sets(here):
    for patient in range(4):
        nifti(here / "flat" / f"p{patient}.nii", noise(patient))
        nifti(here / "masked" / f"p{patient}.nii", noise(patient))
        shifted = np.diag([1.0, 1, 3, 1]) + (np.eye(4, k=3) * 5 if patient == 3 else 0)
        nifti(here / "masked" / f"p{patient}_seg.nii", np.ones((16, 12, 3), np.uint8), shifted)
        nifti(here / "torn" / f"p{patient}.nii", noise(patient))
        nifti(here / "copied" / f"p{patient}.nii", noise(min(patient, 2)))
        nifti(here / "spoiled" / f"p{patient}.nii", noise(patient))
    (here / "torn" / "p8.nii").write_bytes(nifti_bytes(FLOATS)[:-7])
    (here / "torn" / "p9.nii").write_bytes(b"torn")
    for split in ("train", "validate", "test"):
        nifti(here / "leaky" / f"keras_slices_{split}" / "case_004_week_0_slice_0.nii.gz", noise(0, (16, 12)))
    (here / "occupied").mkdir()
    (here / "occupied" / "thesis.txt").write_text("years of work")
    data = prepared_folder(here / "prepared")
    for name in ("cut", "newer", "lacking"):
        shutil.copytree(data, here / f"prepared-{name}")
    os.truncate(here / "prepared-cut" / "images.f32", 100)
    info = (here / "prepared-newer" / "dataset.json").read_text()
    (here / "prepared-newer" / "dataset.json").write_text(
        info.replace('"schema_version": 1', '"schema_version": 9')
    )
    (here / "prepared-lacking" / "manifest.csv").unlink()
    prepared_folder(here / "prepared-untested", patients=(2, 1, 0))
    poison(prepared_folder(here / "prepared-poisoned"), "train")


@pytest.fixture(scope="module")
def here(trained, tmp_path_factory):
    """A folder of everything that can be wrong, and a little that is right."""
    folder = tmp_path_factory.mktemp("faults")
    _volumes(folder)
    _models(folder)
    _data_sets(folder)
    train(folder / "prepared", tiny("training.epochs=1"), folder / "run")
    _priors(folder, trained)
    return folder


def _priors(here, trained):
    shutil.copytree(trained.run, here / "drawn")
    shutil.copytree(trained.run, here / "moved", ignore=shutil.ignore_patterns("prior"))
    state = load_state(here / "moved" / "state.safetensors")
    nowhere = State(state.tensors, state.progress | {"data": str(here / "gone")})
    save_state(here / "moved" / "state.safetensors", nowhere)
    region = np.zeros((16, 12, 3), np.uint8)
    nifti(here / "image.nii", noise(0))
    nifti(here / "empty-region.nii", region)
    region[4:9, 3:8] = 1
    nifti(here / "region.nii", region)
    nifti(here / "shifted-region.nii", region, np.diag([1.0, 1, 3, 1]) + np.eye(4, k=3) * 5)
    nifti(here / "short-region.nii", region[..., :2])
    content = (here / "drawn" / "prior" / "model.safetensors").read_bytes()
    (here / "flipped-prior.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


TRAIN = "train tokenizer prepared --out new --device cpu"
CASES = [
    # volumes, on their way to a model
    ("reconstruct model absent.nii -o new", "absent.nii: does not exist; give a NIfTI file"),
    ("reconstruct model nan.nii -o new", "nan.nii: .*NaN.*nan_to_num"),
    ("reconstruct model 4d.nii -o new", r"4d.nii: is 4D .*image\.slicer"),
    ("reconstruct model rgb.nii -o new", "rgb.nii: holds RGB colour values.*convert"),
    ("reconstruct model complex.nii -o new", "complex.nii: holds complex values.*convert"),
    ("reconstruct model text.nii.gz -o new", "text.nii.gz: is not a NIfTI file"),
    ("reconstruct model empty.nii -o new", "empty.nii: is not a NIfTI file"),
    ("reconstruct model torn.nii.gz -o new", "torn.nii.gz: .*copy or download it again"),
    ("reconstruct model short.nii -o new", "short.nii: ends after .*copy or download it again"),
    ("reconstruct model small.nii -o new", "small: its slices of 8×8 pixels are too small"),
    ("reconstruct model nothing -o new", "nothing: holds no NIfTI file and no DICOM series; give another"),
    ("reconstruct model colour -o new", "no DICOM series .passed over: [0-9]+ colour"),
    ("reconstruct model flat -o flat/new", "the originals lie here.*choose a folder outside flat"),
    ("reconstruct model volume.nii.gz -o volume.nii.gz/new", "volume.nii.gz"),
    ("encode model flat -o new.safetensors", "flat: holds 4 volumes, wanted one"),
    ("encode model volume.nii.gz -o new.txt", r"new.txt: wanted a name that ends in \.safetensors"),
    ("encode model 4d.nii -o new.safetensors", "4d.nii: is 4D"),
    # models
    (
        "reconstruct nothing volume.nii.gz -o new",
        "nothing: holds no trained model yet; train one first: slicebook train",
    ),
    (
        "encode nothing volume.nii.gz -o new.safetensors",
        "nothing: holds no trained model yet; train one first",
    ),
    ("decode nothing tokens.safetensors -o new.nii", "nothing: holds no trained model yet; train one first"),
    ("evaluate nothing prepared --out new", "nothing: holds no trained model yet; train one first"),
    ("info absent", "absent: does not exist; train one first"),
    ("info pickle.safetensors", "pickle.safetensors: is a PyTorch pickle"),
    ("info cut.safetensors", "cut.safetensors: is not a complete safetensors file.*copy it again"),
    ("info flipped.safetensors", "flipped.safetensors: .*damaged; copy it again"),
    ("info state.safetensors", "state.safetensors: holds a state, wanted a tokenizer"),
    ("reconstruct model volume.nii.gz -o new --device cuda", "device cuda: .*use --device cpu"),
    (
        "reconstruct model volume.nii.gz -o new --device gpu",
        "device 'gpu' is not known; wanted one of auto, cpu",
    ),
    # tokens
    ("decode model absent.safetensors -o new.nii", "absent.safetensors: .*slicebook encode"),
    ("decode model text.safetensors -o new.nii", "text.safetensors: is not a complete token file"),
    (
        "decode model cut-tokens.safetensors -o new.nii",
        "cut-tokens.safetensors: is not a complete token file",
    ),
    (
        "decode model tokens.npz -o new.nii",
        "tokens.npz: is not a complete token file, wanted a safetensors file",
    ),
    ("decode model other.safetensors -o new.nii", "other.safetensors: holds a tokenizer, wanted tokens"),
    ("decode model lacking.safetensors -o new.nii", "lacking.safetensors: is not a complete token file"),
    (
        "decode model beyond.safetensors -o new.nii",
        "beyond.safetensors: level 1: tokens from 16 to 16, wanted 0 to 15; encode",
    ),
    (
        "decode model unfit.safetensors -o new.nii",
        "unfit.safetensors: token grids .* do not fit .*encode the volume again",
    ),
    (
        "decode other.safetensors tokens.safetensors -o new.nii",
        "tokens.safetensors: .*use the model that encoded them",
    ),
    ("decode model tokens.safetensors -o new.png", r"new.png: wanted a name that ends in \.nii"),
    # data sets
    ("check absent", "absent: not a folder"),
    ("prepare absent -o new", "absent: not a folder"),
    ("prepare nothing -o new", "nothing: .*no "),
    ("prepare flat -o new", "flat: no --patient-regex for 4 of 4 volumes; files are named like p0.nii"),
    ("prepare flat -o new --patient-regex case(.)", r"flat: --patient-regex .* matches no file"),
    ("prepare flat -o new --patient-regex p.", "has 0 groups, wanted exactly one"),
    ("prepare flat -o new --patient-regex p(", "--patient-regex"),
    ("prepare flat -o new --patient-regex (p.) --mask _x", "flat: --mask '_x' finds no mask"),
    ("prepare flat -o new --patient-regex (p.) --spacing -1", "spacing"),
    (
        "prepare flat -o occupied --patient-regex (p.)",
        "occupied: exists and is not a prepared folder; choose a new or empty",
    ),
    ("prepare masked -o new --patient-regex (p.) --mask _seg", r"p3\.nii.*p3_seg\.nii|p3_seg\.nii.*p3\.nii"),
    ("prepare torn -o new --patient-regex (p.)", "2 of 6 files cannot be read, more than 5%.*p8.nii"),
    ("prepare copied -o new --patient-regex (p.)", "p3.nii: the same voxels as .*p2.nii, of another patient"),
    (
        "prepare leaky -o new",
        r"leaky: 1 patients are in two splits: case_004\S+ \(test, train, validation\); move",
    ),
    ("phantom -o volume.nii.gz/new --slices 4 --size 16 32", "volume.nii.gz"),
    # trainings
    ("train tokenizer flat --out new", "flat: no dataset.json in it, .*slicebook prepare"),
    ("train tokenizer prepared-cut --out new", "images.f32: 100 bytes, wanted .*prepare the data again"),
    ("train tokenizer prepared-newer --out new", "schema version 9, wanted 1; prepare the data again"),
    ("train tokenizer prepared-lacking --out new", "manifest.csv: missing; prepare the data again"),
    (
        f"{TRAIN} --recipe grand",
        "recipe 'grand' not found; known recipes: comp3710, compact, demo, detail, generate",
    ),
    (f"{TRAIN} training.epoch=3", "unknown setting 'training.epoch'; did you mean 'training.epochs'"),
    (f"{TRAIN} training.epochs=0", "training.epochs: .*greater than or equal to 1"),
    (f"{TRAIN} training.batch_size=9 training.batch_size", "training.batch_size: wanted key=value"),
    (f"{TRAIN} --precision 7", "precision 7"),
    (
        "train tokenizer prepared --out run --device cpu",
        "run: was started with other settings .*use another --out",
    ),
    ("train tokenizer prepared --out occupied --device cpu", "occupied: exists and is not a training"),
    ("train tokenizer prepared --out volume.nii.gz/new --device cpu", "volume.nii.gz"),
    (
        "evaluate run prepared-untested --out new",
        "prepared-untested: its split 'test' holds no slice; prepare it again",
    ),
    ("evaluate run flat --out new", "flat: no dataset.json in it"),
    ("demo --out occupied", "occupied: exists and is not a demo; choose another --out"),
    ("demo --out new --recipe grand", "recipe 'grand' not found"),
    # priors
    (
        "reconstruct drawn/prior/decoder volume.nii.gz -o new",
        "holds a generation decoder, wanted a tokenizer",
    ),
    ("train prior drawn/prior", "has no record of its training data; give --data DATA"),
    (
        "generate run --out new",
        "holds a tokenizer, wanted a prior; train one first: slicebook train generator run",
    ),
    ("generate drawn/prior/masks --out new", "holds a label tokenizer, wanted a prior"),
    ("generate state.safetensors --out new", "holds a state, wanted a prior"),
    ("generate nothing --out new", "nothing: holds no trained model yet; train one first"),
    ("generate flipped-prior.safetensors --out new", "flipped-prior.safetensors: .*damaged; copy it again"),
    ("generate drawn --out occupied", "occupied: is not empty; choose another folder"),
    ("generate drawn --out image.nii", "image.nii: is not empty; choose another folder"),
    ("generate drawn --out image.nii/new", "image.nii"),
    (
        "generate drawn --out new --position 1.5",
        r"position 1\.5: wanted a position in the volume, from 0 to 1",
    ),
    ("generate drawn --out new --class T2", "drawn.*: was not trained with class 'T2'; known are 0, 1, 2, 3"),
    ("generate drawn --out new --size 8 8", "drawn.*: was not trained on slices of 8×8; wanted one of 32×64"),
    ("generate drawn --out new --guidance -1", "guidance -1: wanted a number from 0"),
    ("generate drawn --out new --seed 99999999999999999999", "seed 9+: wanted a whole number from 0"),
    ("generate drawn --out new --device cuda", "device cuda: .*use --device cpu"),
    (
        "inpaint drawn image.nii short-region.nii --out new",
        r"short-region.nii: its shape is \(16, 12, 2\), that of image.nii \(16, 12, 3\); draw the mask",
    ),
    (
        "inpaint drawn image.nii shifted-region.nii --out new",
        "shifted-region.nii: lies elsewhere .* than image.nii .*; resample the mask onto the image",
    ),
    (
        "inpaint drawn image.nii empty-region.nii --out new",
        "empty-region.nii: is 0 everywhere, so there is nothing to inpaint; mark the region with 1",
    ),
    ("inpaint drawn image.nii image.nii --out new", "image.nii: .*label"),
    ("inpaint drawn image.nii absent.nii --out new", "absent.nii"),
    ("inpaint drawn flat region.nii --out new", "flat: holds 4 volumes, wanted one; name one file"),
    ("inpaint run image.nii region.nii --out new", "holds a tokenizer, wanted a prior"),
    ("anomaly drawn absent.nii -o new", "absent.nii: does not exist"),
    ("anomaly drawn flat -o flat/new", "the originals lie here.*choose a folder outside flat"),
    ("anomaly run image.nii -o new", "holds a tokenizer, wanted a prior"),
    ("train prior nothing", "nothing: holds no trained model yet; train one first"),
    (
        "train prior drawn training.epochs=3",
        r"training\.epochs=3: is not a setting of this training; wanted settings of prior, such as prior\.",
    ),
    ("train prior drawn prior.training.epoch=3", "unknown setting 'prior.training.epoch'; did you mean"),
    ("train prior drawn --out occupied --no-masks", "occupied: exists and is not a training"),
    ("train prior drawn --data prepared --out new", "prepared: .*another split, than .*give --data the same"),
    ("train prior moved --out new", "gone: "),
]


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_a_fault_is_one_line_that_names_it_and_leaves_nothing(line, message, here, monkeypatch, capfd):
    monkeypatch.chdir(here)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = contents(here)
    assert main.main(line.split(" ")) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("slicebook: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert contents(here) == before


def test_a_training_that_left_the_numbers_says_so_and_keeps_no_model(here, monkeypatch, capfd):
    monkeypatch.chdir(here)
    settings = ["tokenizer.scaling_rates=[4, 2]", "tokenizer.codebook_sizes=[8, 4]", "tokenizer.width=16"]
    line = "train tokenizer prepared-poisoned --out poisoned --device cpu --precision 32-true"
    assert main.main([*line.split(), *settings]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "slicebook: poisoned: the loss is NaN or infinite after step 1; no model was saved yet"
    )
    assert not list((here / "poisoned").glob("*.safetensors"))


def test_more_samples_than_the_disk_holds_are_one_line(here, monkeypatch, capfd):
    monkeypatch.chdir(here)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    assert main.main(["generate", "drawn", "--out", "new", "-n", "5000"]) == 1
    error = capfd.readouterr().err
    assert re.fullmatch(r"slicebook: new: 5000 samples take about \d+ MB, 5 MB are free; ask .*\n", error)
    assert not (here / "new").exists()


@pytest.mark.fault("collapse alarm", "no prior is trained on a collapsed codebook")
def test_a_tokenizer_that_uses_too_few_codes_is_one_line(here, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(here / "moved", tmp_path / "run")
    loaded = load_tokenizer(tmp_path / "run")
    codes = loaded.tokenizer.codebook(0)
    with torch.no_grad():
        codes.ema_embed_sum[2:] = 1e3 * codes.ema_cluster_size[2:, None]  # too far away to be chosen
    save_tokenizer(loaded.path, loaded.tokenizer, loaded.info.recipe, loaded.info.provenance)
    data = load_state(here / "drawn" / "state.safetensors").progress["data"]
    assert main.main(["train", "prior", "run", "--no-masks", "--device", "cpu", "--data", data]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert re.match(r"slicebook: run/model.safetensors: level 0 uses \d+% of its 16 codes", last)
    assert not (tmp_path / "run" / "prior" / "model.safetensors").exists()


def test_check_lists_every_file_that_cannot_be_used_and_ends_with_1(here, monkeypatch, capfd):
    monkeypatch.chdir(here)
    assert main.main(["check", "torn"]) == 1
    out = capfd.readouterr().out
    assert "p8.nii" in out
    assert "p9.nii" in out


def test_one_unreadable_file_among_many_is_quarantined_and_named(here, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(here)
    (here / "spoiled" / "p7.nii").write_bytes(b"spoiled")
    assert main.main(["prepare", "spoiled", "-o", str(tmp_path / "out"), "--patient-regex", "(p.)"]) == 0
    assert "p7.nii" in capfd.readouterr().err
    assert "p7.nii" in (tmp_path / "out" / "quarantine.csv").read_text()
