"""An interrupted evaluation goes on where it stopped, and writes the report of one that was not."""

import os
import shutil
import signal
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.kills import ended_by, files_of, forked, kill_within

from slicebook.cli import main
from slicebook.data.dataset import PreparedData
from slicebook.evaluation import downstream, generation, memorization, reconstruction, results
from slicebook.evaluation import evaluate as evaluating
from slicebook.evaluation.evaluate import evaluate
from slicebook.evaluation.kept import KeptWork
from slicebook.evaluation.report import PARTIAL, WRITTEN
from slicebook.io.resumable import Journal
from slicebook.metrics.features import deep, texture
from slicebook.metrics.statistics import Rate
from slicebook.models.sampling import SamplingSettings
from slicebook.signals import NAMES

OPTIONS: dict[str, Any] = {
    "split": "validation",
    "samples": 20,
    "settings": SamplingSettings(2, 2),
    "steps": 2,
}
TIMELESS = SimpleNamespace(perf_counter=lambda: 0.0)


def timeless(patch):
    """Take seconds out of the report, and the features that take them."""
    for module in (evaluating, generation, results):
        patch.setattr(module, "time", TIMELESS)
    patch.setattr(deep, "installed", lambda: False)


@pytest.fixture
def data(trained):
    return PreparedData.open(trained.data)


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """The files of an evaluation that was not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "report"
    with pytest.MonkeyPatch.context() as patch:
        timeless(patch)
        evaluate(trained.run, PreparedData.open(trained.data), out, **OPTIONS)
    return files_of(out)


MOMENTS = [
    (reconstruction, "_score_batch", False, 1),
    (reconstruction, "measure_rate_distortion", True, 1),
    (generation, "render", False, 2),  # 16 samples are kept, the last 4 are not
    (texture, "texture_features", True, 2),
    (generation, "compare_diversity", True, 1),
    (memorization, "nearest_by_correlation", True, 2),
    (memorization, "likelihood", True, 2),
    (downstream, "train_segmenter", True, 2),
    (Journal, "add", True, 2),
    (evaluating, "write_report", True, 1),
]
"""Where an evaluation kills itself, one after the other: owner, function, before or after it, which call."""


@pytest.mark.fault(
    "SIGKILL of an evaluation", "the same command resumes it, to the report of one that was not killed"
)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.timeout(1200)
def test_an_evaluation_that_is_killed_in_every_part_writes_the_same_report(
    trained, data, whole, tmp_path, monkeypatch
):
    timeless(monkeypatch)
    reached = [0]
    for owner, name, before, count in MOMENTS:

        def work(moment=(owner, name, before, count)):
            kill_within(moment[0], moment[1], before=moment[2], count=moment[3])
            evaluate(trained.run, data, tmp_path, **OPTIONS)

        assert ended_by(forked(work)) == signal.SIGKILL, name
        assert {path.name for path in tmp_path.iterdir()} == {PARTIAL}
        journal = tmp_path / PARTIAL / "journal.jsonl"
        reached.append(journal.read_bytes().count(b"\n") if journal.exists() else 0)
    assert reached == sorted(reached)
    assert len(set(reached)) > len(MOMENTS) / 2
    for owner, name, *_ in MOMENTS[:8]:
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("done again"))
    evaluate(trained.run, data, tmp_path, **OPTIONS)
    assert files_of(tmp_path) == whole
    assert set(whole) <= set(WRITTEN)


def interrupt(trained, data, out, monkeypatch, **changes):
    """Stop an evaluation of the reconstruction before it draws."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reconstruction, "_draw", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(trained.run, data, out, **OPTIONS | {"parts": ("reconstruction",)} | changes)


@pytest.fixture
def scored(monkeypatch):
    """The batches that are scored."""
    whole, calls = reconstruction._score_batch, []

    def spy(*given):
        calls.append(given)
        return whole(*given)

    monkeypatch.setattr(reconstruction, "_score_batch", spy)
    return calls


def test_scores_that_are_kept_are_not_computed_again(trained, data, tmp_path, scored, monkeypatch):
    interrupt(trained, data, tmp_path, monkeypatch)
    first = len(scored)
    interrupt(trained, data, tmp_path, monkeypatch)
    assert len(scored) == first > 0


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}, {"device": torch.device("cpu", 0)}])
def test_an_evaluation_with_other_options_starts_anew(change, trained, data, tmp_path, scored, monkeypatch):
    interrupt(trained, data, tmp_path, monkeypatch)
    scored.clear()
    interrupt(trained, data, tmp_path, monkeypatch, **change)
    assert scored


def test_an_evaluation_of_other_data_starts_anew(trained, tmp_path, scored, monkeypatch):
    shutil.copytree(trained.data, tmp_path / "data")
    interrupt(trained, PreparedData.open(tmp_path / "data"), tmp_path / "out", monkeypatch)
    scored.clear()
    voxels = np.memmap(tmp_path / "data" / "images.f32", dtype="<f4", mode="r+")
    voxels[::7] *= 0.5
    voxels.flush()
    interrupt(trained, PreparedData.open(tmp_path / "data"), tmp_path / "out", monkeypatch)
    assert scored


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_stops_the_command_with_the_status_that_a_job_repeats(
    name, trained, tmp_path, scored, monkeypatch, capsys
):
    def stop(*_, **__):
        os.kill(os.getpid(), getattr(signal, name))

    command = ["evaluate", str(trained.run), str(trained.data), "-o", str(tmp_path), "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(reconstruction, "_draw", stop)
        assert main.main([*command, "--parts", "reconstruction"]) == 75
    assert f"stopped by {name}; repeat the command to continue" in capsys.readouterr().err
    scored.clear()
    assert main.main([*command, "--parts", "reconstruction"]) == 0
    assert scored == []


# --- What is kept


@pytest.fixture
def kept(tmp_path):
    """Kept work of one request, anew at each call, as a repeated command has it."""

    def open_journal(counter=None, **request):
        return KeptWork(Journal(tmp_path / "journal.jsonl", {"seed": 1, **request}), counter)

    return open_journal


RATE: dict[str, Any] = {"convention": "bits", "mean_of_slices": 1 / 3, "lowest": 1e-300, "highest": 2.0}


def test_a_record_comes_back_exactly(kept):
    fields = {**RATE, **{name: 0.1 for name in Rate.model_fields if name not in RATE}}
    rate = Rate(**fields)
    assert kept().record("rate", Rate, lambda: rate) == rate
    assert kept().record("rate", Rate, lambda: pytest.fail("computed again")) == rate
    other = Rate(**fields | {"mean_of_slices": 0.5})
    assert kept(seed=2).record("rate", Rate, lambda: other) == other


def test_a_value_that_json_cannot_hold_is_not_kept(kept):
    assert np.isnan(kept().record("value", float, lambda: float("nan")))
    assert kept().record("value", float, lambda: 2.0) == 2.0


def squares(first, end, failing=()):
    if first in failing:
        raise KeyboardInterrupt
    return {"squares": np.arange(first, end) ** 2, "odd": np.arange(first, end) % 2 == 1}


def test_arrays_are_kept_part_by_part(kept):
    with pytest.raises(KeyboardInterrupt):
        kept().arrays("squares", "number", 7, 3, partial(squares, failing=(6,)))
    told: list[tuple[int, int]] = []
    again = kept(lambda _: lambda *count: told.append(count)).arrays(
        "squares", "number", 7, 3, partial(squares, failing=(0, 3))
    )
    assert again["squares"].tolist() == [0, 1, 4, 9, 16, 25, 36]
    assert again["odd"].dtype == torch.bool
    assert told == [(6, 7), (7, 7)]


@pytest.mark.parametrize("fault", ["cut", "gone", "other"])
def test_arrays_that_are_damaged_are_computed_again(fault, kept, tmp_path):
    kept().arrays("squares", "number", 6, 3, squares)
    first, second = sorted((tmp_path / "arrays").iterdir())
    if fault == "cut":
        second.write_bytes(second.read_bytes()[:-1])
    elif fault == "gone":
        second.unlink()
    else:
        second.write_bytes(first.read_bytes())
    again = kept().arrays("squares", "number", 6, 3, partial(squares, failing=(0,)))
    assert again["squares"].tolist() == [0, 1, 4, 9, 16, 25]


def test_arrays_of_another_request_are_not_taken_over(kept):
    kept().arrays("squares", "number", 6, 3, squares)
    other = kept(seed=2).arrays("squares", "number", 6, 3, lambda a, b: {"squares": np.zeros(b - a)})
    assert not other["squares"].any()
