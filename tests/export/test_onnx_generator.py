"""A generator as ONNX: onnxruntime draws the same slices, with a loop that needs nothing of Slicebook."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

import slicebook
from slicebook.errors import CheckpointError
from slicebook.export import onnx as exporting
from slicebook.inference.synthesis import _surface_noise, render
from slicebook.models.conditions import Conditions
from slicebook.models.sampling import SamplingSettings, sample


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The folder of the ONNX models of a generator."""
    out = tmp_path_factory.mktemp("onnx") / "out"
    # Another process: tracing with symbolic sizes cannot be watched by checks of shapes.
    words = ["export", str(trained.run), "--format", "onnx", "-o", str(out), "--json"]
    done = subprocess.run([sys.executable, "-m", "slicebook", *words], check=True, capture_output=True)
    summary = json.loads(done.stdout)
    assert summary["image_difference"] <= 1e-4
    assert summary["token_mismatch"] <= 1e-3
    return out


@pytest.mark.parametrize(("count", "position", "group"), [(3, 0.25, 1), (1, None, -1)])
def test_the_loop_draws_the_slices_of_slicebook_from_the_same_noise(count, position, group, exported, loaded):
    spec = importlib.util.spec_from_file_location("sample", exported / "sample.py")
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    seeds = list(range(5, 5 + count))
    each = [torch.Generator().manual_seed(seed) for seed in seeds]
    kind = loaded.info.slices[0]
    padded = tuple(json.loads((exported / "model.json").read_text())["generator"]["padded"])

    def noise(shape):
        if shape == (1, *padded):
            return np.stack([_surface_noise(seed, padded).numpy() for seed in seeds])
        return np.stack([torch.randn(shape, generator=generator).numpy() for generator in each])

    made = loop.generate(exported, count, noise, steps=4, decoder_steps=3, position=position, group=group)
    where = torch.full((count,), torch.nan if position is None else position)
    size = (kind.rows, kind.columns)
    tokens = sample(
        loaded.prior,
        loaded.tokenizer.layout(size),
        seeds,
        Conditions(where, torch.full((count,), group)),
        SamplingSettings(steps=4),
    )
    wanted = render(loaded, tokens, size, seeds, 3)
    np.testing.assert_allclose(made["images"], wanted.images.numpy(), atol=1e-4)
    np.testing.assert_array_equal(made["masks"], wanted.masks.numpy())


def test_the_models_are_valid(exported):
    assert {path.name for path in exported.iterdir()} == {
        *("encoder.onnx", "decoder.onnx", "prior.onnx", "masks.onnx", "generation_decoder.onnx"),
        *("model.json", "sample.py"),
    }
    for path in exported.glob("*.onnx"):
        onnx.checker.check_model(onnx.load(path), full_check=True)


def test_the_program_writes_arrays_and_a_slice_depends_on_its_seed_alone(exported, tmp_path):
    for seed, count in ((3, 2), (4, 1)):
        words = [
            "--seed",
            str(seed),
            "-n",
            str(count),
            "--steps",
            "2",
            "--out",
            str(tmp_path / f"{seed}.npz"),
        ]
        subprocess.run([sys.executable, exported / "sample.py", *words], check=True, cwd=tmp_path)
    first, second = np.load(tmp_path / "3.npz"), np.load(tmp_path / "4.npz")
    assert first["images"].shape[:2] == (2, 1)
    np.testing.assert_allclose(first["images"][1], second["images"][0], atol=1e-4)
    assert not np.allclose(first["images"][0], first["images"][1], atol=1e-2)


def test_the_loop_imports_nothing_of_slicebook(exported):
    assert "slicebook" not in (exported / "sample.py").read_text().lower().split('"""', 2)[2]


def test_a_run_whose_tokenizer_is_not_that_of_its_prior_is_refused(trained, tmp_path):
    model = slicebook.load(trained.run, device="cpu")
    with torch.no_grad():
        next(model.tokenizer.tokenizer.parameters()).add_(1)
    with pytest.raises(
        CheckpointError, match=r"is of another tokenizer than .*; export the file of the prior"
    ):
        exporting.export_onnx(model, tmp_path / "out")
