"""Shapes, types, affines, settings and token files drawn by hypothesis: a right answer or a clear error."""

import contextlib
import json
import math

import nibabel as nib
import numpy as np
import pytest
from helpers.token_file import tokens_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from slicebook.errors import ConfigError, DataError, SlicebookError
from slicebook.io.nifti import read_nifti, write_nifti
from slicebook.io.tokens import TokenFile
from slicebook.io.volume import from_slices, orientation_of, to_slices
from slicebook.recipes import load_recipe

often = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,  # the same examples each time: a failure is never a surprise in somebody else's change
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DTYPES = ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<u4", "<i8", "<f4", ">f4", "<f8"]
ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True)
AXES = arrays.arrays(np.float64, (3, 4), elements=st.floats(-1e6, 1e6) | st.sampled_from([0, 1, -1, 3]))


@pytest.mark.fault("slope 0", "read unscaled, as NIfTI-1 says")
@pytest.mark.fault("slope NaN", "read unscaled, as nibabel does")
@pytest.mark.fault("rotated affine", "any affine is read as it is, or refused")
@pytest.mark.fault(
    "lists of numbers and texts drawn at random",
    "shapes, types, affines and slopes: read as numpy computes it, or refused",
)
@often
@given(
    st.data(),
    st.sampled_from(DTYPES),
    arrays.array_shapes(min_dims=2, max_dims=3, max_side=6),
    AXES,
    ANY_FLOAT,
    ANY_FLOAT,
)
def test_any_nifti_is_read_as_numpy_computes_it_or_refused(tmp_path, data, dtype, shape, axes, slope, inter):
    stored = data.draw(arrays.arrays(np.dtype(dtype), shape))
    image = nib.Nifti1Image(stored, np.eye(4), dtype=stored.dtype)
    content = bytearray(image.to_bytes())
    content[280:328] = axes.astype("<f4").tobytes()
    content[112:120] = np.array([slope, inter], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    try:
        volume = read_nifti(tmp_path / "a.nii")
    except DataError:
        return
    unscaled = slope == 0 or math.isnan(slope)
    wanted = stored.astype(np.float64) if unscaled else stored * np.float64(slope) + inter
    assert np.array_equal(volume.array.reshape(shape), wanted.astype(np.float32))
    assert np.allclose(volume.affine[:3], axes.astype(np.float32))
    orientation = orientation_of(volume)
    assert np.array_equal(from_slices(to_slices(volume.array, orientation), orientation), volume.array)
    write_nifti(tmp_path / "b.nii", volume.array, volume)
    again = read_nifti(tmp_path / "b.nii")
    assert np.array_equal(again.array, volume.array)
    assert np.array_equal(again.affine, volume.affine)


KEYS = ["training.learning_rate", "training.epochs", "tokenizer.width", "tokenizer.scaling_rates", "name"]
KEYS += ["tokenizer.codebook_sizes", "training.augment", "prior.widths", "decoder", "training.betas", "x.y"]
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
SETTING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
).map(json.dumps)


@pytest.mark.fault("lists of numbers and texts drawn at random", "settings: a recipe, or refused")
@often
@given(st.lists(st.tuples(st.sampled_from(KEYS) | TEXT, SETTING | TEXT).map("=".join), max_size=3))
def test_any_settings_are_a_recipe_or_refused(overrides):
    with contextlib.suppress(ConfigError):
        recipe = load_recipe("compact", overrides)
        assert recipe.training.epochs >= 1
        assert all(math.isfinite(rate) for rate in (recipe.training.learning_rate,))


@often
@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_refused(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8", errors="replace")
    with contextlib.suppress(ConfigError):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.fault("lists of numbers and texts drawn at random", "token files: come back equal, or refused")
@often
@given(
    slices=st.integers(1, 4),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    grids=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    intensity=st.tuples(ANY_FLOAT, ANY_FLOAT),
    axes=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.booleans()] * 3),
    affine=AXES,
    code=st.integers(0, 65535),
)
def test_any_tokens_come_back_or_are_refused(
    tmp_path, slices, size, grids, intensity, axes, flips, affine, code
):
    own = dict(zip(axes, (slices, *size), strict=True))
    tokens = tokens_of(
        tokens=tuple(np.full((slices, *grid), code, np.uint16) for grid in grids),
        size=size,
        low=intensity[0],
        high=intensity[1],
        axes=tuple(axes),
        flips=flips,
        affine=np.vstack([affine, [0, 0, 0, 1]]),
        shape_on_disk=(own[0], own[1], own[2]),
        geometry=b"",
    )
    with contextlib.suppress(SlicebookError):
        tokens.write(tmp_path / "t.safetensors")
        again = TokenFile.read(tmp_path / "t.safetensors")
        assert all(np.array_equal(a, b) for a, b in zip(again.tokens, tokens.tokens, strict=True))
        assert np.array_equal(again.affine, tokens.affine)
        assert (again.low, again.high, again.axes, again.flips) == (*intensity, tuple(axes), flips)


@pytest.mark.fault("value out of range", "infinity is refused")
def test_a_setting_of_infinity_is_refused():
    with pytest.raises(ConfigError, match=r"training\.learning_rate"):
        load_recipe("compact", ["training.learning_rate=.inf"])
