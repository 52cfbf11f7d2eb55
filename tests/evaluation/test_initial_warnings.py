"""A report warns if a model started from one whose patients may be evaluated."""

from dataclasses import replace

import pytest

from slicebook.data.dataset import PreparedData
from slicebook.environment import InitialModel
from slicebook.evaluation import provenance
from slicebook.evaluation.provenance import LoadedModels, collect_warnings
from slicebook.models.checkpoint import load_prior, load_tokenizer


def started(loaded, *split_hashes):
    """A model whose chain of first models was trained on these data, the nearest first."""
    initial = None
    for index, split_hash in reversed(list(enumerate(split_hashes))):
        made = loaded.info.provenance.model_copy(
            update={"split_hash": split_hash, "train_patients": 10 + index, "initial": initial}
        )
        initial = InitialModel(weights_sha256=f"{index:064}", provenance=made)
    info = loaded.info.model_copy(
        update={"provenance": loaded.info.provenance.model_copy(update={"initial": initial})}
    )
    return replace(loaded, info=info)


@pytest.fixture
def data(trained):
    return PreparedData.open(trained.data)


@pytest.fixture
def own(trained):
    return load_tokenizer(trained.run)


def warnings_of(data, tokenizer, prior=None):
    warnings = collect_warnings(LoadedModels(tokenizer, prior), data, "test", None)
    return [warning for warning in warnings if "started from" in warning]


def test_other_patients_are_warned_of_along_the_chain(own, data):
    warnings = warnings_of(data, started(own, "a" * 64, own.info.provenance.split_hash, "b" * 64))
    assert [f"{count} patients" in warning for count, warning in zip((10, 12), warnings, strict=True)]
    assert all("make sure that none of them is evaluated here" in warning for warning in warnings)


def test_the_same_data_random_weights_and_starters_need_no_warning(own, data, monkeypatch):
    assert warnings_of(data, own) == []
    assert warnings_of(data, started(own, own.info.provenance.split_hash)) == []
    monkeypatch.setattr(provenance, "is_starter", lambda weights: weights == f"{0:064}")
    assert warnings_of(data, started(own, "a" * 64)) == []


def test_a_prior_is_looked_at_too(own, trained, data):
    prior = started(load_prior(trained.run), "a" * 64)
    (warning,) = warnings_of(data, own, prior)
    assert "training of the prior started from" in warning
