"""Reading a prepared folder: records, batches of one shape, and augmentation."""

import errno
import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from slicebook.config import AugmentConfig
from slicebook.data import loader
from slicebook.data.augment import Augmentation, augment, draw_augmentation
from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.layouts.sources import SourceOptions
from slicebook.data.loader import BatchOrder, SliceBatches, explain_dead_worker
from slicebook.data.prepare import PrepareOptions, prepare
from slicebook.errors import DataError

STILL = AugmentConfig(flip_probability=0, rotate_degrees=0, scale=0, shift=0, gamma=0, intensity_scale=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients in training, one of another shape: 17 slices of 4 × 6 and 4 of 5 × 6."""
    path = tmp_path_factory.mktemp("dataset")
    for patient, shape in enumerate([(6, 4, 5), (6, 4, 4), (6, 5, 4), (6, 4, 4), (6, 4, 4)]):
        array = np.random.default_rng(patient).uniform(0, 9, shape).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), path / f"p{patient}.nii")
    options = PrepareOptions(fractions=(1.0, 0.0, 0.0))
    return prepare(path, path / "prepared", SourceOptions(patient_regex=r"(p\d)"), options).folder


@pytest.fixture
def slices(folder: Path) -> SliceSet:
    return PreparedData.open(folder).split("train")


def order(batches: SliceBatches) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


def test_a_slice_is_a_copy_in_range(slices: SliceSet) -> None:
    slices[0].fill_(9)
    assert slices[0].shape == (1, 4, 6)
    assert -1 <= slices[0].min() < slices[0].max() <= 1


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> SliceSet:
    """The same slices in a folder of this test."""
    shutil.copytree(folder, tmp_path / "copied")
    return PreparedData.open(tmp_path / "copied").split("train")


@pytest.mark.fault("a prepared folder cut short", "while it is read: refused in one line, not SIGBUS")
def test_a_file_that_gets_shorter_while_it_is_read_is_an_error_and_not_the_end(copied: SliceSet) -> None:
    last = copied[20].clone()
    os.truncate(copied.folder / "images.f32", 4 * copied.records[20].offset + 8)
    assert copied[0].shape == (1, 4, 6)
    with pytest.raises(DataError, match=r"images\.f32: ends within patient-0005/.*: 8 bytes read, wanted 96"):
        _ = copied[20]
    assert last.shape == (1, 4, 6)


@pytest.mark.fault("network file system that fails", "refused in one line that names the file")
def test_an_error_of_the_file_system_is_one_line(copied: SliceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "preadv", stale)
    with pytest.raises(DataError, match=r"images\.f32: cannot be read \(Stale file handle\); check the disk"):
        _ = copied[0]


def test_a_file_is_open_once_and_closed_with_its_set(copied: SliceSet) -> None:
    def count() -> int:
        targets = [os.path.realpath(handle) for handle in Path("/proc/self/fd").iterdir()]
        return sum(target == str(copied.folder / "images.f32") for target in targets)

    other = SliceSet(copied.folder, copied.records)
    for index in range(len(other)):
        _ = other[index]
    assert count() == 1
    del other
    assert count() == 0


def test_a_set_travels_to_a_worker_without_its_open_files(slices: SliceSet) -> None:
    unread = len(pickle.dumps(slices))
    _ = slices[0]
    assert len(pickle.dumps(slices)) == unread
    copy = pickle.loads(pickle.dumps(slices))
    assert torch.equal(copy[3], slices[3])


def test_a_slice_without_a_mask_says_so(slices: SliceSet) -> None:
    with pytest.raises(DataError, match=r"has no mask.*--mask"):
        slices.labels(0)


def test_each_slice_comes_once_an_epoch_in_batches_of_one_shape(slices: SliceSet) -> None:
    batches = list(SliceBatches(slices, 4, shuffle=True))
    assert len(batches) == len(SliceBatches(slices, 4)) == 6
    assert sorted(i for batch in batches for i in batch.indices.tolist()) == list(range(21))
    for batch in batches:
        for image, i in zip(batch.images, batch.indices.tolist(), strict=True):
            assert torch.equal(image, slices[i])


def test_the_order_depends_on_the_seed_and_the_epoch_alone(slices: SliceSet) -> None:
    first, second = (SliceBatches(slices, 4, shuffle=True, seed=1) for _ in range(2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert order(first) == order(second) == order(first)
    second.set_epoch(1)
    assert order(first) != order(second)
    assert torch.equal(before, torch.get_rng_state())


def test_workers_bring_the_same_batches(slices: SliceSet) -> None:
    assert order(SliceBatches(slices, 4, shuffle=True, workers=2)) == order(
        SliceBatches(slices, 4, shuffle=True)
    )


@pytest.mark.fault("rare sizes", "every slice is seen in every epoch")
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 16, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_each_batch_and_no_slice_comes_twice_or_never(
    batch_size: int, world_size: int, slices: SliceSet
) -> None:
    """21 slices of two shapes; batches of fewer slices than ranks among them."""
    whole = list(SliceBatches(slices, batch_size, shuffle=True))
    assert max(len(batch) for batch in whole) <= batch_size
    loaders = [
        SliceBatches(slices, batch_size, shuffle=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    ranks = [list(loader) for loader in loaders]
    assert {len(loader) for loader in loaders} == {len(batches) for batches in ranks} == {len(whole)}
    for batch, *shares in zip(whole, *ranks, strict=True):
        counted = [share.indices.tolist()[: share.part.count] for share in shares]
        assert [index for part in counted for index in part] == batch.indices.tolist()
        assert all(len(share) == max(1, share.part.count) for share in shares)  # none is empty
        assert max(map(len, counted)) - min(map(len, counted)) <= 1
        assert sum(share.part.weight for share in shares) == pytest.approx(world_size)
    assert sorted(i for batch in whole for i in batch.indices.tolist()) == list(range(21))
    undivided = [batch.indices.tolist() for batch in loaders[-1].undivided()]
    assert undivided == [batch.indices.tolist() for batch in whole]


def test_slices_of_one_shape_are_shared_out_evenly() -> None:
    assert {len(batch) for batch in BatchOrder([range(17)], 16, True, 1)} == {8, 9}


@pytest.mark.fault("small shared memory", "refused before they start; use --workers 0")
def test_workers_that_shared_memory_cannot_hold_are_refused_before_they_start(
    slices: SliceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "SHARED_MEMORY", tmp_path)
    wanted = 6 * 4 * 30 * 4  # batches × slices × pixels of the larger shape × bytes
    free = SimpleNamespace(free=wanted - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(DataError, match=r"shared memory are free, wanted .* use --workers 0") as caught:
        SliceBatches(slices, 4, workers=2)
    assert "\n" not in str(caught.value)
    SliceBatches(slices, 4)  # without workers none is needed
    free.free = wanted
    SliceBatches(slices, 4, workers=2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(DataError, match="use --workers 0"):
        SliceBatches(slices, 4, workers=2)


class SilentSlices(SliceSet):
    """Never comes back, as a worker whose batch does not fit into shared memory."""

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(60)
        raise AssertionError("unreachable")


@pytest.mark.fault("small shared memory", "ends after a timeout with a message; use --workers 0")
def test_workers_that_send_nothing_end_in_a_message(
    slices: SliceSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "LOADING_TIMEOUT", 1)
    batches = SliceBatches(SilentSlices(slices.folder, slices.records), 4, workers=1)
    with pytest.raises(DataError, match=r"sent nothing for 1 seconds.*use --workers 0"):
        next(iter(batches))


class DyingSlices(SliceSet):
    """Ends the process that reads it, as the kernel does when memory runs out."""

    def __getitem__(self, index: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


@pytest.mark.fault("killed worker", "ends with a message; use --workers 0, fewer workers or a smaller batch")
def test_a_worker_that_dies_gives_a_clear_message(slices: SliceSet) -> None:
    dying = DyingSlices(slices.folder, slices.records)
    with pytest.raises(DataError, match="--workers 0"), explain_dead_worker():
        list(SliceBatches(dying, 4, workers=1))


def test_other_runtime_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), explain_dead_worker():
        raise RuntimeError("out of memory")


@pytest.mark.fault("a prepared folder cut short", "refused; prepare the data again")
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dataset.json", None, "run: slicebook prepare"),
        ("dataset.json", b"{}", "schema_version"),
        ("manifest.csv", None, "missing"),
        ("manifest.csv", b"a,b\n", "first line"),
        ("images.f32", b"1234", "4 bytes, wanted"),
    ],
)
def test_a_damaged_folder_is_named_with_the_way_out(
    folder: Path, tmp_path: Path, name: str, change: bytes | None, message: str
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).unlink() if change is None else (tmp_path / name).write_bytes(change)
    with pytest.raises(DataError, match=message):
        PreparedData.open(tmp_path)


def test_a_manifest_line_cut_short_is_an_error(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(manifest[:-30])
    with pytest.raises(DataError, match=r"manifest\.csv: line 22 cannot be read"):
        PreparedData.open(tmp_path)


def test_an_empty_split_is_an_error_that_names_it(folder: Path) -> None:
    with pytest.raises(DataError, match="'test' holds no slice"):
        PreparedData.open(folder).split("test")


def neutral(batch: int) -> dict[str, torch.Tensor]:
    return {
        "mirror": torch.zeros(batch, dtype=torch.bool),
        "angle": torch.zeros(batch),
        "scale": torch.ones(batch),
        "shift": torch.zeros(batch, 2),
        "gamma": torch.ones(batch),
        "gain": torch.ones(batch),
    }


def dot(row: int, column: int, shape: tuple[int, int] = (16, 8)) -> torch.Tensor:
    image = torch.full((1, 1, *shape), -1.0)
    image[0, 0, row, column] = 1
    return image


def brightest(image: torch.Tensor) -> tuple[int, int]:
    return divmod(int(image[0, 0].argmax()), image.shape[-1])


def test_without_settings_slices_stay_exactly_as_they_were() -> None:
    images = torch.rand(3, 1, 5, 7) * 2 - 1
    parameters = draw_augmentation(STILL, 3, torch.Generator().manual_seed(0))
    assert torch.equal(augment(images, parameters), images)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"mirror": torch.tensor([True])}, (4, 5)),
        ({"shift": torch.tensor([[0.25, 0.125]])}, (8, 3)),  # 4 of 16 rows down, 1 of 8 columns right
        ({"angle": torch.tensor([torch.pi])}, (11, 5)),
        (
            {"scale": torch.tensor([5 / 3])},
            (2, 1),
        ),  # 3.5 and 1.5 from the centre become 5.8 and 2.5
    ],
)
def test_a_movement_puts_a_dot_where_geometry_says(
    change: dict[str, torch.Tensor], wanted: tuple[int, int]
) -> None:
    assert brightest(augment(dot(4, 2), Augmentation(**{**neutral(1), **change}))) == wanted


def test_a_rotation_is_rigid_on_a_slice_that_is_not_square() -> None:
    turned = augment(dot(9, 6), Augmentation(**{**neutral(1), "angle": torch.tensor([torch.pi / 2])}))
    row, column = brightest(turned)
    # 1.5 rows and 2.5 columns from the centre (7.5, 3.5) change places, and stay as far away.
    assert (abs(row - 7.5), abs(column - 3.5)) == (2.5, 1.5)


def test_gamma_and_gain_act_on_the_unit_range_and_clip() -> None:
    images = torch.tensor([[[[-1.0, 0.0, 1.0]]]])
    darker = augment(images, Augmentation(**{**neutral(1), "gamma": torch.tensor([2.0])}))
    brighter = augment(images, Augmentation(**{**neutral(1), "gain": torch.tensor([1.5])}))
    assert darker.flatten().tolist() == [-1, -0.5, 1]
    assert brighter.flatten().tolist() == [-1, 0.5, 1]


def test_draws_come_from_the_generator_and_one_setting_leaves_the_others_alone() -> None:
    first = draw_augmentation(AugmentConfig(), 4, torch.Generator().manual_seed(3))
    second = draw_augmentation(
        AugmentConfig(flip_probability=0, gamma=0), 4, torch.Generator().manual_seed(3)
    )
    assert torch.equal(first.angle, second.angle)
    assert torch.equal(first.gain, second.gain)
    assert not second.mirror.any()
    assert (second.gamma == 1).all()


def test_draws_stay_within_their_settings() -> None:
    config = AugmentConfig(
        flip_probability=0.5, rotate_degrees=10, scale=0.1, shift=0.05, gamma=0.2, intensity_scale=0.1
    )
    drawn = draw_augmentation(config, 2000, torch.Generator().manual_seed(0))
    assert drawn.mirror.float().mean() == pytest.approx(0.5, abs=0.05)
    for values, middle, reach in [
        (drawn.angle, 0, np.radians(10)),
        (drawn.scale, 1, 0.1),
        (drawn.shift, 0, 0.05),
        (drawn.gamma, 1, 0.2),
        (drawn.gain, 1, 0.1),
    ]:
        assert 0.95 * reach < (values - middle).abs().max() <= reach + 1e-6
