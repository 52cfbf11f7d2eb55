"""`benchmarks/starter_patients.py`: parts of the training patients, both starts, one picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.training import prepared_folder

from slicebook.data.dataset import PreparedData
from slicebook.errors import ConfigError
from slicebook.models.checkpoint import load_tokenizer

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:level")  # few codes are in use after a second of training


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import starter_patients

    return starter_patients


@pytest.fixture
def data(tmp_path):
    return prepared_folder(tmp_path / "data", patients=(4, 1, 2), shapes=((32, 32), (32, 64)))


def test_a_part_holds_whole_patients_and_larger_parts_hold_smaller_ones(script, data, tmp_path):
    whole = PreparedData.open(data)
    before: set[bytes] = set()
    for count in (1, 2, 4):
        script.subset(whole, count, tmp_path / f"part-{count}")
        part = PreparedData.open(tmp_path / f"part-{count}")
        slices = part.split("train")
        assert len(slices.patients) == count
        assert len(slices) == 4 * count
        assert part.split_hash == whole.split_hash
        contents = {np.asarray(slices[index]).tobytes() for index in range(len(slices))}
        assert contents > before
        before = contents
        held_out = part.split("validation")
        assert [held_out[i].tolist() for i in range(4)] == [
            whole.split("validation")[i].tolist() for i in range(4)
        ]
        assert {record.split for record in part.records} == {"train", "validation"}
    everything = whole.split("train")
    assert before == {np.asarray(everything[index]).tobytes() for index in range(len(everything))}
    with pytest.raises(ConfigError, match="has 4 training patients, wanted 5"):
        script.subset(whole, 5, tmp_path / "more")


def test_both_starts_are_measured_at_each_count_and_drawn(script, data, tmp_path, monkeypatch):
    shared = ["--work", str(tmp_path / "work"), "--results", str(tmp_path), "--minutes", "0.005"]
    picture = tmp_path / "picture.png"
    options = [str(data), *shared, "--counts", "1", "--draw", "--picture", str(picture)]
    assert script.main(options) == 0
    results = json.loads((tmp_path / "starter_patients.json").read_text())
    assert [(run["patients"], run["from"]) for run in results["runs"]] == [
        (1, "random weights"),
        (1, "starter"),
        (4, "random weights"),
        (4, "starter"),
    ]
    assert all(run["scores"]["ssim_whole"]["patients"] == 2 for run in results["runs"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    initial = load_tokenizer(tmp_path / "work/starter-1-0.005min").info.provenance.initial
    assert initial is not None
    assert initial.weights_sha256 == results["starter"]
    assert load_tokenizer(tmp_path / "work/random-1-0.005min").info.provenance.initial is None
