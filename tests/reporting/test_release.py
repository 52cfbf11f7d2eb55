"""Samples leave the house only after a valid audit of their model, drawn alike, that found no copies."""

import json

import pytest

from slicebook.cli import main
from slicebook.errors import ConfigError, DataError
from slicebook.evaluation.report import read_report
from slicebook.inference.generate import generate
from slicebook.models.checkpoint import load_prior
from slicebook.models.sampling import SamplingSettings
from slicebook.reporting.release import release_check

CLEAR = {
    "memorization__copies__valid": True,
    "memorization__copies__copies_found": False,
    "memorization__copies__max_copy_share": 0.03,
}


@pytest.fixture
def cleared(variant):
    """A report whose audit is valid, found nothing and leaves room for few copies."""
    return variant("cleared", **CLEAR)


def share(trained, report, out, **how):
    return generate(trained.run, out, count=2, release_check=release_check(report), device="cpu", **how)


def test_a_clear_audit_goes_with_the_samples(trained, cleared, tmp_path):
    share(trained, cleared, tmp_path / "out")
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    report = read_report(cleared)
    assert audit["model_sha256"] == load_prior(trained.run).info.weights_sha256
    assert audit["copies"]["verdict"] == report.memorization.copies.verdict
    assert audit["sampling"]["samples"] == 24
    words = (tmp_path / "out" / "AUDIT.md").read_text()
    assert report.memorization.copies.verdict in words
    assert audit["model_sha256"] in words
    assert "At most 3.0% of such samples are copies" in words


def test_few_audited_samples_clear_nothing(trained, variant, tmp_path):
    report = variant("report", **CLEAR | {"memorization__copies__max_copy_share": 0.0501})
    with pytest.raises(DataError, match=r"bound the fraction of copies at 5.0%.*evaluate more samples"):
        share(trained, report, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_summary_names_no_patient_and_no_training_slice(trained, cleared, tmp_path):
    share(trained, cleared, tmp_path / "out")
    text = (tmp_path / "out" / "audit.json").read_text() + (tmp_path / "out" / "AUDIT.md").read_text()
    assert "closest" not in text
    assert "patient-0" not in text


@pytest.mark.parametrize(("valid", "copied"), [(False, False), (True, True), (False, True)])
def test_copies_and_invalid_audits_are_refused_before_anything_is_drawn(
    trained, variant, tmp_path, monkeypatch, valid, copied
):
    report = variant("report", memorization__copies__valid=valid, memorization__copies__copies_found=copied)
    monkeypatch.setattr("slicebook.inference.generate.draw", lambda *_, **__: pytest.fail("drew"))
    with pytest.raises(DataError, match="must not be shared"):
        share(trained, report, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_audit_of_another_model_clears_nothing(trained, variant, tmp_path):
    report = variant("report", memorization__copies__valid=True, provenance__prior__weights_sha256="0" * 64)
    with pytest.raises(DataError, match=r"is an audit of model 000000000000, and .* evaluate this model"):
        share(trained, report, tmp_path / "out")


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"settings": SamplingSettings(steps=5)}, "steps 16 audited, 5 requested"),
        ({"group": "0"}, "class any audited, 0 requested"),
        ({"conditional": False}, "conditional True audited, False requested"),
        ({"position": 0.5}, "position any audited, 0.5 requested"),
        ({"size": (36, 64)}, "size 32×64 audited, 36×64 requested"),
    ],
)
def test_samples_drawn_in_another_way_were_not_audited(trained, cleared, tmp_path, how, named):
    with pytest.raises(ConfigError, match=named):
        share(trained, cleared, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_a_report_without_an_audit_clears_nothing(variant):
    change = {"memorization": None, "skipped": {"memorization": "too few patients"}}
    with pytest.raises(DataError, match=r"contains no audit \(too few patients\); evaluate again"):
        release_check(variant("report", **change))


def test_sharing_is_one_option_of_generate(trained, cleared, variant, tmp_path, capsys):
    line = ["generate", str(trained.run), "-n", "1", "--device", "cpu"]
    assert main.main([*line, "--out", str(tmp_path / "yes"), "--require-audit", str(cleared)]) == 0
    assert (tmp_path / "yes" / "AUDIT.md").is_file()
    refused = variant("refused", memorization__copies__valid=False, memorization__copies__copies_found=False)
    capsys.readouterr()
    assert main.main([*line, "--out", str(tmp_path / "no"), "--require-audit", str(refused)]) == 1
    assert "must not be shared" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
