"""The Python interface: any input, and the same bits as the command line."""

import json
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers.inference import model_file, oblique, volume_file

import slicebook
from slicebook.cli import main
from slicebook.data.manifest import SliceKind
from slicebook.errors import CheckpointError, ConfigError, DataError, ShapeError
from slicebook.io.nifti import read_labels, read_nifti
from slicebook.io.tensors import read_tensors

QUICK: dict[str, Any] = {"steps": 2, "decoder_steps": 2}
STEPS = ("--steps", "2", "--decoder-steps", "2")


def command(*words):
    assert main.main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A file of an untrained tokenizer."""
    return model_file(tmp_path_factory.mktemp("tokenizer") / "model.safetensors")


@pytest.fixture(scope="module")
def model(tokenizer):
    return slicebook.load(tokenizer, device="cpu")


@pytest.fixture(scope="module")
def generator(trained):
    return slicebook.load(trained.run, device="cpu")


@pytest.fixture
def scan(tmp_path):
    return volume_file(tmp_path / "scan.nii.gz")


# --- Loading


def test_every_kind_of_model_is_loaded(trained, tokenizer):
    places = [
        trained.run,
        trained.run.parent,
        trained.run / "prior",
        trained.run / "prior" / "model.safetensors",
    ]
    for place in places:
        loaded = slicebook.load(place, device="cpu")
        assert (loaded.kind, loaded.can_generate, loaded.path) == ("generator", True, places[-1])
        assert loaded.sizes[0] == (32, 64)
        assert loaded.classes == ("0", "1", "2", "3")
        assert 0 in loaded.label_values
    for place in (tokenizer, trained.run / "model.safetensors", "starter:compact"):
        loaded = slicebook.load(str(place), device="cpu")
        assert (loaded.kind, loaded.can_generate) == ("tokenizer", False)
        assert (loaded.sizes, loaded.classes, loaded.label_values) == ((), (), ())
        assert f"slicebook.Model: tokenizer from {loaded.path} on cpu" in repr(loaded)
        assert loaded.levels == len(loaded.recipe.tokenizer.scaling_rates)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("prior/masks", "holds a label tokenizer, wanted a tokenizer"),
        ("prior/decoder", "holds a generation decoder, wanted a tokenizer"),
        ("absent", "does not exist; train one first"),
    ],
)
def test_what_cannot_be_used_alone_is_refused(place, message, trained):
    with pytest.raises(CheckpointError, match=message):
        slicebook.load(trained.run / place)


def test_a_tokenizer_says_that_it_cannot_generate(model):
    for act in (model.generate, lambda: model.inpaint("a", "b"), lambda: model.anomaly("a")):
        with pytest.raises(CheckpointError, match=r"without a prior.*slicebook train generator"):
            act()


# --- The same bits as the command line


def test_reconstruct_is_the_command(model, tokenizer, scan, tmp_path):
    copies = []
    for refine in (0, 3):
        out, options = tmp_path / str(refine), ("--refine", refine, "--no-pictures", "--device", "cpu")
        command("reconstruct", tokenizer, scan, "-o", out, *options)
        model.reconstruct(scan, refine=refine).write(tmp_path / "copy.nii.gz")
        copies.append((tmp_path / "copy.nii.gz").read_bytes())
        assert copies[-1] == (out / "scan.nii.gz").read_bytes()
    assert copies[0] != copies[1]


@pytest.mark.parametrize("refine", [0, 3])
def test_encode_and_decode_are_the_commands(refine, model, tokenizer, scan, tmp_path):
    written = tmp_path / "a.safetensors"
    command("encode", tokenizer, scan, "-o", written, "--refine", refine, "--device", "cpu")
    tokens = model.encode(str(scan), refine=refine)
    tokens.write(tmp_path / "b.safetensors")
    first, second = (
        read_tensors(tmp_path / f"{name}.safetensors") for name in "ab"
    )  # hashes of all included
    assert first[1] == second[1]
    command("decode", tokenizer, tmp_path / "a.safetensors", "-o", tmp_path / "a.nii", "--device", "cpu")
    for given in (tokens, tmp_path / "a.safetensors"):
        model.decode(given).write(tmp_path / "b.nii")
        assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ((), {}),
        (
            ("--class", "2", "--position", "0.25", "--guidance", "1.5"),
            {"class_name": "2", "position": 0.25, "guidance": 1.5},
        ),
        (("--unconditional",), {"conditional": False}),
    ],
)
def test_generate_is_the_command(options, arguments, generator, trained, tmp_path):
    command(
        "generate",
        trained.run,
        "-n",
        2,
        "--seed",
        5,
        *STEPS,
        *options,
        "-o",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    samples = generator.generate(2, 5, **QUICK, **arguments)
    assert [sample.seed for sample in samples] == [5, 6]
    for sample in samples:
        written = tmp_path / "out" / "images" / f"sample-{sample.seed:06}.nii.gz"
        sample.image.write(tmp_path / "image.nii.gz")
        sample.mask.write(tmp_path / "mask.nii.gz")
        assert (tmp_path / "image.nii.gz").read_bytes() == written.read_bytes()
        mask = written.with_name(written.name.replace(".nii", "_mask.nii"))
        assert (tmp_path / "mask.nii.gz").read_bytes() == mask.read_bytes()
        assert (sample.position, sample.class_name) == (
            arguments.get("position", sample.position),
            arguments.get("class_name"),
        )
    assert (samples[0].position is None) == (not arguments.get("conditional", True))


@pytest.fixture(scope="module")
def mask(generator, tmp_path_factory):
    """A label mask of two slices."""
    shown = np.zeros((2, 48, 32), np.uint8)
    shown[0, 10:30, 8:20] = generator.label_values[1]
    path = tmp_path_factory.mktemp("mask") / "mask.nii.gz"
    slicebook.Volume.from_slices(shown, (3.0, 1.5, 1.5)).write(path)
    return path


def test_generate_for_a_mask_is_the_command(generator, trained, mask, tmp_path):
    command(
        "generate", trained.run, "--masks", mask, "-n", 2, *STEPS, "-o", tmp_path / "out", "--device", "cpu"
    )
    for number, sample in enumerate(generator.generate(2, mask=mask, **QUICK)):
        sample.image.write(tmp_path / "image.nii.gz")
        sample.mask.write(tmp_path / "mask.nii.gz")
        for name, end in (("image", ""), ("mask", "_mask")):
            written = tmp_path / "out" / "images" / f"mask-{number:03}{end}.nii.gz"
            assert (tmp_path / f"{name}.nii.gz").read_bytes() == written.read_bytes()


def test_a_mask_may_be_an_array_an_image_or_a_volume(generator, mask):
    shown = read_labels(mask).slices().astype(int)
    wanted = generator.generate(1, 3, mask=mask, **QUICK)[0]
    for given, spacing in ((shown, (3.0, 1.5, 1.5)), (nib.load(mask), None), (read_labels(mask), None)):
        sample = generator.generate(1, 3, mask=given, spacing=spacing, **QUICK)[0]
        np.testing.assert_array_equal(sample.image.slices(), wanted.image.slices())
        np.testing.assert_array_equal(sample.mask.slices(), shown)
        assert sample.image.spacing == wanted.image.spacing


def test_inpaint_is_the_command(generator, trained, tmp_path):
    scan = volume_file(tmp_path / "scan.nii.gz", (32, 64, 2))
    region = np.zeros((32, 64, 2), np.uint8)
    region[8:20, 20:40, 1] = 1
    nib.save(nib.Nifti1Image(region, oblique()), tmp_path / "region.nii.gz")
    files = (scan, tmp_path / "region.nii.gz")
    command(
        "inpaint",
        trained.run,
        *files,
        "-n",
        2,
        "--seed",
        4,
        *STEPS,
        "-o",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    volumes = generator.inpaint(*files, 2, 4, **QUICK)
    for number, volume in enumerate(volumes):
        volume.write(tmp_path / "after.nii.gz")
        written = tmp_path / "out" / f"sample-{number:02}.nii.gz"
        assert (tmp_path / "after.nii.gz").read_bytes() == written.read_bytes()
    shown = read_labels(files[1]).slices()
    (same,) = generator.inpaint(nib.load(scan), shown, 1, 4, **QUICK)
    np.testing.assert_array_equal(same.array, volumes[0].array)


def test_anomaly_is_the_command(generator, trained, tmp_path):
    scan = volume_file(tmp_path / "scan.nii.gz", (32, 64, 2))
    command(
        "anomaly", trained.run, scan, "--draws", 1, "--no-pictures", "-o", tmp_path / "out", "--device", "cpu"
    )
    generator.anomaly(scan, draws=1).write(tmp_path / "map.nii.gz")
    assert (tmp_path / "map.nii.gz").read_bytes() == (tmp_path / "out" / "scan.nii.gz").read_bytes()


def test_evaluate_is_the_command(trained, tmp_path):
    tokenizer = trained.run / "model.safetensors"
    command(
        "evaluate",
        tokenizer,
        trained.data,
        "--split",
        "validation",
        "--no-codecs",
        "-o",
        tmp_path / "a",
        "--device",
        "cpu",
    )
    report = slicebook.evaluate(
        tokenizer, trained.data, tmp_path / "b", split="validation", codecs=False, device="cpu"
    )
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert first["reconstruction"] == second["reconstruction"]
    assert report.model_dump(mode="json")["reconstruction"] == second["reconstruction"]
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in "ab"]
    assert names[0] == names[1]
    assert "report.html" in names[0]


# --- Inputs


def test_an_array_an_image_and_a_volume_are_reconstructed_as_the_file(model, scan):
    wanted = model.reconstruct(scan)
    for given in (nib.load(scan), read_nifti(scan)):
        result = model.reconstruct(given)
        np.testing.assert_array_equal(result.array, wanted.array)
        assert result.geometry.binaryblock == wanted.geometry.binaryblock
    slices = read_nifti(scan).slices()
    result = model.reconstruct(slices, spacing=(3.3, 0.7, 0.8))
    np.testing.assert_array_equal(result.slices(), wanted.slices())
    assert result.spacing == pytest.approx((0.8, 0.7, 3.3))


@pytest.mark.parametrize("dtype", [np.int16, np.float64, np.bool_, np.uint8])
def test_an_array_of_one_slice_or_of_another_type_is_taken(dtype, model):
    slice_ = np.random.default_rng(0).integers(0, 100, (24, 40)).astype(dtype)
    assert model.reconstruct(slice_).slices().shape == (1, 24, 40)
    assert model.encode(slice_).size == (24, 40)


def test_a_plane_slices_a_volume_anew(model, tmp_path):
    scan = volume_file(tmp_path / "scan.nii.gz", (16, 20, 24), np.eye(4))
    assert model.encode(scan, plane="sagittal").size == (24, 20)
    assert model.encode(nib.load(scan), plane="coronal").size == (24, 16)


def test_few_levels_are_decoded_coarsely(model, scan):
    tokens = model.encode(scan)
    whole, coarse = model.decode(tokens), model.decode(tokens, levels=1)
    np.testing.assert_array_equal(model.decode(tokens, levels=2).array, whole.array)
    assert not np.array_equal(coarse.array, whole.array)
    with pytest.raises(ShapeError, match="levels 3: wanted 1 to 2"):
        model.decode(tokens, levels=3)


def test_samples_lie_and_say_what_they_should(generator, loaded):
    kind: SliceKind = loaded.info.slices[0]
    (sample,) = generator.generate(**QUICK)
    assert sample.image.slices().shape == (1, kind.rows, kind.columns)
    assert sample.image.spacing == pytest.approx((kind.column_mm, kind.row_mm, 1))
    assert set(np.unique(sample.mask.array)) <= set(generator.label_values)
    for volume in (sample.image, sample.mask):
        assert bytes(volume.to_nibabel().header["descrip"]).startswith(b"SYNTHETIC")


def test_what_progress_raises_ends_the_work(generator):
    calls = []

    def stop(done, total):
        calls.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.generate(17, progress=stop, **QUICK)
    assert calls == [(16, 17)]


SLICE = np.zeros((8, 8))


@pytest.mark.parametrize(
    ("error", "message", "image", "options"),
    [
        (ShapeError, r"shape \(8,\), wanted \(slices, rows, columns\)", SLICE[0], {}),
        (DataError, "NaN, infinite or beyond float32", SLICE * np.nan, {}),
        (DataError, "wanted real numbers", SLICE * 1j, {}),
        (DataError, "the distances between slices, rows and columns", SLICE, {"spacing": (1.0, 0.0, 1.0)}),
        (ConfigError, "an array has its own slices", SLICE, {"plane": "axial"}),
        (ConfigError, "an array has its own slices", slicebook.Volume.from_slices(SLICE), {"plane": "axial"}),
        (ConfigError, "has its own spacing", nib.Nifti1Image(SLICE, np.eye(4)), {"spacing": (1.0, 1.0, 1.0)}),
        (ConfigError, "has its own spacing", "a.nii", {"spacing": (1.0, 1.0, 1.0)}),
        (DataError, "wanted 2D or 3D", nib.Nifti1Image(np.zeros((4, 4, 4, 2)), np.eye(4)), {}),
        (DataError, "a.nii: does not exist", "a.nii", {}),
    ],
)
def test_an_input_that_cannot_be_used_is_refused(error, message, image, options, model):
    with pytest.raises(error, match=message):
        model.reconstruct(image, **options)


def test_settings_that_cannot_be_used_are_refused(generator, mask, scan):
    for error, message, act in (
        (ConfigError, "0 samples: wanted 1 or more", lambda: generator.generate(0)),
        (ConfigError, "not trained with class 'x'", lambda: generator.generate(class_name="x")),
        (ConfigError, "goes without size", lambda: generator.generate(mask=mask, size=(32, 64))),
        (DataError, "label 99 in a mask", lambda: generator.generate(mask=np.full((8, 8), 99))),
        (DataError, "wanted integer labels", lambda: generator.generate(mask=np.full((8, 8), 0.5))),
        (ConfigError, "0 samples: wanted 1 or more", lambda: generator.inpaint(scan, scan, 0)),
        (ShapeError, "one value for each pixel", lambda: generator.inpaint(scan, np.ones((8, 8)))),
        (DataError, "is 0 everywhere", lambda: generator.inpaint(SLICE, SLICE)),
    ):
        with pytest.raises(error, match=message):
            act()
