"""A report tells the truth: rates over native pixels, patients counted once, warnings where they are due."""

import csv
import dataclasses
import json
import math
import shutil
import sys

import jsonschema
import numpy as np
import pytest
import torch

from slicebook.config import Recipe, TokenizerConfig
from slicebook.data.dataset import PreparedData
from slicebook.data.manifest import DatasetInfo, SliceRecord, SplitCounts, write_info, write_manifest
from slicebook.data.prepare import PrepareOptions, prepare
from slicebook.environment import Provenance
from slicebook.errors import ConfigError, DataError
from slicebook.evaluation.evaluate import evaluate
from slicebook.evaluation.reconstruction import evaluate_reconstruction
from slicebook.evaluation.report import PARTIAL, REPORT_NAME, SCHEMA_NAME, WRITTEN, Evaluation
from slicebook.metrics.image_quality import CONVENTIONS, scores
from slicebook.metrics.statistics import level_use
from slicebook.models.checkpoint import load_tokenizer, save_tokenizer
from slicebook.models.tokenizer import Tokenizer

# split, patient, rows, columns; two sizes, neither a multiple of the stride in both directions
SLICES = [
    *[("train", 1, 24, 40)] * 2,
    ("validation", 2, 24, 40),
    *[("test", 3, 24, 40)] * 3,
    *[("test", 4, 20, 36)] * 1,
    *[("test", 5, 24, 40)] * 2,
]


def picture(index, rows, columns):
    y, x = np.mgrid[:rows, :columns]
    inside = ((y - rows / 2) / (rows / 2.5)) ** 2 + ((x - columns / 2) / (columns / 2.5)) ** 2 < 1
    texture = 0.5 + 0.3 * np.sin(x / (2 + index % 3)) + 0.15 * np.cos(y / 2 + index)
    return np.where(inside, 2 * texture - 1, -1).clip(-1, 1).astype("<f4")


def write_prepared(folder, slices=SLICES, blank=()):
    folder.mkdir()
    records: list[SliceRecord] = []
    offset = 0
    with (folder / "images.f32").open("wb") as file:
        for index, (split, patient, rows, columns) in enumerate(slices):
            image = np.full((rows, columns), -1, "<f4") if index in blank else picture(index, rows, columns)
            file.write(image.tobytes())
            name = f"patient-{patient:04d}"
            same = sum(record.patient == name for record in records)
            records.append(
                SliceRecord(
                    index=index, patient=name, volume=f"{name}/volume-01", slice=same, position=0.5,
                    split=split, rows=rows, columns=columns, offset=offset, label_offset=-1,
                    row_mm=2.0, column_mm=1.0, low=0.0, high=1.0, blank=index in blank,
                )
            )  # fmt: skip
            offset += image.size
    write_manifest(folder, records)
    nothing = SplitCounts(patients=0, volumes=0, slices=0, blank=0)
    info = DatasetInfo(
        schema_version=1, slicebook_version="0", layout="nifti", plane="axial", spacing=None, size=None,
        percentiles=(0.5, 99.5), seed=0, fractions=None, split_hash="abc", label_values=(), quarantined=0,
        duplicates=0, counts=dict.fromkeys(("train", "validation", "test"), nothing),
    )  # fmt: skip
    write_info(folder, info)
    return PreparedData.open(folder)


@pytest.fixture
def data(tmp_path):
    return write_prepared(tmp_path / "prepared")


def model(folder, split_hash="abc"):
    """Write a tokenizer, and return its folder."""
    torch.manual_seed(0)
    config = TokenizerConfig(
        scaling_rates=(4, 2), codebook_sizes=(16, 8), code_dim=4, width=16, residual_layers=1
    )
    tokenizer = Tokenizer(config).eval()
    provenance = Provenance(
        versions={}, commit=None, device="cpu", split_hash=split_hash, train_patients=1, train_slices=2,
        spacing=None, epoch=1, step=1, seconds=1.0, validation={},
    )  # fmt: skip
    save_tokenizer(folder / "model.safetensors", tokenizer, Recipe(tokenizer=config), provenance)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One evaluation with all its files: the report, the folder and the data."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_prepared(folder / "prepared")
    out = folder / "a" / "out"
    return evaluate(model(folder / "model"), data, out, codecs=False), out, data


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the pictures out, where a test asks for numbers."""
    monkeypatch.setattr("slicebook.visualization.figures.pairs", lambda *_, **__: None)
    monkeypatch.setattr("slicebook.visualization.figures.levels", lambda *_, **__: None)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_everything_promised_is_written_and_nothing_else(whole):
    names = {path.name for path in whole[1].iterdir()}
    assert names == {
        "report.json",
        "report.schema.json",
        "slices.csv",
        "patients.csv",
        "worst.png",
        "pairs.png",
        "levels.png",
    }


def test_the_report_in_the_file_is_the_one_returned(whole):
    report, out, _ = whole
    text = (out / "report.json").read_text()
    assert Evaluation.model_validate_json(text) == report
    assert "NaN" not in text
    assert "Infinity" not in text
    assert str(out.parent.parent) not in text  # a path may tell of people


def test_a_score_is_that_of_the_slice_in_its_native_size(whole):
    _, out, data = whole
    loaded = load_tokenizer(out.parent.parent / "model")
    slices = data.split("test")
    for index, row in enumerate(rows_of(out / "slices.csv")):
        image = slices[index][None]
        with torch.inference_mode():
            copy = loaded.tokenizer.decode(loaded.tokenizer.encode(image), image.shape[-2:])
        brightest = max(
            float(slices[i].max() + 1) / 2
            for i, record in enumerate(slices.records)
            if record.volume == slices.records[index].volume
        )
        expected = scores(
            (image[0, 0].numpy() + 1) / 2, (copy[0, 0].numpy() + 1) / 2, volume_max=brightest
        ).named()
        assert (int(row["rows"]), int(row["columns"])) == tuple(image.shape[-2:])
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value, abs=1e-4), name


def test_patients_count_once_and_slices_once_both_named(whole):
    report, out, _ = whole
    slices, patients = rows_of(out / "slices.csv"), rows_of(out / "patients.csv")
    assert (report.slices, report.patients) == (6, 3)
    assert [(row["patient"], row["slices"]) for row in patients] == [
        ("patient-0003", "3"),
        ("patient-0004", "1"),
        ("patient-0005", "2"),
    ]
    for name in CONVENTIONS:
        summary = report.reconstruction.scores[name]
        assert summary.mean_of_slices == pytest.approx(np.mean([float(row[name]) for row in slices]))
        assert summary.mean_of_patients == pytest.approx(np.mean([float(row[name]) for row in patients]))
        assert summary.interval[0] <= summary.mean_of_patients <= summary.interval[1]
        assert summary.convention == CONVENTIONS[name]


def test_bits_are_over_native_pixels_not_padded_ones(whole):
    report, _, _ = whole
    # Stride 8: 24×40 has 6×10 and 3×5 tokens; 20×36 is padded to the same ones, over fewer pixels.
    bits = 60 * math.log2(16) + 15 * math.log2(8)
    assert report.reconstruction.bits_per_pixel.lowest == pytest.approx(bits / (24 * 40))
    assert report.reconstruction.bits_per_pixel.highest == pytest.approx(bits / (20 * 36))
    assert report.reconstruction.bits_per_pixel.mean_of_slices == pytest.approx(
        (5 * bits / 960 + bits / 720) / 6
    )


def test_usage_counts_the_tokens_that_were_evaluated(whole):
    report, _, _ = whole
    assert [(use.level, use.codebook_size, use.tokens) for use in report.reconstruction.levels] == [
        (0, 16, 360),
        (1, 8, 90),
    ]
    for use in report.reconstruction.levels:
        assert use.usage == use.codes_in_use / use.codebook_size
        assert 1 <= use.perplexity <= use.codes_in_use + 1e-9


def test_perplexity_is_the_exponential_of_the_entropy():
    even = level_use(0, torch.tensor([5, 5, 0, 0]))
    assert (even.codes_in_use, even.usage, even.perplexity) == pytest.approx((2, 0.5, 2.0))
    assert level_use(0, torch.tensor([7, 0])).perplexity == pytest.approx(1.0)


def test_no_score_depends_on_the_batch_size(tmp_path, whole, undrawn):
    many, _, data = whole
    loaded = load_tokenizer(model(tmp_path / "model"))
    single = evaluate_reconstruction(loaded, data.split("test"), tmp_path, batch_size=1)
    for name in CONVENTIONS:
        assert single.scores[name].mean_of_slices == pytest.approx(
            many.reconstruction.scores[name].mean_of_slices, abs=1e-5
        )


def test_held_out_patients_raise_no_warning(whole):
    assert whole[0].warnings == ()


def test_patients_trained_on_raise_a_loud_warning(tmp_path, data, undrawn):
    report = evaluate(model(tmp_path / "model"), data, tmp_path, split="train")
    assert any("TRAINED ON THESE PATIENTS" in warning for warning in report.warnings)
    assert "TRAINED ON" in json.loads((tmp_path / "report.json").read_text())["warnings"][0]


def test_validation_patients_and_other_data_sets_are_said_to_be_what_they_are(tmp_path, data, undrawn):
    (validation, *_) = evaluate(model(tmp_path / "model"), data, tmp_path / "v", split="validation").warnings
    assert "Validation patients selected this checkpoint" in validation
    other, *_ = evaluate(model(tmp_path / "other", "other"), data, tmp_path / "o").warnings
    assert "make sure that no patient here was in the training set" in other


def test_one_patient_has_no_interval_and_a_note(tmp_path, data, undrawn):
    report = evaluate(model(tmp_path / "model"), data, tmp_path, split="validation")
    assert report.reconstruction.scores["ssim_whole"].interval is None
    assert any("One patient: there is no interval" in warning for warning in report.warnings)
    assert "[" not in report.table()[2][1]


def test_blank_slices_are_counted_and_left_out(tmp_path, undrawn):
    data = write_prepared(tmp_path / "prepared", blank={3})
    report = evaluate(model(tmp_path / "model"), data, tmp_path / "out")
    assert (report.slices, report.blank_slices_skipped) == (5, 1)


def test_a_slice_smaller_than_the_window_is_refused_and_nothing_is_written(tmp_path):
    data = write_prepared(tmp_path / "prepared", slices=[("test", 1, 8, 40)])
    with pytest.raises(DataError, match="no part could be evaluated: slice is 8×40"):
        evaluate(model(tmp_path / "model"), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_single_slice_gives_a_whole_report(tmp_path):
    data = write_prepared(tmp_path / "prepared", slices=[("test", 1, 24, 40)])
    evaluate(model(tmp_path / "model"), data, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 7


def test_an_empty_split_is_refused(tmp_path):
    data = write_prepared(tmp_path / "prepared", slices=SLICES[:3])
    with pytest.raises(DataError, match="'test' holds no slice"):
        evaluate(model(tmp_path / "model"), data, tmp_path / "out")


def test_the_same_seed_gives_the_same_report(tmp_path, whole, undrawn):
    first, _, data = whole
    same, other = (evaluate(model(tmp_path / "model"), data, tmp_path, seed=seed) for seed in (42, 43))
    assert first.reconstruction.scores == same.reconstruction.scores
    assert (same.provenance["seed"], other.provenance["seed"]) == (42, 43)
    assert other.reconstruction.averaging.endswith("seed 43.")


def test_provenance_names_model_data_versions_and_machine(whole):
    made = whole[0].provenance
    assert made["model"]["recipe"]["tokenizer"]["codebook_sizes"] == [16, 8]
    assert made["model"]["file"] == "model.safetensors"
    assert made["data"]["split_hash"] == "abc"
    assert {"slicebook", "torch", "scikit-image"} <= set(made["versions"])
    assert {"system", "cores", "device"} <= set(made["hardware"])


def test_codecs_code_the_same_slices_at_the_tokenizers_bits(tmp_path, data, undrawn):
    report = evaluate(model(tmp_path / "model"), data, tmp_path, codecs=True)
    for name in ("jpeg2000", "jpegxl"):
        codec, rows = report.reconstruction.codecs[name], rows_of(tmp_path / "slices.csv")
        over = sum(float(row[f"{name}_bits"]) > 1.01 * float(row["bits"]) for row in rows)
        assert codec.slices_over_budget == over
        assert any(warning.startswith(codec.title) for warning in report.warnings) == (over > 0)
        assert codec.bits_per_pixel.mean_of_slices == pytest.approx(
            np.mean([float(row[f"{name}_bits_per_pixel"]) for row in rows])
        )
        gain = codec.advantage["mae_whole"].mean_of_slices
        tokenizer, of_codec = (report.reconstruction.scores["mae_whole"], codec.scores["mae_whole"])
        assert gain == pytest.approx(tokenizer.mean_of_slices - of_codec.mean_of_slices)
        assert codec.library_version
    assert report.table()[0] == ("mean of patients", "tokenizer", "JPEG 2000", "JPEG XL")
    assert len(report.table()) == 2 + len(CONVENTIONS)


def test_without_codecs_none_are_reported(whole):
    assert whole[0].reconstruction.codecs is None


def test_missing_codecs_are_said_before_any_work(tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ConfigError, match="slicebook\\[codecs\\]"):
        evaluate(model(tmp_path / "model"), data, tmp_path / "out", codecs=True)
    assert not (tmp_path / "out").exists()


def test_nothing_of_an_earlier_evaluation_stands_beside_a_new_report(tmp_path, data):
    out = tmp_path / "out"
    evaluate(model(tmp_path / "model"), data, out, codecs=False)
    (out / "closest.png").write_bytes(b"of another model")
    (out / "thesis.txt").write_text("years of work")
    evaluate(model(tmp_path / "model"), data, out, codecs=False)
    assert not (out / "closest.png").exists()
    assert (out / "thesis.txt").read_text() == "years of work"


def test_an_evaluation_that_fails_leaves_the_former_one_whole(tmp_path, data, monkeypatch):
    out = tmp_path / "out"
    evaluate(model(tmp_path / "model"), data, out, codecs=False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("slicebook.visualization.figures.levels", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(model(tmp_path / "model"), data, out, codecs=False, seed=7)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != PARTIAL} == before
    evaluate(model(tmp_path / "model"), data, out, codecs=False)  # of another seed, so nothing is taken over
    assert {path.name for path in out.iterdir()} == set(before)


def test_a_report_keeps_the_schema_beside_it(whole, evaluated):
    for folder in (whole[1], evaluated):
        schema, report = (json.loads((folder / name).read_text()) for name in (SCHEMA_NAME, REPORT_NAME))
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(report, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(report | {"slices": "many"}, schema)


def test_everything_that_is_written_is_known_by_name(whole, evaluated):
    names = {path.name for folder in (whole[1], evaluated) for path in folder.iterdir()}
    assert names - {"MODEL_CARD.md"} <= set(WRITTEN)


def test_files_that_no_evaluation_wrote_are_left_alone(tmp_path, data):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "patients.csv").write_text("name,age")
    with pytest.raises(DataError, match=r"has a file patients.csv, which would be overwritten"):
        evaluate(model(tmp_path / "model"), data, tmp_path / "out", codecs=False)
    assert (tmp_path / "out" / "patients.csv").read_text() == "name,age"


@pytest.mark.parametrize("content", ["no json", "[]", '{"of": "another program"}'])
def test_another_programs_report_is_left_alone(tmp_path, data, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text(content)
    (tmp_path / "out" / ".partial").mkdir()
    with pytest.raises(DataError, match=r"has a file report.json, which would be overwritten"):
        evaluate(model(tmp_path / "model"), data, tmp_path / "out", codecs=False)
    assert (tmp_path / "out" / "report.json").read_text() == content
    assert (tmp_path / "out" / ".partial").is_dir()


def test_samples_of_another_tokenizer_are_warned_of(tmp_path, trained):
    shutil.copytree(trained.run, tmp_path / "run")
    loaded = load_tokenizer(tmp_path / "run")
    data = PreparedData.open(trained.data)
    report = evaluate(tmp_path / "run", data, tmp_path / "one", samples=2, steps=1, codecs=False)
    assert not any("another tokenizer" in warning for warning in report.warnings)
    with torch.no_grad():
        next(loaded.tokenizer.network.parameters()).mul_(1.5)  # of the encoder: other tokens
    save_tokenizer(loaded.path, loaded.tokenizer, loaded.info.recipe, loaded.info.provenance)
    report = evaluate(tmp_path / "run", data, tmp_path / "two", samples=2, steps=1, codecs=False)
    assert any("another tokenizer" in warning for warning in report.warnings)


def test_a_file_is_no_folder_for_a_report(tmp_path, data, monkeypatch):
    monkeypatch.setattr(
        "slicebook.evaluation.evaluate.evaluate_reconstruction",
        lambda *_, **__: pytest.fail("worked first"),
    )
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="is a file; choose a folder"):
        evaluate(model(tmp_path / "model"), data, tmp_path / "out")


def test_a_number_that_is_not_finite_is_a_part_left_out(tmp_path, trained, monkeypatch):
    evaluate_unbroken = evaluate_reconstruction

    def broken(*arguments, **named):
        result = evaluate_unbroken(*arguments, **named)
        rate = result.bits_per_pixel.model_copy(update={"lowest": math.nan})
        return result.model_copy(update={"bits_per_pixel": rate})

    monkeypatch.setattr("slicebook.evaluation.evaluate.evaluate_reconstruction", broken)
    data = write_prepared(tmp_path / "prepared")
    with pytest.raises(DataError, match="reconstruction: a measured value is not finite"):
        evaluate(model(tmp_path / "model"), data, tmp_path / "out", codecs=False)
    assert not (tmp_path / "out").exists()


def odd(data):
    """Return data whose test slices have a row less than all others."""
    records = (dataclasses.replace(r, rows=r.rows - 1) if r.split == "test" else r for r in data.records)
    return dataclasses.replace(data, records=tuple(records))


def test_reasons_name_no_folder(tmp_path, trained):
    data = odd(PreparedData.open(trained.data))
    report = evaluate(trained.run, data, tmp_path / "out", samples=2, steps=1, codecs=False)
    assert set(report.skipped) == {"generation", "downstream"}
    assert report.skipped["generation"].startswith("DATA: its split 'test' has no slice of")
    assert str(trained.data) not in (tmp_path / "out" / "report.json").read_text()


def test_an_audit_alone_needs_no_test_slice_of_the_size(tmp_path, trained):
    data = odd(PreparedData.open(trained.data))
    report = evaluate(trained.run, data, tmp_path / "out", parts=("memorization",), samples=2, steps=1)
    assert report.memorization is not None
    assert report.skipped == {}


def test_a_prior_is_not_judged_beside_slices_prepared_otherwise(tmp_path, trained):
    prepare(trained.raw, tmp_path / "prepared", options=PrepareOptions(size=(48, 64)))
    with pytest.raises(ConfigError, match="other sizes, spacings, intensities or numbers"):
        evaluate(trained.run, PreparedData.open(tmp_path / "prepared"), tmp_path / "out")


def test_a_prior_file_is_evaluated_with_the_tokenizer_in_it(tmp_path, trained):
    data = PreparedData.open(trained.data)
    report = evaluate(trained.run / "prior", data, tmp_path / "out", samples=2, steps=1)
    assert report.reconstruction is not None
    assert report.memorization is not None
    assert report.downstream is not None
    assert report.provenance["model"]["weights_sha256"] == load_tokenizer(trained.run).info.weights_sha256
    assert report.provenance["prior"]["kind"] == "prior"
