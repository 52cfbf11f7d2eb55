"""The audit of a model: copies are found and traced, fresh slices are not accused, and words say of whom."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import torch

from slicebook.data.dataset import PreparedData
from slicebook.errors import DataError
from slicebook.evaluation import memorization
from slicebook.evaluation import slices as slices_module
from slicebook.evaluation.memorization import evaluate_memorization
from slicebook.evaluation.slices import SliceCollection, of_size, read_slices
from slicebook.inference import synthesis
from slicebook.models.prior import likelihood
from slicebook.training.token_dataset import encode_slices

SIZE = (32, 64)


@pytest.fixture(scope="module")
def data(trained):
    return PreparedData.open(trained.data)


def samples(slices: SliceCollection) -> SliceCollection:
    """The same slices, as if they had been drawn."""
    count = len(slices)
    return dataclasses.replace(slices, patients=("",) * count, seeds=tuple(range(70, 70 + count)))


@pytest.fixture(scope="module")
def of_copies(loaded, data, tmp_path_factory):
    """An audit of training slices that pose as samples, every other one mirrored; and its folder."""
    slices = of_size(data, "train", SIZE, masked=False)
    images = torch.stack([slices[index] for index in range(len(slices))])
    generated = samples(SliceCollection(images, None, ("",) * len(slices), ((1.0, 1.0),) * len(slices)))
    images = generated.images.clone()
    images[::2] = images[::2].flip(-1)
    out = tmp_path_factory.mktemp("audit")
    return evaluate_memorization(
        loaded, data, dataclasses.replace(generated, images=images), seed=0, out=out
    ), out


def test_copies_are_found_and_traced(of_copies):
    result, _ = of_copies
    assert result.copies.copies_found
    assert all(pair.sample == pair.training for pair in result.copies.closest)
    assert all(pair.mirror == (pair.sample % 2 == 0) for pair in result.copies.closest)
    assert len({pair.mirror for pair in result.copies.closest}) == 2


def test_the_closest_pairs_are_drawn_and_listed(of_copies, data):
    result, out = of_copies
    assert (out / "closest.png").stat().st_size > 1000
    with (out / "closest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result.copies.closest)
    train = of_size(data, "train", SIZE, masked=False)
    for row, pair in zip(rows, result.copies.closest, strict=True):
        record = train.records[pair.training]
        assert (row["patient"], row["volume"], int(row["slice"])) == (
            record.patient,
            record.volume,
            record.slice,
        )
        assert int(row["seed"]) == 70 + pair.sample


def test_slices_of_strangers_are_no_copies(loaded, data):
    strangers = samples(read_slices(data, "validation", SIZE))
    result = evaluate_memorization(loaded, data, strangers, seed=0)
    assert not result.copies.copies_found


def test_blank_samples_copy_nobody(loaded, data):
    generated = samples(read_slices(data, "validation", SIZE))
    blank = dataclasses.replace(generated, images=torch.full_like(generated.images, -1))
    result = evaluate_memorization(loaded, data, blank, seed=0)
    assert not result.copies.copies_found
    assert result.copies.nearer.share == 0


def test_samples_that_are_not_finite_are_refused(loaded, data):
    generated = samples(read_slices(data, "validation", SIZE))
    images = generated.images.clone()
    images[1, 0, 3, 3] = float("nan")
    with pytest.raises(DataError, match="slice 1 has values that are not finite"):
        evaluate_memorization(loaded, data, dataclasses.replace(generated, images=images), seed=0)


def test_few_strangers_are_joined_by_training_patients(loaded, data):
    result = evaluate_memorization(loaded, data, samples(read_slices(data, "test", SIZE)), seed=0)
    train = of_size(data, "train", SIZE)
    assert f"{len(train)} training slices, each compared with other patients only" in result.baseline
    assert result.copies.held_out_patients == 6


def test_of_many_held_out_slices_a_random_choice_is_the_baseline(loaded, data, monkeypatch):
    monkeypatch.setattr(memorization, "MAX_REAL", 10)
    result = evaluate_memorization(loaded, data, samples(read_slices(data, "test", SIZE)), seed=0)
    assert ", chosen at random of 18 slices" in result.baseline
    joined = len(of_size(data, "train", SIZE))
    assert result.copies.held_out_slices == 10 + joined


def test_two_training_patients_are_no_baseline_but_can_be_searched(loaded, data):
    few = tuple(r for r in data.records if r.split != "train" or r.patient != "patient-0001")
    generated = samples(read_slices(data, "test", SIZE))
    result = evaluate_memorization(loaded, dataclasses.replace(data, records=few), generated, seed=0)
    assert result.baseline == "18 slices of 3 patients that were never trained on"
    assert not result.copies.valid


def test_a_single_training_patient_cannot_be_told_from_the_next(loaded, data):
    few = tuple(r for r in data.records if r.split != "train" or r.patient == "patient-0001")
    generated = samples(read_slices(data, "validation", SIZE))
    with pytest.raises(DataError, match="1 training patients besides a slice's own, wanted at least 2"):
        evaluate_memorization(loaded, dataclasses.replace(data, records=few), generated, seed=0)


def test_training_slices_without_a_mask_are_searched_too(loaded, data):
    blind = tuple(
        dataclasses.replace(r, label_offset=-1) if r.patient == "patient-0001" else r for r in data.records
    )
    partly_masked = dataclasses.replace(data, records=blind)
    result = evaluate_memorization(loaded, partly_masked, samples(read_slices(data, "test", SIZE)), seed=0)
    assert result.training_patients == 3 > len(set(read_slices(partly_masked, "train", SIZE).patients))


def test_slices_of_another_size_are_counted_as_not_searched(of_copies, data):
    result, _ = of_copies
    assert result.training_slices + result.of_other_sizes == len(data.split("train"))
    assert result.of_other_sizes > 0


def test_bits_are_the_priors_likelihood_of_slices_it_never_saw(of_copies, loaded, data):
    result, _ = of_copies
    bits = []
    for split in ("validation", "test"):
        (tokens,) = encode_slices(loaded.tokenizer, of_size(data, split, SIZE), classes=loaded.info.classes)
        nats = likelihood(loaded.prior, tokens.layout, tokens.tokens[:, 0].long(), tokens.conditions).nats
        bits += (nats.sum(1) / math.log(2) / (SIZE[0] * SIZE[1])).tolist()
    assert result.prior_bits_per_pixel.mean_of_slices == pytest.approx(np.mean(bits), rel=1e-5)
    assert result.prior_bits_per_pixel.highest == pytest.approx(max(bits), rel=1e-5)
    assert (result.membership.training_patients, result.membership.held_out_patients) == (3, 3)


def test_stand_ins_are_no_more_than_it_takes(loaded, data, monkeypatch):
    monkeypatch.setattr(memorization, "STAND_INS", 5)
    result = evaluate_memorization(loaded, data, samples(read_slices(data, "test", SIZE)), seed=0)
    assert "5 training slices, each compared with other patients only" in result.baseline
    assert result.copies.held_out_slices == 18 + 5


def test_membership_compares_slices_with_masks_or_without_but_does_not_mix_them(loaded, data, monkeypatch):
    masked = []

    def count(_, slices, *_more):
        masked.append({record.label_offset >= 0 for record in slices.records})
        return np.zeros(len(slices)) - np.arange(len(slices))

    monkeypatch.setattr(memorization, "_log_likelihood", count)
    blind = tuple(
        dataclasses.replace(r, label_offset=-1) if r.split == "train" and r.slice % 2 else r
        for r in data.records
    )
    memorization._likelihoods(loaded, dataclasses.replace(data, records=blind), SIZE, 0)
    blinder = tuple(dataclasses.replace(r, label_offset=-1) if r.split == "train" else r for r in blind)
    half = tuple(dataclasses.replace(r, label_offset=-1) if r.slice % 2 else r for r in blinder)
    memorization._likelihoods(loaded, dataclasses.replace(data, records=half), SIZE, 0)
    assert masked == [{True}, {True}, {False}, {False}]


def test_controls_are_decoded_as_the_samples_were(loaded, data, monkeypatch):
    taken, true = [], synthesis.render

    def render(loaded, tokens, size, seeds, steps):
        taken.append(steps)
        return true(loaded, tokens, size, seeds, steps)

    monkeypatch.setattr(slices_module, "render", render)
    generated = samples(read_slices(data, "test", SIZE))
    evaluate_memorization(loaded, data, generated, seed=0, steps=3)
    assert set(taken) == {3}


def test_slices_of_another_size_alone_are_no_baseline(loaded, data):
    records = tuple(record for record in data.records if record.split == "train")
    generated = samples(read_slices(data, "validation", SIZE))
    with pytest.raises(DataError, match="has no slice of 32×64, the size of the samples, of a patient who"):
        evaluate_memorization(loaded, dataclasses.replace(data, records=records), generated, seed=0)
