"""Tokens on disk: a round trip, and files that lie."""

import io
import pickle
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pytest
from helpers.token_file import rewritten, tokens_of

from slicebook.errors import DataError
from slicebook.io.tokens import TokenFile


def refuse(path, message="is no whole token file"):
    with pytest.raises(DataError, match=message) as caught:
        TokenFile.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"geometry": b""},
        {"geometry": nib.Nifti2Header(endianness="<").binaryblock},
        {"shape_on_disk": (12, 8, 2, 1, 1)},
    ],
)
def test_tokens_come_back_bit_for_bit(changes, tmp_path):
    wanted = tokens_of(**changes)
    wanted.write(tmp_path / "new" / "a.npz")
    found = TokenFile.read(tmp_path / "new" / "a.npz")
    for level in range(2):
        assert found.tokens[level].dtype == np.uint16
        np.testing.assert_array_equal(found.tokens[level], wanted.tokens[level])
    assert found.affine.tobytes() == wanted.affine.tobytes()
    for name in ("size", "codebook_hash", "low", "high", "axes", "flips", "shape_on_disk", "geometry"):
        assert getattr(found, name) == getattr(wanted, name)
    header = found.header()
    assert (b"" if header is None else header.binaryblock) == wanted.geometry


def test_a_2d_file_keeps_its_two_dimensions(tmp_path):
    grids = tuple(grid[:1] for grid in tokens_of().tokens)
    tokens_of(tokens=grids, shape_on_disk=(12, 8)).write(tmp_path / "a.npz")
    assert TokenFile.read(tmp_path / "a.npz").shape_on_disk == (12, 8)


def test_the_file_opens_with_numpy_alone_and_holds_no_pickle(path):
    with np.load(path, allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= set("iufbU")


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"wanted a name that ends in \.npz"):
        tokens_of().write(tmp_path / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_what_was_there(path, monkeypatch):
    before = path.read_bytes()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slicebook.io.nifti.os.fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        tokens_of(low=0.0).write(path)
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_an_absent_file_is_named(tmp_path):
    refuse(tmp_path / "absent.npz", "slicebook encode")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", pickle.dumps([1, 2])])
def test_bytes_that_are_no_archive_are_refused(path, content):
    path.write_bytes(content)
    refuse(path)


def test_every_cut_is_seen(path):
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refuse(path)


def test_a_flipped_byte_is_refused_or_means_nothing(path):
    whole, wanted = path.read_bytes(), TokenFile.read(path)
    refused = 0
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found = TokenFile.read(path)
        except DataError:
            refused += 1
        else:  # a time stamp, or another field that no reader looks at
            for level in range(2):
                np.testing.assert_array_equal(found.tokens[level], wanted.tokens[level])
            assert found.affine.tobytes() == wanted.affine.tobytes()
    assert refused > len(whole) / 3 / 2


def test_a_pickle_inside_is_refused_and_never_run(path):
    rewritten(path, size=np.array([{"rows": 8}], dtype=object))
    refuse(path, "allow_pickle=False|Object arrays")


def test_an_archive_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tokens_0.npy", bytes(80 * 1024**2))
    refuse(path, "claim to unpack to 83,886,080, wanted at most 250 times; encode the volume again")


def test_an_array_that_claims_more_than_it_holds_is_refused(path):
    header = io.BytesIO()
    claim = {"descr": "<u2", "fortran_order": False, "shape": (10**6, 10**6, 10**3)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tokens_0.npy", header.getvalue())
    refuse(path)


def test_a_member_whose_sum_is_wrong_is_refused(path):
    with zipfile.ZipFile(path) as archive:
        names = {item.filename: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    content = path.read_bytes()
    sum_ = zlib.crc32(names["affine.npy"]).to_bytes(4, "little")
    assert content.count(sum_) == 2
    path.write_bytes(content.replace(sum_, b"\0\0\0\0"))
    refuse(path)


@pytest.mark.parametrize(
    "name",
    ["tokens_0", "schema_version", "size", "codebook_hash", "intensity", "axes", "affine", "shape_on_disk"],
)
def test_a_missing_part_is_refused(name, path):
    rewritten(path, **{name: None})
    refuse(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens_0": np.zeros((2, 4, 6), np.int64)},
        {"tokens_0": np.zeros((2, 4, 6), np.float32)},
        {"tokens_0": np.zeros((4, 6), np.uint16)},
        {"tokens_0": np.zeros((3, 4, 6), np.uint16)},
        {"tokens_0": np.zeros((0, 4, 6), np.uint16), "tokens_1": np.zeros((0, 2, 3), np.uint16)},
        {"size": np.array([8])},
        {"size": np.array([8, 0])},
        {"size": np.array([8, 13])},
        {"size": np.array(["8", "x"])},
        {"axes": np.array([0, 0, 1])},
        {"axes": np.array([0, 1, 2])},
        {"flips": np.array([True])},
        {"affine": np.eye(3)},
        {"affine": np.full((4, 4), np.nan)},
        {"intensity": np.array([0.0, np.inf])},
        {"intensity": np.array([0.0, 1e300])},
        {"intensity": np.array([0.0])},
        {"shape_on_disk": np.array([8, 12, 2])},
        {"shape_on_disk": np.array([12, 8, 2, 5])},
        {"shape_on_disk": np.array([], dtype=np.int64)},
        {"geometry": np.zeros(347, np.uint8)},
        {"schema_version": np.array([1, 2])},
    ],
)
def test_a_part_of_the_wrong_kind_or_shape_is_refused(changes, path):
    rewritten(path, **changes)
    refuse(path)


def test_a_newer_format_names_both_versions(path):
    rewritten(path, schema_version=np.int64(2))
    refuse(path, "token format 2, this Slicebook reads 1; encode the volume again")
