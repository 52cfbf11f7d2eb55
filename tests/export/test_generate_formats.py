"""`generate --format`: a set in another program's format, whole or not there."""

import json

from slicebook.cli import main
from slicebook.errors import DataError
from slicebook.export import set_formats
from slicebook.io.nifti import read_labels

QUICK = ["--steps", "1", "--decoder-steps", "1", "--device", "cpu"]


def run(*arguments):
    return main.main([str(argument) for argument in arguments])


def test_nnunet_trains_on_the_set_in_its_next_command(trained, tmp_path, capsys):
    out = tmp_path / "Dataset501_Synthetic"
    assert run("generate", trained.run, "-o", out, "-n", 5, "--format", "nnunet", *QUICK) == 0
    assert "nnUNetv2_plan_and_preprocess -d 501" in capsys.readouterr().out
    described = json.loads((out / "dataset.json").read_text())
    assert described["numTraining"] == len(list((out / "labelsTr").iterdir())) == 5
    assert {"prostate", "bladder"} <= set(described["labels"])  # of the data that the model was trained on
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_an_export_that_was_interrupted_is_continued(trained, tmp_path, monkeypatch):
    command = ["generate", trained.run, "-o", tmp_path / "out", "-n", 1, "--format", "png", *QUICK]

    def fail(*_: object) -> None:
        raise DataError("out: cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(set_formats, "export_set", fail)
        assert run(*command) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.samples"]
    assert run(*command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["sample-000000.png"]


def test_volumes_for_masks_are_exported_too(trained, tmp_path):
    mask = next((trained.raw / "keras_slices_seg_train").iterdir())
    out = tmp_path / "out"
    assert run("generate", trained.run, "--masks", mask, "-o", out, "--format", "bids", *QUICK) == 0
    written = read_labels(out / "sub-0001" / "anat" / "sub-0001_desc-synthetic_dseg.nii.gz")
    assert (written.array == read_labels(mask).array).all()


def test_a_nifti_set_has_its_card_and_label_tables(trained, tmp_path):
    assert run("generate", trained.run, "-o", tmp_path / "out", "-n", 1, *QUICK) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "croissant.json", "labels.txt", "labels.ctbl"} <= names
    assert '"prostate"' in (tmp_path / "out" / "labels.txt").read_text()


def test_a_wrong_folder_is_refused_before_anything_is_drawn(trained, tmp_path, capsys):
    assert run("generate", trained.run, "-o", tmp_path / "out", "--format", "nnunet", *QUICK) == 1
    assert "Dataset501_Synthetic" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
