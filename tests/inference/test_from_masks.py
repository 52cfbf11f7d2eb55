"""Slices for given masks: geometry, what decides them, and what is refused or resumed."""

import csv
import json
from typing import Any

import numpy as np
import pytest

from slicebook.cli import main
from slicebook.errors import ConfigError, DataError
from slicebook.inference import from_masks
from slicebook.inference.from_masks import MaskRequest, generate_for_masks
from slicebook.io.nifti import read_labels, read_nifti, write_nifti
from slicebook.models.sampling import SamplingSettings

CPU: dict[str, Any] = {"device": "cpu"}
FEW = SamplingSettings(steps=3, decoder_steps=2)


@pytest.fixture
def masks(tmp_path):
    """A mask volume of three slices, turned and 1 × 2 × 3 mm, and a single slice."""
    folder = tmp_path / "masks"
    labels = np.zeros((32, 64, 3), np.uint8)
    labels[4:28, 8:56] = 1
    labels[12:20, 20:40, 1] = 5
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (7, 8, 9)
    write_nifti(folder / "volume.nii.gz", labels, affine=affine)
    write_nifti(folder / "single.nii.gz", labels[..., :1], affine=affine)
    return folder


def request(**settings):
    return MaskRequest(**({"settings": FEW} | settings))


def test_slices_have_the_geometry_of_their_mask(trained, masks, tmp_path):
    summary = generate_for_masks(trained.run, masks, tmp_path / "out", request(count=2, seed=3), **CPU)
    assert (summary.masks, summary.volumes, summary.slices) == (2, 4, 8)
    for name in ("volume", "single"):
        mask = read_labels(masks / f"{name}.nii.gz")
        for number in ("000", "001"):
            image = read_nifti(tmp_path / "out" / "images" / f"{name}-{number}.nii.gz")
            labels = read_labels(tmp_path / "out" / "images" / f"{name}-{number}_mask.nii.gz")
            assert image.array.shape == mask.array.shape
            np.testing.assert_allclose(image.affine, mask.affine)
            np.testing.assert_array_equal(labels.array, mask.array)
    with (tmp_path / "out" / "manifest.csv").open(newline="") as file:
        rows = [(row["name"], row["mask"], row["seed"]) for row in csv.DictReader(file)]
    assert ("volume-001", "volume", "4") in rows
    assert len(rows) == 4
    assert (tmp_path / "out" / "sheet.png").is_file()
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert record["synthetic"]
    assert (record["seed"], record["settings"]["steps"]) == (3, 3)


def test_mask_and_seed_decide_the_slices(trained, masks, tmp_path):
    def image(out, name="volume-000"):
        return read_nifti(tmp_path / out / "images" / f"{name}.nii.gz").array

    generate_for_masks(trained.run, masks, tmp_path / "one", request(count=2), **CPU)
    generate_for_masks(trained.run, masks, tmp_path / "same", request(), **CPU)
    assert np.array_equal(image("one"), image("same"))
    assert not np.array_equal(image("one"), image("one", "volume-001"))
    other = read_labels(masks / "volume.nii.gz")
    changed = other.array.astype(np.uint8)
    changed[4:28, 8:56] = 2
    write_nifti(masks / "volume.nii.gz", changed, other)
    generate_for_masks(trained.run, masks, tmp_path / "other", request(), **CPU)
    assert not np.array_equal(image("one"), image("other"))


def test_a_slice_does_not_depend_on_the_others_of_its_volume(trained, masks, tmp_path):
    generate_for_masks(trained.run, masks, tmp_path / "out", request(position=0.5), **CPU)
    images = [read_nifti(tmp_path / "out" / "images" / f"{n}-000.nii.gz").array for n in ("volume", "single")]
    np.testing.assert_array_equal(images[0][..., 0], images[1][..., 0])


def test_an_interrupted_set_resumes_and_another_request_is_refused(trained, masks, tmp_path, monkeypatch):
    generate_for_masks(trained.run, masks, tmp_path / "whole", request(count=2), **CPU)
    draw = from_masks.draw_for_mask
    calls: list[Any] = []

    def stopped(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(from_masks, "draw_for_mask", stopped)
    with pytest.raises(KeyboardInterrupt):
        generate_for_masks(trained.run, masks, tmp_path / "parts", request(count=2), **CPU)
    assert not (tmp_path / "parts").exists()
    calls.clear()
    with pytest.raises(ConfigError, match=r"unfinished slices of other settings .seed 0 then, 1 now"):
        generate_for_masks(trained.run, masks, tmp_path / "parts", request(count=2, seed=1), **CPU)
    generate_for_masks(trained.run, masks, tmp_path / "parts", request(count=2), **CPU)
    assert len(calls) == 1
    for path in sorted((tmp_path / "whole" / "images").iterdir()):
        assert (tmp_path / "parts" / "images" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(DataError, match="is not empty"):
        generate_for_masks(trained.run, masks, tmp_path / "parts", request(count=2), **CPU)


def test_labels_that_the_model_does_not_know_are_refused(trained, masks, tmp_path):
    mask = read_labels(masks / "single.nii.gz")
    write_nifti(masks / "single.nii.gz", np.full(mask.array.shape, 9, np.uint8), mask)
    with pytest.raises(DataError, match=r"single\.nii\.gz: label 9 in a mask; known are 0, 1"):
        generate_for_masks(trained.run, masks / "single.nii.gz", tmp_path / "out", request(), **CPU)


@pytest.mark.parametrize(
    ("settings", "message"), [({"count": 0}, "wanted 1 or more"), ({"position": 1.5}, "from 0 to 1")]
)
def test_settings_out_of_range_are_refused(trained, masks, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        generate_for_masks(trained.run, masks, tmp_path / "out", request(**settings), **CPU)


def test_a_model_without_masks_and_a_folder_without_files_are_refused(trained, masks, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no NIfTI file"):
        generate_for_masks(trained.run, empty, tmp_path / "out", request(), **CPU)
    with pytest.raises(DataError, match="does not exist"):
        generate_for_masks(trained.run, tmp_path / "nowhere", tmp_path / "out", request(), **CPU)


def test_the_command_takes_masks(trained, masks, tmp_path, capsys):
    options = ["--steps", "2", "--decoder-steps", "2", "--device", "cpu", "--seed", "5"]
    assert (
        main.main(
            ["generate", str(trained.run), "--masks", str(masks), "-o", str(tmp_path / "out"), *options]
        )
        == 0
    )
    assert (tmp_path / "out" / "images" / "volume-000.nii.gz").is_file()
    arguments = [
        "generate",
        str(trained.run),
        "--masks",
        str(masks),
        "-o",
        str(tmp_path / "x"),
        "--unconditional",
    ]
    assert main.main(arguments) == 1
    assert "goes without" in capsys.readouterr().err
