"""Inpainting: the region is drawn anew unseen, and outside it every voxel keeps its value."""

import csv
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.inference import oblique, volume_file
from helpers.prior import LAYOUT

from slicebook.errors import CheckpointError, ConfigError, DataError
from slicebook.inference import inpaint as inpainting
from slicebook.inference import synthesis
from slicebook.inference.inpaint import (
    FEATHER,
    _seam,
    blend,
    fill,
    inpaint,
    positions,
    redrawn_tokens,
    region_of,
    slice_seed,
)
from slicebook.inference.volumes import Stack, read_single
from slicebook.io.nifti import read_labels, read_nifti
from slicebook.models import sampling
from slicebook.models.checkpoint import load_prior
from slicebook.models.sampling import SamplingSettings

QUICK = SamplingSettings(steps=2, decoder_steps=2)
CPU: dict[str, Any] = {"device": "cpu", "settings": QUICK}
SHAPE = (40, 32, 3)
FLIPPED = np.diag([-2.0, 2.0, -4.0, 1.0])
TURNED = np.array([[0, 0, 3.0, -7], [-1.5, 0, 0, 5], [0, 1.5, 0, 2], [0, 0, 0, 1]])  # sagittal slices


def region_file(path, shape=SHAPE, affine=None, box=(slice(10, 24), slice(8, 20), slice(0, 2))):
    array = np.zeros(shape, np.uint8)
    array[box] = 1
    nib.save(nib.Nifti1Image(array, oblique() if affine is None else affine), path)
    return path


def int16_file(path, affine):
    array = np.random.default_rng(0).integers(-200, 1200, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(array, affine)
    image.header.set_slope_inter(0.37, -11.5)
    nib.save(image, path)
    return path


def blob(shape=(24, 32), box=(slice(6, 18), slice(8, 22))):
    region = np.zeros(shape, bool)
    region[box] = True
    return region


def smooth_image(shape=(24, 32)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.sin(rows / 9 + columns / 13).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A volume and a region over two of its three slices."""
    folder = tmp_path_factory.mktemp("inpaint")
    return volume_file(folder / "scan.nii.gz", SHAPE), region_file(folder / "region.nii.gz")


@pytest.fixture(scope="module")
def drawn(trained, files: tuple[Path, Path], tmp_path_factory):
    """Two drawings of the region."""
    out = tmp_path_factory.mktemp("redrawn") / "out"
    return out, inpaint(trained.run, *files, out, count=2, seed=4, **CPU)


def inside(mask):
    return read_nifti(mask).array > 0


# --- Outside


@pytest.mark.parametrize("affine", [oblique(), FLIPPED, TURNED], ids=["oblique", "flipped", "turned"])
@pytest.mark.parametrize("source", ["float32", "int16"])
def test_outside_the_region_every_voxel_keeps_its_value(source, affine, trained, tmp_path):
    image = tmp_path / "scan.nii.gz"
    volume_file(image, SHAPE, affine) if source == "float32" else int16_file(image, affine)
    mask = region_file(tmp_path / "region.nii.gz", affine=affine)
    inpaint(trained.run, image, mask, tmp_path / "out", **CPU)
    before, after = read_nifti(image), read_nifti(tmp_path / "out" / "sample-00.nii.gz")
    region = inside(mask)
    assert after.array[~region].tobytes() == before.array[~region].tobytes()
    assert (after.array[region] != before.array[region]).mean() > 0.9
    np.testing.assert_array_equal(after.affine, before.affine)


def test_blending_changes_the_region_alone_and_fades_in_from_its_edge():
    region, ones = blob(), np.ones((24, 32), np.float32)
    found = blend(0 * ones - 5, 0 * ones, ones, region)
    assert (found[~region] == -5).all()
    assert found[6, 8:22].tolist() == pytest.approx([0.5 / FEATHER] * 14)
    assert found[7, 9:21].tolist() == pytest.approx([1.5 / FEATHER] * 12)
    assert found[12, 9:14].tolist() == pytest.approx([1.5 / 3, 2.5 / 3, 1, 1, 1])


def test_the_drawing_alone_stands_in_the_middle_of_a_region():
    region = blob()
    image = smooth_image()
    found = blend(image, image + 1, image - 1, region)
    assert found[12, 15] == image[12, 15] - 1


# --- Unseen


@pytest.mark.parametrize("hidden", [1e6, -3.0, math.nan])
def test_the_fill_never_looks_at_the_region(hidden):
    region, image = blob(), smooth_image()
    spoiled = np.where(region, np.float32(hidden), image)
    np.testing.assert_array_equal(fill(spoiled, region), fill(image, region))


def test_the_fill_leaves_the_outside_as_it_is():
    region, image = blob(), smooth_image()
    assert (fill(image, region)[~region] == image[~region]).all()


def test_the_fill_stays_within_what_surrounds_it_and_joins_smoothly():
    region, image = blob(), smooth_image()
    found = fill(image, region)
    assert image[~region].min() <= found[region].min() <= found[region].max() <= image[~region].max()
    assert np.abs(np.diff(found, axis=0)[5]).max() < 0.2


def test_a_flat_surrounding_fills_flatly():
    region = blob()
    found = fill(np.where(region, 0.9, 0.25).astype(np.float32), region)
    np.testing.assert_allclose(found, 0.25, atol=1e-6)


def test_a_slice_without_any_outside_becomes_0():
    assert (fill(smooth_image(), np.ones((24, 32), bool)) == 0).all()


def test_what_the_region_held_makes_no_difference(trained, files: tuple[Path, Path], drawn, tmp_path):
    """The same voxels in another order, so that the volume's intensity scale stays."""
    image, mask = files
    loaded = nib.nifti1.load(image)
    array, region = loaded.get_fdata(dtype=np.float32), inside(mask)
    array[region] = np.random.default_rng(0).permutation(array[region])
    nib.save(nib.Nifti1Image(array, loaded.affine, loaded.header), tmp_path / "other.nii.gz")
    inpaint(trained.run, tmp_path / "other.nii.gz", mask, tmp_path / "out", seed=4, **CPU)
    found = read_nifti(tmp_path / "out" / "sample-00.nii.gz").array
    np.testing.assert_array_equal(found, read_nifti(drawn[0] / "sample-00.nii.gz").array)


def test_the_decoder_continues_what_lies_outside_the_region(
    trained, files: tuple[Path, Path], tmp_path, monkeypatch
):
    asked, whole = [], synthesis.render

    def spy(loaded, tokens, size, seeds, steps, surroundings):
        asked.append((seeds, steps, surroundings))
        return whole(loaded, tokens, size, seeds, steps, surroundings)

    monkeypatch.setattr(inpainting, "render", spy)
    inpaint(trained.run, *files, tmp_path / "out", seed=4, **CPU)
    ((seeds, steps, surroundings),) = asked
    assert seeds == [slice_seed(4, 0), slice_seed(4, 1)]
    assert steps == QUICK.decoder_steps
    stack = Stack.of(read_single(files[0]))
    region = region_of(read_labels(files[1]), stack, "mask", "image")[:2]
    assert surroundings.kept[:, 0].numpy().tolist() == (~region).tolist()
    shown = surroundings.images[:, 0].numpy()
    np.testing.assert_array_equal(shown[~region], stack.slices[:2][~region])
    np.testing.assert_array_equal(shown[0], fill(stack.slices[0], region[0]))


# --- Tokens


def test_fine_tokens_that_touch_and_coarse_ones_half_inside_are_drawn_anew():
    region = torch.zeros(1, 1, 16, 8)
    region[..., 4:9, 3:] = 1  # of the upper coarse token 4 rows by 5 columns: 20 of 64; of the lower 5
    found = redrawn_tokens(LAYOUT, region)[0]
    assert found.tolist() == [
        *(False, False),  # the mask's
        *(False, False),
        *(False, False, True, True, True, True, False, False),
    ]


@pytest.mark.parametrize(("rows", "anew"), [(4, True), (3, False)])
def test_a_coarse_token_is_drawn_anew_from_half_of_it_on(rows, anew):
    region = torch.zeros(1, 1, 16, 8)
    region[..., 8 : 8 + rows, :] = 1
    assert redrawn_tokens(LAYOUT, region)[0, 2:4].tolist() == [False, anew]


def test_tokens_of_the_mask_are_never_drawn():
    found = redrawn_tokens(LAYOUT, torch.ones(1, 1, 16, 8))[0]
    assert found.tolist() == [False] * 2 + [True] * 10


def test_tokens_outside_the_region_are_those_of_the_filled_slice(
    trained, files: tuple[Path, Path], tmp_path, monkeypatch
):
    asked: dict[str, Any] = {}
    whole = sampling.sample

    def spy(prior, layout, seeds, conditions, settings, **how):
        asked.update(how, layout=layout, conditions=conditions)
        asked["drawn"] = whole(prior, layout, seeds, conditions, settings, **how)
        return asked["drawn"]

    monkeypatch.setattr(inpainting, "sample", spy)
    inpaint(trained.run, *files, tmp_path / "out", **CPU)
    keep, given, layout = asked["known_mask"], asked["known_tokens"], asked["layout"]
    assert asked["drawn"][keep].equal(given[keep])
    assert 0 < int((~keep).sum()) < keep.numel() / 2
    assert (given[:, layout.slice_of(0)] == layout.stages[0].size).all()  # no mask is known
    assert asked["conditions"].position.tolist() == [0.0, 0.5]
    tokenizer, slices = load_prior(trained.run).tokenizer, Stack.of(read_single(files[0])).slices
    region = region_of(read_labels(files[1]), Stack.of(read_single(files[0])), "mask", "image")
    filled = np.stack([fill(slices[index], region[index]) for index in (0, 1)])
    assert given.equal(tokenizer.encode(torch.from_numpy(filled)[:, None]))


def test_a_single_slice_has_no_known_place_in_a_volume():
    assert positions([0], 1).position.isnan().all()
    assert positions([0, 2, 4], 5).position.tolist() == [0, 0.5, 1]


# --- What is written


def test_drawings_pictures_and_seams_are_written(drawn):
    out, summary = drawn
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    wanted = {f"sample-0{i}/slice-00{j}.png" for i in range(2) for j in range(2)}
    assert found == wanted | {"sample-00.nii.gz", "sample-01.nii.gz", "seams.csv"}
    assert (summary.out, summary.samples, summary.slices) == (out, 2, 2)
    assert summary.pixels == 14 * 12 * 2


def test_a_drawing_says_that_it_is_synthetic(drawn):
    for path in drawn[0].glob("*.nii.gz"):
        assert bytes(nib.nifti1.load(path).header["descrip"]).startswith(b"SYNTHETIC")


def test_the_same_command_gives_the_same_files(drawn, trained, files: tuple[Path, Path], tmp_path):
    inpaint(trained.run, *files, tmp_path / "out", count=2, seed=4, **CPU)
    for path in drawn[0].rglob("*.*"):
        assert (tmp_path / "out" / path.relative_to(drawn[0])).read_bytes() == path.read_bytes()


def test_a_drawing_depends_on_its_own_seed_alone(drawn, trained, files: tuple[Path, Path], tmp_path):
    inpaint(trained.run, *files, tmp_path / "out", seed=5, **CPU)
    first, second = (drawn[0] / f"sample-0{i}.nii.gz" for i in range(2))
    assert (tmp_path / "out" / "sample-00.nii.gz").read_bytes() == second.read_bytes()
    assert first.read_bytes() != second.read_bytes()


def test_each_slice_of_each_drawing_has_a_seed_of_its_own():
    seeds = {slice_seed(seed, index) for seed in range(20) for index in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_progress_counts_slices(trained, files: tuple[Path, Path], tmp_path):
    told = []
    inpaint(trained.run, *files, tmp_path / "out", progress=lambda *one: told.append(one), **CPU)
    assert told == [(2, 2)]


# --- The seam


def test_a_seam_is_the_jump_across_the_edge_beside_the_usual_one():
    region = blob()
    image = (0.1 * np.arange(32) * np.ones((24, 1))).astype(np.float32)  # a tenth a column, nothing a row
    image[region] += 1.0
    found = _seam(2, 7, 99, image, region)
    assert (found.sample, found.slice, found.seed, found.pixels) == (2, 7, 99, 14 * 12)
    assert found.jump == pytest.approx((28 * 1.0 + 12 * 1.1 + 12 * 0.9) / 52, rel=1e-4)
    assert 0 < found.usual < 0.1


def test_the_list_of_seams_tells_each_slice_of_each_drawing(drawn):
    out, summary = drawn
    with (out / "seams.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["sample"], line["slice"]) for line in lines] == [
        ("0", "0"),
        ("0", "1"),
        ("1", "0"),
        ("1", "1"),
    ]
    assert [int(line["seed"]) for line in lines] == [slice_seed(s, i) for s in (4, 5) for i in (0, 1)]
    jump, usual = (sum(float(line[name]) for line in lines) for name in ("jump", "usual"))
    assert summary.seam == pytest.approx(jump / usual, rel=1e-4)


# --- What is refused


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (
            {"shape": (40, 32, 2)},
            r"region.nii: its shape is \(40, 32, 2\), that of .*scan.nii.gz \(40, 32, 3\)",
        ),
        (
            {"affine": oblique() + np.eye(4, k=3)},
            "region.nii: lies elsewhere .*resample the mask onto the image",
        ),
        ({"box": (slice(0, 0),) * 3}, "region.nii: is 0 everywhere, so there is nothing to inpaint; mark"),
    ],
    ids=["shape", "place", "empty"],
)
def test_a_mask_that_does_not_fit_is_refused(region, message, trained, files: tuple[Path, Path], tmp_path):
    mask = region_file(tmp_path / "region.nii", **region)
    with pytest.raises(DataError, match=message):
        inpaint(trained.run, files[0], mask, tmp_path / "out", **CPU)
    assert not (tmp_path / "out").exists()


def test_more_volumes_than_one_are_refused(trained, files: tuple[Path, Path], tmp_path):
    with pytest.raises(DataError, match="holds 2 volumes, wanted one; name one file"):
        inpaint(trained.run, files[0].parent, files[1], tmp_path / "out", **CPU)


def test_a_drawing_never_takes_the_place_of_an_original(trained, files: tuple[Path, Path], tmp_path):
    image = volume_file(tmp_path / "sample-00.nii.gz", SHAPE)
    before = image.read_bytes()
    with pytest.raises(DataError, match="originals lie here, and none may be overwritten"):
        inpaint(trained.run, image, files[1], tmp_path, **CPU)
    assert image.read_bytes() == before


@pytest.mark.parametrize(("asked", "word"), [({"count": 0}, "0 samples"), ({"seed": -1}, "seed -1")])
def test_a_wish_out_of_range_is_refused(
    asked: dict[str, Any], word, trained, files: tuple[Path, Path], tmp_path
):
    with pytest.raises(ConfigError, match=f"{word}: wanted"):
        inpaint(trained.run, *files, tmp_path / "out", **(asked | CPU))


def test_without_a_prior_nothing_is_written(files: tuple[Path, Path], tmp_path):
    with pytest.raises(CheckpointError, match="train one first"):
        inpaint(tmp_path / "nowhere", *files, tmp_path / "out", **CPU)
    assert list(tmp_path.iterdir()) == []
