"""A hub folder: huggingface_hub saves it and loads it, in another process and without a network."""

import os
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import yaml
from helpers.inference import model_file

import slicebook
from slicebook.cli import main
from slicebook.errors import DataError
from slicebook.export.hub import HubModel, export_hub

LOADING = """
import sys
import huggingface_hub
import numpy as np
from slicebook.export.hub import HubModel
model = HubModel.from_pretrained(sys.argv[1], device="cpu")
assert isinstance(model, huggingface_hub.ModelHubMixin)
shown = np.random.default_rng(0).uniform(0, 9, (2, 24, 40))
np.save(sys.argv[2], model.reconstruct(shown).array)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that the command wrote, of an untrained tokenizer."""
    folder = tmp_path_factory.mktemp("hub")
    model_file(folder / "model.safetensors")
    words = [
        "export",
        folder / "model.safetensors",
        "--format",
        "hub",
        "--license",
        "cc-by-4.0",
        "-o",
        folder / "out",
    ]
    assert main.main([str(word) for word in words]) == 0
    return folder / "out"


def test_a_fresh_process_without_a_network_loads_the_folder(folder, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", LOADING, folder, tmp_path / "a.npy"], check=True, env=environment)
    shown = np.random.default_rng(0).uniform(0, 9, (2, 24, 40))
    wanted = slicebook.load(folder.parent / "model.safetensors", device="cpu").reconstruct(shown)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), wanted.array)


def test_the_folder_is_a_model_of_ours_too(folder):
    assert (folder / "model.safetensors").read_bytes() == (folder.parent / "model.safetensors").read_bytes()
    assert slicebook.load(folder).kind == "tokenizer"
    assert {item.name for item in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}


def test_the_card_has_a_head_that_huggingface_hub_reads_and_names_no_host(folder):
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.license) == ("slicebook", "cc-by-4.0")
    assert {"slicebook", "medical-imaging"} <= set(card.data.tags)
    text = (folder / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "slicebook"
    assert "://" not in text
    assert "not a medical device" in text
    assert str(folder.parent) not in text + (folder / "config.json").read_text()


def test_a_generator_keeps_its_prior(trained, tmp_path):
    export_hub(slicebook.load(trained.run, device="cpu"), tmp_path / "out")
    model = HubModel.from_pretrained(tmp_path / "out", device="cpu")
    assert model.can_generate
    card = (tmp_path / "out" / "README.md").read_text()
    assert "unconditional-image-generation" in card
    assert all(f"| {name} | 4 |" in card for name in ("tokenizer", "prior", "generation decoder"))


def test_what_is_pushed_is_the_folder(folder, monkeypatch):
    pushed = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, **how):
            return huggingface_hub.RepoUrl(
                f"https://localhost/{how['repo_id']}", endpoint="https://localhost"
            )

        def upload_folder(self, *, folder_path, **_):
            pushed.update({path.name: path.read_bytes() for path in folder_path.iterdir()})

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    HubModel.from_pretrained(folder, device="cpu").push_to_hub("owner/name")
    assert pushed == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_license_of_a_starter_is_known_and_of_other_models_not(folder):
    assert HubModel.of(slicebook.load("starter:compact")).weights_license == "apache-2.0"
    assert HubModel.of(slicebook.load(folder)).weights_license == "unknown"


def test_a_full_folder_and_a_license_elsewhere_are_refused(folder, capsys):
    with pytest.raises(DataError, match="is not empty; choose another folder"):
        export_hub(slicebook.load(folder), folder)
    words = ["export", str(folder), "--format", "onnx", "--license", "mit", "-o", str(folder / "new")]
    assert main.main(words) == 1
    assert "--license: goes with --format hub alone" in capsys.readouterr().err
