"""The anomaly map: sums to the slice's nats, lies where the slice lies."""

import csv
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.inference import oblique, volume_file
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter

from slicebook.errors import CheckpointError, DataError
from slicebook.inference.anomaly import _spread, anomaly, anomaly_scores, heatmap
from slicebook.inference.volumes import Stack
from slicebook.io.nifti import read_nifti
from slicebook.io.volume import from_slices
from slicebook.models.conditions import Conditions
from slicebook.models.prior import likelihood

CPU: dict[str, Any] = {"device": "cpu"}
SIZE = (32, 48)  # of whole tokens


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def judged(trained, tmp_path_factory):
    """An oblique volume of three slices, and what was written of it."""
    folder = tmp_path_factory.mktemp("anomaly")
    source, out = volume_file(folder / "scan.nii.gz", (40, 24, 3), oblique()), folder / "out"
    return source, out, anomaly(trained.run, source, out, draws=3, **CPU)


def lines_of(path):
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# --- Of slices


def test_a_map_sums_to_the_nats_of_its_slice(loaded, images):
    found = anomaly_scores(loaded, images, Conditions.unknown(3), draws=2)
    assert torch.allclose(found.maps.sum((1, 2)), found.nats, rtol=1e-5)


def test_a_map_spreads_each_token_over_its_pixels_adds_the_levels_and_smooths(loaded):
    layout = loaded.tokenizer.layout(SIZE)  # of the image 2×3 tokens of 16 pixels and 4×6 of 8
    nats = torch.zeros(1, layout.starts[-1])
    nats[0, layout.starts[1] + 4] = 256.0
    nats[0, layout.starts[2] + 6 * 2 + 3] = 128.0
    wanted = torch.zeros(1, *SIZE)
    wanted[0, 16:, 16:32] = 1
    wanted[0, 16:24, 24:32] += 2
    wanted = torch.from_numpy(gaussian_filter(wanted.numpy(), (0, 4, 4)))
    assert torch.allclose(_spread(layout, nats, loaded, SIZE), wanted, atol=1e-5)


def test_a_map_leaves_the_padding_out(loaded):
    size = (30, 48)  # padded by a row above and one below
    layout = loaded.tokenizer.layout(size)
    nats = torch.zeros(1, layout.starts[-1])
    nats[0, layout.starts[2]] = 64.0
    found = _spread(layout, nats, loaded, size)
    assert found.shape == (1, *size)
    whole = torch.zeros(32, 48)
    whole[:8, :8] = 1
    assert torch.allclose(found[0], torch.from_numpy(gaussian_filter(whole.numpy(), 4))[1:-1], atol=1e-5)


def test_nats_are_those_of_the_image_tokens_with_the_mask_unknown(loaded, images):
    layout, tokens = loaded.tokenizer.layout(SIZE), loaded.tokenizer.encode(images)
    wanted = likelihood(loaded.prior, layout, tokens, Conditions.unknown(3), draws=2, seed=4)
    found = anomaly_scores(loaded, images, Conditions.unknown(3), draws=2, seed=4)
    assert torch.allclose(found.nats, wanted.nats[:, layout.starts[1] :].sum(1))
    assert found.spread.equal(wanted.spread)
    assert found.nats.min() > 0


def test_a_slice_is_judged_at_its_place_in_the_volume(loaded, images):
    def nats(position):
        conditions = Conditions(torch.full((3,), position), torch.full((3,), -1))
        return anomaly_scores(loaded, images, conditions, draws=1).nats

    assert not torch.allclose(nats(0.0), nats(1.0), atol=1e-3)


# --- Of volumes


def test_the_map_lies_where_the_volume_lies(judged):
    source, out, _ = judged
    found, volume = read_nifti(out / "scan.nii.gz"), read_nifti(source)
    assert found.array.shape == volume.array.shape
    np.testing.assert_array_equal(found.affine, volume.affine)


def test_the_map_of_a_volume_is_that_of_its_slices(judged, loaded):
    source, out, _ = judged
    stack = Stack.of(read_nifti(source))
    places = Conditions(torch.tensor([0.0, 0.5, 1.0]), torch.full((3,), -1))
    wanted = anomaly_scores(loaded, torch.from_numpy(stack.slices)[:, None], places, draws=3)
    np.testing.assert_allclose(
        read_nifti(out / "scan.nii.gz").array, from_slices(wanted.maps.numpy(), stack.orientation), rtol=1e-5
    )
    lines = lines_of(out / "scan.csv")
    assert [line["slice"] for line in lines] == [0, 1, 2]
    assert [line["nats"] for line in lines] == pytest.approx(wanted.nats.tolist(), rel=1e-5)
    assert [line["spread"] for line in lines] == pytest.approx(wanted.spread.tolist(), rel=1e-4)
    bits = (wanted.nats / math.log(2) / (stack.size[0] * stack.size[1])).tolist()
    assert [line["bits_per_pixel"] for line in lines] == pytest.approx(bits, rel=1e-5)
    peaks = wanted.maps.amax((1, 2)).tolist()
    assert [line["peak"] for line in lines] == pytest.approx(peaks, rel=1e-5)


def test_the_summary_counts_and_averages(judged):
    _, out, summary = judged
    assert (summary.out, summary.volumes, summary.slices) == (out, 1, 3)
    rates = [line["bits_per_pixel"] for line in lines_of(out / "scan.csv")]
    assert summary.bits_per_pixel == pytest.approx(sum(rates) / 3, rel=1e-5)


def test_a_picture_shows_slice_and_heat_beside_each_other(judged):
    _, out, _ = judged
    assert [path.name for path in sorted((out / "scan").iterdir())] == [f"slice-00{i}.png" for i in range(3)]
    pixels = imread(out / "scan" / "slice-001.png")[..., :3]
    left, right = pixels[:, : pixels.shape[1] // 2 - 1], pixels[:, pixels.shape[1] // 2 + 1 :]
    assert (left == left[..., :1]).all()
    assert (right[..., 0] > right[..., 2]).any()


def test_heat_shows_the_peaks_and_leaves_the_most_of_a_map_alone():
    maps = np.zeros((1, 40, 50), dtype=np.float32)
    maps[0, :20] = np.linspace(0, 0.4, 50)
    maps[0, 30:33, 10:13] = 2.0
    warm = heatmap(maps)
    assert warm.min() == 0
    assert (warm[0, 30:33, 10:13] == 1).all()
    assert 0.7 < (warm == 0).mean() < 0.9
    assert not heatmap(np.ones((1, 4, 4), dtype=np.float32)).any()


def test_pictures_may_be_left_out(judged, trained, tmp_path):
    anomaly(trained.run, judged[0], tmp_path / "out", draws=1, pictures=False, **CPU)
    written = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert written == {"scan.nii.gz", "scan.csv"}


def test_the_same_command_gives_the_same_map(judged, trained, tmp_path):
    anomaly(trained.run, judged[0], tmp_path / "out", draws=3, **CPU)
    for name in ("scan.nii.gz", "scan.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (judged[1] / name).read_bytes()


def test_a_folder_is_judged_volume_by_volume(trained, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        volume_file(tmp_path / "in" / f"{name}.nii.gz", (24, 32, 2), seed=ord(name))
    told = []
    summary = anomaly(
        trained.run,
        tmp_path / "in",
        tmp_path / "out",
        draws=1,
        pictures=False,
        progress=lambda *one: told.append(one),
        **CPU,
    )
    assert (summary.volumes, summary.slices) == (2, 4)
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {"a.csv", "b.csv"}
    assert told == [(0, 2), (1, 2), (2, 2)]


# --- What is refused


def test_maps_never_take_the_place_of_originals(judged, trained):
    source = judged[0]
    before = source.read_bytes()
    with pytest.raises(DataError, match="originals lie here, and none may be overwritten"):
        anomaly(trained.run, source, source.parent, **CPU)
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("model", "source", "error"),
    [("nowhere", "scan.nii.gz", CheckpointError), ("run", "nowhere.nii", DataError)],
)
def test_a_fault_leaves_nothing(model, source, error, judged, trained, tmp_path):
    model = trained.run if model == "run" else tmp_path / model
    with pytest.raises(error, match="nowhere"):
        anomaly(model, judged[0].parent / source, tmp_path / "out", **CPU)
    assert list(tmp_path.iterdir()) == []
