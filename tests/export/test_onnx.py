"""A tokenizer as ONNX: onnxruntime computes the same tokens and images."""

import json

import jaxtyping
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.checkpoint import resealed
from helpers.inference import model_file

import slicebook
from slicebook.cli import main
from slicebook.errors import CheckpointError, ConfigError, DataError
from slicebook.export import onnx as exporting
from slicebook.io.tensors import read_tensors


@pytest.fixture(scope="module", autouse=True)
def unchecked_shapes():
    """Tracing with symbolic sizes cannot be watched by checks of shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tokenizer's file, and the folder of its ONNX models that the command wrote."""
    folder = tmp_path_factory.mktemp("onnx")
    model_file(folder / "model.safetensors")
    words = ["export", folder / "model.safetensors", "--format", "onnx", "-o", folder / "out"]
    assert main.main([str(word) for word in words]) == 0
    return folder


def session(folder, name):
    return onnxruntime.InferenceSession(folder / "out" / name, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("batch", "size"), [(2, (17, 25)), (1, (64, 64)), (3, (5, 40)), (1, (8, 8)), (1, (100, 37))]
)
def test_tokens_are_the_same_and_images_within_1e_4_at_any_size(batch, size, exported):
    tokenizer = slicebook.load(exported / "model.safetensors", device="cpu").tokenizer.tokenizer
    images = np.random.default_rng(0).uniform(-1, 1, (batch, 1, *size)).astype(np.float32)
    tokens = session(exported, "encoder.onnx").run(None, {"images": images})
    wanted = tokenizer.encode(images)
    assert [grid.tolist() for grid in tokens] == [grid.tolist() for grid in wanted]
    inputs = {f"tokens_{level}": grid for level, grid in enumerate(tokens)}
    (drawn,) = session(exported, "decoder.onnx").run(None, {**inputs, "size": np.array(size)})
    assert drawn.shape == images.shape
    np.testing.assert_allclose(drawn, tokenizer.decode(wanted, size), atol=1e-4)


def test_the_models_are_valid_and_named(exported):
    for name, inputs, outputs in (
        ("encoder.onnx", ["images"], ["tokens_0", "tokens_1"]),
        ("decoder.onnx", ["tokens_0", "tokens_1", "size"], ["images"]),
    ):
        model = onnx.load(exported / "out" / name)
        onnx.checker.check_model(model, full_check=True)
        assert [item.name for item in model.graph.input] == inputs
        assert [item.name for item in model.graph.output] == outputs
        assert [item.version for item in model.opset_import if not item.domain] == [18]
        held = model.SerializeToString()
        assert b"ema_embed_sum" not in held
        assert str(exported).encode() not in held


def test_a_program_is_told_what_it_must_know(exported):
    info = json.loads((exported / "out" / "model.json").read_text())
    model = slicebook.load(exported / "model.safetensors", device="cpu")
    assert info["codebook_hash"] == model.tokenizer.codebook_hash
    assert (info["stride"], info["codebook_sizes"]) == (8, [64, 16])
    assert {item.name for item in (exported / "out").iterdir()} == {
        "encoder.onnx",
        "decoder.onnx",
        "model.json",
    }


def test_a_model_that_onnxruntime_computes_otherwise_is_not_written(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_write_models", lambda *_: None)
    monkeypatch.setattr(exporting, "_compare", lambda *_: (0.0, 1e-3))
    with pytest.raises(CheckpointError, match=r"images that differ by 0\.001, wanted the same"):
        exporting.export_onnx(slicebook.load(exported / "model.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(exported, tmp_path, monkeypatch):
    model = slicebook.load(exported / "model.safetensors")
    with pytest.raises(DataError, match="is not empty; choose another folder"):
        exporting.export_onnx(model, exported)
    monkeypatch.setattr(exporting, "PACKAGES", ("onnx", "absent_package"))
    with pytest.raises(
        ConfigError, match=r"absent_package: not installed; run: pip install 'slicebook\[export\]'"
    ):
        exporting.export_onnx(model, tmp_path / "out")
    monkeypatch.undo()
    path = model_file(tmp_path / "model.safetensors")
    recipe = read_tensors(path)[1]["recipe"]
    recipe["tokenizer"]["resize"] = [32, 32]
    resealed(path, recipe=recipe)
    with pytest.raises(ConfigError, match=r"stretches every slice to \(32, 32\) pixels"):
        exporting.export_onnx(slicebook.load(path), tmp_path / "out")
