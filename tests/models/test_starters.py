"""Starters: models of the package by name, wherever a model is wanted."""

import json
import shutil

import pytest

from slicebook import starters
from slicebook.cli import main
from slicebook.errors import CheckpointError
from slicebook.models.checkpoint import has_prior, load_prior, load_tokenizer, read_info

FACTS = {
    "weights_sha256": "0" * 64,
    "trained_on": "phantoms",
    "slices": 10,
    "minutes": 1.5,
    "scored_on": "7 patients",
    "ssim_whole": 0.5,
    "ssim_foreground": 0.4,
    "psnr_whole": 20.0,
    "bits_per_pixel": 0.2,
    "generation": None,
}


@pytest.fixture
def shelf(trained, tmp_path, monkeypatch):
    """Two starters: a generator and a tokenizer."""
    folder = tmp_path / "starters"
    for name, files in (
        ("pelvis", ("model.safetensors", "prior/model.safetensors")),
        ("plain", ("model.safetensors",)),
    ):
        for file in files:
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(trained.run / file, folder / name / file)
        (folder / name / starters.FACTS_NAME).write_text(json.dumps(FACTS))
        (folder / name / starters.CARD_NAME).write_text(f"# {name}\n")
    monkeypatch.setattr(starters, "_folder", lambda: folder)
    return folder


def test_a_starter_is_found_by_name(shelf, trained):
    assert starters.starter_names() == ("pelvis", "plain")
    assert starters.locate("starter:plain") == shelf / "plain"
    assert starters.locate("runs/plain").parts == ("runs", "plain")
    assert load_tokenizer("starter:plain").info == load_tokenizer(trained.run).info
    assert load_prior("starter:pelvis").info == load_prior(trained.run).info


def test_an_unknown_starter_is_refused_with_those_there_are(shelf, monkeypatch, tmp_path):
    with pytest.raises(
        CheckpointError, match="starter:x: is not a starter; the starters are starter:pelvis, st"
    ):
        load_tokenizer("starter:x")
    monkeypatch.setattr(starters, "_folder", lambda: tmp_path / "none")
    with pytest.raises(CheckpointError, match="none in this installation"):
        load_tokenizer("starter:x")


def test_a_tokenizer_alone_has_no_prior(shelf):
    from pathlib import Path

    assert has_prior(Path("starter:pelvis"))
    assert not has_prior(Path("starter:plain"))
    with pytest.raises(CheckpointError, match="wanted a prior"):
        load_prior("starter:plain")


def test_commands_take_starters(shelf, trained, tmp_path, capsys):
    image = next((trained.raw / "keras_slices_test").iterdir())
    out = tmp_path / "out"
    assert main.main(["reconstruct", "starter:plain", str(image), "-o", str(out)]) == 0
    assert list(out.glob("*.nii.gz"))
    tokens = tmp_path / "tokens.safetensors"
    assert main.main(["encode", "starter:plain", str(image), "-o", str(tokens)]) == 0
    assert main.main(["decode", "starter:plain", str(tokens), "-o", str(tmp_path / "back.nii.gz")]) == 0
    assert main.main(["generate", "starter:pelvis", "-n", "1", "-o", str(tmp_path / "set")]) == 0
    capsys.readouterr()
    assert main.main(["info", "starter:pelvis", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "tokenizer"


def test_models_lists_starters_and_prints_a_card(shelf, capsys):
    assert main.main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"starter:pelvis": FACTS, "starter:plain": FACTS}
    assert main.main(["models"]) == 0
    assert "starter:plain" in capsys.readouterr().out
    assert main.main(["models", "plain"]) == 0
    assert capsys.readouterr().out.startswith("# plain")
    assert main.main(["models", "nothing"]) == 1
    assert "is not a starter" in capsys.readouterr().err


def test_every_starter_of_the_package_loads_and_is_what_its_card_says():
    """The files that are installed: readable, with facts and a card, trained on no patient."""
    for name in starters.starter_names():
        assert starters.read_card(name).startswith("# ")
        facts = starters.read_facts(name)
        assert 0 < facts.ssim_whole <= 1
        info = read_info(starters.PREFIX + name)
        assert info.provenance.initial is None
        assert info.weights_sha256 == facts.weights_sha256
        assert load_tokenizer(starters.PREFIX + name).info.provenance.initial is None
        assert starters.is_starter(facts.weights_sha256)
    assert not starters.is_starter("0" * 64)
