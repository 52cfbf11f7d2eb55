"""A MONAI bundle: monai.bundle loads it and runs it."""

import json
import os
import subprocess
import sys
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.inference import model_file, oblique, volume_file

import slicebook
from slicebook.cli import main
from slicebook.inference.volumes import Stack
from slicebook.io.nifti import read_nifti

PROGRAM = """
import sys
import monai.bundle
import torch
folder, scan, out = sys.argv[1:]
network = monai.bundle.load("bundle", bundle_dir=folder, workflow_type="inference", device="cpu")
images = torch.linspace(-1, 1, 24 * 40).view(1, 1, 24, 40)
with torch.no_grad():
    torch.save(network.eval()(images), f"{out}/images.pt")
bundle = f"{folder}/bundle"
files = {"config_file": f"{bundle}/configs/inference.json", "meta_file": f"{bundle}/configs/metadata.json"}
monai.bundle.run(**files, bundle_root=bundle, image=scan, output_dir=out, run_id="run")
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle that the command wrote, of an untrained tokenizer."""
    folder = tmp_path_factory.mktemp("monai")
    model_file(folder / "model.safetensors")
    words = ["export", folder / "model.safetensors", "--format", "monai", "-o", folder / "bundle"]
    assert main.main([str(word) for word in words]) == 0
    return folder / "bundle"


@pytest.fixture(scope="module")
def model(bundle):
    return slicebook.load(bundle.parent / "model.safetensors", device="cpu")


@pytest.fixture(scope="module")
def ran(bundle):
    """What MONAI made of the bundle in a process of its own, and the volume that it was given."""
    scan, out = volume_file(bundle.parent / "scan.nii.gz", (40, 24, 3)), bundle.parent / "out"
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", PROGRAM, bundle.parent, scan, out], check=True, env=environment)
    return scan, out


def test_monai_loads_the_network(ran, model):
    images = torch.linspace(-1, 1, 24 * 40).view(1, 1, 24, 40)
    with torch.no_grad():
        wanted = model.tokenizer.tokenizer(images).images.clamp(-1, 1)
    found = torch.load(ran[1] / "images.pt", weights_only=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_monai_runs_the_bundle_on_a_volume_and_keeps_its_geometry(ran, model):
    scan, out = ran
    (written,) = out.rglob("*.nii.gz")
    image = nib.nifti1.load(written)
    np.testing.assert_allclose(image.affine, oblique(), atol=1e-4)
    wanted = Stack.of(read_nifti(scan)).intensity.forward(model.reconstruct(scan).array)
    close = np.abs(np.asarray(image.dataobj).reshape(wanted.shape) - wanted) < 1e-3
    assert close.mean() > 0.99  # a latent halfway between two codes may be rounded to the other


def test_the_weights_are_plain_tensors(bundle, model):
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    wanted = model.tokenizer.tokenizer.state_dict()
    assert weights.keys() == {f"tokenizer.{name}" for name in wanted}
    assert all(torch.equal(weights[f"tokenizer.{name}"], tensor) for name, tensor in wanted.items())
    with zipfile.ZipFile(bundle / "models" / "model.pt") as archive:
        (pickled,) = (archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    assert b"slicebook" not in pickled


def test_the_bundle_has_what_a_bundle_must_have(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    wanted = {
        *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
        *("task", "description", "authors", "copyright", "network_data_format"),
    }
    assert wanted <= metadata.keys()
    assert (bundle / "LICENSE").is_file()
    text = "".join(path.read_text() for path in bundle.rglob("*") if path.suffix in {".json", ".md"})
    assert str(bundle.parent) not in text
