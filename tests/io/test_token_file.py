"""Tokens on disk: a round trip, and files that lie."""

import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.token_file import rewritten, tokens_of
from safetensors.numpy import load_file

from slicebook.errors import DataError
from slicebook.io.limits import Limits
from slicebook.io.tensors import write_tensors
from slicebook.io.tokens import TokenFile


@pytest.fixture
def path(tmp_path):
    tokens_of().write(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def refuse(path, message="is not a complete token file"):
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
    wanted.write(tmp_path / "new" / "a.safetensors")
    tokens = TokenFile.read(tmp_path / "new" / "a.safetensors")
    for level in range(2):
        assert tokens.tokens[level].dtype == np.uint16
        np.testing.assert_array_equal(tokens.tokens[level], wanted.tokens[level])
    assert tokens.affine.tobytes() == wanted.affine.tobytes()
    for name in ("size", "codebook_hash", "low", "high", "axes", "flips", "shape_on_disk", "geometry"):
        assert getattr(tokens, name) == getattr(wanted, name)
    header = tokens.header()
    assert (b"" if header is None else header.binaryblock) == wanted.geometry


def test_a_2d_file_keeps_its_two_dimensions(tmp_path):
    grids = tuple(grid[:1] for grid in tokens_of().tokens)
    tokens_of(tokens=grids, shape_on_disk=(12, 8)).write(tmp_path / "a.safetensors")
    assert TokenFile.read(tmp_path / "a.safetensors").shape_on_disk == (12, 8)


def test_the_file_opens_with_safetensors_alone(path):
    grids = load_file(path)
    np.testing.assert_array_equal(grids["tokens_0"], tokens_of().tokens[0])
    assert set(grids) == {"tokens_0", "tokens_1", "geometry"}


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"wanted a name that ends in \.safetensors"):
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
    refuse(tmp_path / "absent.safetensors", "slicebook encode")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", pickle.dumps([1, 2])])
def test_bytes_of_another_format_are_refused(path, content):
    path.write_bytes(content)
    refuse(path)


def test_tokens_as_numpy_wrote_them_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", tokens_0=np.zeros((2, 4, 6), np.uint16))
    refuse(tmp_path / "a.npz", "wanted a safetensors file that slicebook encode wrote")


def test_a_file_of_another_kind_is_named(path):
    write_tensors(path, {"weight": torch.zeros(2)}, {"kind": "tokenizer"})
    refuse(path, "holds a tokenizer, wanted tokens; write them with slicebook encode")


def test_every_cut_is_seen(path):
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refuse(path)


@pytest.mark.fault("damaged token file", "refused; encode the volume again")
def test_a_flipped_byte_is_refused_or_means_nothing(path):
    whole, wanted = path.read_bytes(), TokenFile.read(path)
    refused = 0
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            tokens = TokenFile.read(path)
        except DataError:
            refused += 1
        else:  # white space that fills up the header
            for level in range(2):
                np.testing.assert_array_equal(tokens.tokens[level], wanted.tokens[level])
            assert tokens.affine.tobytes() == wanted.affine.tobytes()
    assert refused > len(whole) / 3 / 2


def test_a_file_larger_than_a_volume_may_be_is_refused(path, monkeypatch):
    monkeypatch.setattr("slicebook.io.tokens.LIMITS", Limits(max_bytes=100))
    refuse(path, "wanted at most 100")


def test_tokens_that_were_changed_do_not_match_their_hash(path):
    wanted = tokens_of().tokens[0].tobytes()
    content = path.read_bytes()
    assert content.count(wanted) == 1
    path.write_bytes(content.replace(wanted, bytes(len(wanted))))
    refuse(path, "its tokens do not match their hash")


PARTS = ["tokens_0", "size", "codebook_hash", "intensity", "axes", "flips", "affine", "shape_on_disk"]


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_part_is_refused(name, path):
    rewritten(path, **{name: None})
    refuse(path)


def grids(*shape, dtype=torch.uint16):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens_0": grids(2, 4, 6, dtype=torch.int64)},
        {"tokens_0": grids(2, 4, 6, dtype=torch.float32)},
        {"tokens_0": grids(4, 6)},
        {"tokens_0": grids(3, 4, 6)},
        {"tokens_0": grids(0, 4, 6), "tokens_1": grids(0, 2, 3)},
        {"size": [8]},
        {"size": [8, 0]},
        {"size": [8, 13]},
        {"size": ["8", "x"]},
        {"axes": [0, 0, 1]},
        {"axes": [0, 1, 2]},
        {"flips": [True]},
        {"affine": np.eye(3).tolist()},
        {"affine": np.full((4, 4), np.nan).tolist()},
        {"intensity": [0.0, np.inf]},
        {"intensity": [0.0, 1e300]},
        {"intensity": [0.0]},
        {"shape_on_disk": [8, 12, 2]},
        {"shape_on_disk": [12, 8, 2, 5]},
        {"shape_on_disk": []},
        {"geometry": grids(347, dtype=torch.uint8)},
        {"patient": "Secret^Name"},
    ],
)
def test_a_part_of_the_wrong_kind_or_shape_is_refused(changes, path):
    rewritten(path, **changes)
    refuse(path)


@pytest.mark.parametrize("version", [2, [1, 2], None])
def test_another_format_names_both_versions(path, version):
    rewritten(path, schema_version=version)
    refuse(path, r"token format .*, this Slicebook reads 1; encode the volume again")
