"""Trainings, sampling and decoding on a GPU; on a CPU only if SLICEBOOK_TEST_DEVICE=cpu asks for it."""

import os

import pytest
from helpers.training import prepared_folder, tiny, train

from slicebook.models.checkpoint import load_tokenizer

DEVICE = os.environ.get("SLICEBOOK_TEST_DEVICE", "cuda")

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:level")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("data") / "prepared")


def test_a_tokenizer_trains(data, tmp_path):
    summary = train(data, tiny(), tmp_path / "run", device=DEVICE, precision="auto")
    assert summary.steps == 6
    assert load_tokenizer(tmp_path / "run").info.provenance.device.startswith(DEVICE)
