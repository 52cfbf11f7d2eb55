"""The eight numbers: each sees what it is there to see, and no patient of the test split is among them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_prior import LAYOUT, SIZES, rows, tiny

from slicebook import cli, diagnose, phantom, probes
from slicebook.checkpoint import load_prior
from slicebook.config import PriorConfig, QuantizerConfig, Recipe, TokenizerConfig, TrunkConfig
from slicebook.dataset import PreparedData, SliceSet
from slicebook.errors import ConfigError, DataError
from slicebook.likelihood import Likelihood
from slicebook.preparation import prepare
from slicebook.prior import Conditions
from slicebook.prior_training import train_prior
from slicebook.symptoms import Brittleness, Copies, Hierarchy, Learning, NoiseFlips, Overfit, Resampled
from slicebook.token_set import TokenSet
from slicebook.tokenizer import Tokenizer
from slicebook.training import train_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:level")  # few codes are in use after a second of training

SMALL = TrunkConfig(width=64, layers=1)


def tokenizer(seed=0):
    torch.manual_seed(seed)
    config = TokenizerConfig(
        scaling_rates=(4, 2),
        codebook_sizes=(16, 8),
        code_dim=4,
        width=16,
        residual_layers=1,
        quantizer=QuantizerConfig(kmeans_slices=8),
    )
    found = Tokenizer(config)
    found.start(torch.rand(8, 1, 32, 32) * 2 - 1, torch.Generator().manual_seed(seed))
    return found.eval()


# --- 1 and 2


def test_noise_flips_tokens_of_noisy_slices_and_none_of_smooth_ones():
    smooth = torch.linspace(-1, 1, 32).expand(4, 1, 32, 32)
    assert probes.noise_flips(tokenizer(), smooth, 0).shares == (0, 0)
    noisy = smooth * 0.5 + 0.2 * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    found = probes.noise_flips(tokenizer(), noisy, 0)
    assert found.noise == pytest.approx(0.2, rel=0.15)
    assert 0 < found.shares[0] <= 1
    assert found == probes.noise_flips(tokenizer(), noisy, 0)


def test_near_codes_are_the_nearest_others():
    codes = torch.tensor([[0.0], [1.0], [10.0], [11.5], [20.0], [21.0]])
    found = probes.near_codes(codes)
    assert found.shape == (6, 4)
    assert found[:3, :2].tolist() == [[1, 2], [0, 2], [3, 1]]
    assert probes.near_codes(codes[:2]).tolist() == [[1], [0]]


def test_near_codes_cost_nothing_where_codes_are_alike_and_much_where_they_are_not():
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    book = tokenizer()
    apart = probes.brittleness(book, images, 0)
    for level in range(2):
        quantizer = book.codebook(level)
        quantizer.sums.copy_(quantizer.counts[:, None].expand_as(quantizer.sums))
    alike = probes.brittleness(book, images, 0)
    assert abs(alike.lost) < 1e-3
    assert abs(apart.lost) > 1e-3


def test_a_tenth_of_the_tokens_is_swapped():
    grid, near = torch.zeros(100, 10, 10, dtype=torch.int64), torch.tensor([[1, 2, 3, 4]] * 5)
    found = probes._swap(grid, near, torch.Generator().manual_seed(0))
    assert float((found != grid).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert set(found.unique().tolist()) == {0, 1, 2, 3, 4}


# --- 3


def test_strangers_coarse_tokens_come_from_another_patient_and_masks_say_nothing(monkeypatch):
    seen = []

    def judge(prior, layout, tokens, conditions, **_):
        seen.append(tokens)
        nats = torch.full(tokens.shape, float(len(seen)))
        nats[:, : layout.starts[-2]] = 99.0  # only the finest level counts
        return Likelihood(nats, torch.zeros(len(tokens)))

    monkeypatch.setattr(probes, "likelihood", judge)
    tokens, patients = rows(6), ["a", "a", "a", "b", "b", "c"]
    tokens[:, LAYOUT.part(1)] = torch.arange(6)[:, None] % 4
    tokens[3:, LAYOUT.part(1)] = 3
    tokens[:3, LAYOUT.part(1)] = 0
    found = probes.hierarchy(tiny(), LAYOUT, tokens, Conditions.unknown(6), patients, 0)
    assert found == Hierarchy(own=1.0, strangers=2.0)
    own, mixed = seen
    for told in seen:
        assert (told[:, LAYOUT.part(0)] == SIZES[0]).all()
        assert torch.equal(told[:, LAYOUT.part(2)], tokens[:, LAYOUT.part(2)])
    assert torch.equal(own[:, LAYOUT.part(1)], tokens[:, LAYOUT.part(1)])
    assert (mixed[:3, LAYOUT.part(1)] == 3).all()  # those of patient a got b's or c's


def test_a_hierarchy_wants_two_patients():
    assert probes.hierarchy(tiny(), LAYOUT, rows(2), Conditions.unknown(2), ["a", "a"], 0) is None


# --- 6 and 7


def test_a_fresh_prior_learns_a_few_slices_by_heart():
    config = PriorConfig(coarse=SMALL, fine=SMALL, embedding=4)
    books = [torch.randn(k, 3, generator=torch.Generator().manual_seed(k)) for k in SIZES]

    def learn(seconds):
        known = Conditions(torch.arange(12) / 12, torch.full((12,), -1))
        return probes.overfit(config, books, LAYOUT, rows(12), known, seconds=seconds, seed=0)

    found = learn(120)
    assert (found.slices, found.out_of_time) == (12, False)
    assert found.nats < 0.3
    cut = learn(1e-6)
    assert (cut.steps, cut.out_of_time) == (1, True)
    assert cut.nats > 1


def test_a_curve_is_read_by_decades_over_its_second_half():
    history = [
        {"step": str(step), "validation_likelihood": str(-(9 if step < 100 else 6 - 0.5 * np.log10(step)))}
        for step in (1, 10, 100, 1000)
    ]
    found = probes.learning([*history, {"step": "2000", "validation_likelihood": ""}], 50)
    assert found.slope == pytest.approx(-0.5)
    assert found.nats == pytest.approx(4.5)
    assert found.tokens == 50_000
    assert probes.learning(history[:1], 50).slope is None
    assert probes.learning([], 50) is None


# --- 8


def test_copies_are_seen():
    draw = torch.Generator().manual_seed(0)
    training = torch.randn(40, 1, 64, 64, generator=draw)
    patients = [f"p{index // 10}" for index in range(40)]
    held_out = training[:20] + 2 * torch.randn(20, 1, 64, 64, generator=draw)
    small, usual = probes.thumbnails(training), probes.thumbnails(held_out)
    same = probes.copies(probes.thumbnails(3 * training[:15] + 1), usual, small, patients)
    assert (same.nearer, same.farther, same.patients) == (1, 0, 2)
    assert same.generated == pytest.approx(1, abs=1e-4)
    assert 0.2 < same.held_out < 0.8
    strange = probes.copies(
        probes.thumbnails(torch.randn(15, 1, 64, 64, generator=draw)), usual, small, patients
    )
    assert (strange.nearer, strange.farther) == (0, 1)


# --- verdicts


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (NoiseFlips(0.1, (0.1, 0.9)), "hold still"),
        (NoiseFlips(0.1, (0.3,)), "some noise"),
        (NoiseFlips(0.1, (0.5,)), "noise is coded"),
        (Brittleness(25.0, 0.5), "forgives"),
        (Brittleness(25.0, 2.0), "brittle"),
        (Hierarchy(4.0, 4.1), "decorative"),
        (Hierarchy(4.0, 4.5), "say something"),
        (Resampled("image_0", 2.0, 1.0), "breaks"),
        (Resampled("image_0", 0.5, 1.0), "as near"),
        (Resampled("image_0", 0.5, None), "one patient"),
        (Overfit(32, 100, 60.0, 1.0, True), "time ran out"),
        (Overfit(32, 100, 30.0, 0.2, False), "by heart"),
        (Learning(4.0, 1e6, -0.5), "still falling"),
        (Learning(4.0, 1e6, -0.01), "flat"),
        (Learning(4.0, 1e6, 0.1), "recites"),
        (Learning(4.0, 1e6, None), "too few"),
        (Copies(16, 0.99, 0.9, 0.5, 0.0, 2), "copies"),
        (Copies(16, 0.2, 0.9, 0.0, 0.9, 2), "like no"),
        (Copies(16, 0.9, 0.9, 0.01, 0.01, 9), "as near"),
    ],
)
def test_a_number_is_said_in_words(record, word):
    assert word in record.rows()[0][3]


# --- the whole


def recipe():
    return Recipe.model_validate(
        {
            "tokenizer": {
                "scaling_rates": [8, 2],
                "codebook_sizes": [16, 4],
                "code_dim": 4,
                "width": 16,
                "residual_layers": 1,
            },
            "training": {"epochs": 2, "batch_size": 4, "augment": None},
            "labels": {
                "tokenizer": {"codebook_sizes": [8], "width": 16, "code_dim": 4},
                "training": {"epochs": 1},
            },
            "prior": {
                "coarse": {"width": 64, "layers": 1},
                "fine": {"width": 64, "layers": 1},
                "embedding": 4,
                "training": {"epochs": 2, "validate_every": 1, "batch_size": 4, "views": 2},
            },
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`data`, `bare` (a tokenizer's run) and `run` (the same with a prior)."""
    folder = tmp_path_factory.mktemp("diagnose")
    phantom.write_hipmri(folder / "phantom", patients=(2, 2, 1), slices=6, shape=(64, 32))
    prepare(folder / "phantom", folder / "data")
    train_tokenizer(folder / "data", recipe(), folder / "bare", device="cpu", progress=False)
    shutil.copytree(folder / "bare", folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slicebook.prior_training.LOW_USAGE", 0)
        train_prior(folder / "run", device="cpu", progress=False)
    return folder


@pytest.fixture(scope="module")
def diagnosed(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnose, "RESAMPLED", 4)
        patch.setattr(diagnose, "SAMPLES", 3)
        return diagnose.diagnose(folder / "run", out=folder / "out", overfit_seconds=0.1, device="cpu")


def test_a_prior_gives_all_eight(diagnosed, folder):
    assert 0 < diagnosed.slices <= 12
    assert diagnosed.patients == 2
    assert [one.stage for one in diagnosed.costs] == ["mask_0", "image_1", "image_0"]
    assert all(one.prior > 0 for one in diagnosed.costs)
    assert [one.stage for one in diagnosed.resampled] == ["image_1", "image_0"]
    assert all(one.floor is not None for one in diagnosed.resampled)
    for name in ("hierarchy", "overfit", "learning", "copies"):
        assert getattr(diagnosed, name) is not None, name
    assert diagnosed.learning.tokens > 0
    assert diagnosed.copies.samples == 3
    numbers = {row[0][0] for row in diagnosed.table()[1:]}
    assert numbers == set("12345678")
    written = {path.name for path in (folder / "out").iterdir()}
    assert written == {"levels.png", "resampled.png", "nearest.png", "diagnosis.json"}
    assert json.loads((folder / "out" / "diagnosis.json").read_text())["patients"] == 2


def test_without_a_prior_there_are_those_that_need_none(folder, capsys):
    words = ["diagnose", str(folder / "bare"), "--overfit-seconds", "0.1", "--json", "--device", "cpu"]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["noise_flips"]["shares"]
    assert [one["stage"] for one in found["costs"]] == ["image_1", "image_0"]
    assert all(one["prior"] is None for one in found["costs"])
    assert found["overfit"]["steps"] > 0
    assert (found["hierarchy"], found["resampled"], found["learning"], found["copies"]) == (
        None,
        [],
        None,
        None,
    )


def test_the_table_says_what_a_prior_would_add(folder, capsys):
    assert cli.main(["diagnose", str(folder / "bare"), "--overfit-seconds", "0", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "want a prior: slicebook train prior RUN" in printed.out
    assert "6 fresh prior" not in printed.out
    assert "verdict" in printed.out


def test_only_validation_patients_are_judged_and_only_training_ones_learned(folder, monkeypatch):
    asked = []
    kept = PreparedData.split

    def split(self, name, **more):
        asked.append(name)
        return kept(self, name, **more)

    monkeypatch.setattr(PreparedData, "split", split)
    diagnose.diagnose(folder / "bare", overfit_seconds=0, device="cpu")
    assert set(asked) == {"train", "validation"}


def test_one_stage_is_drawn_and_the_others_are_kept(folder, monkeypatch):
    seen = []
    kept = diagnose.sample

    def watch(prior, layout, seeds, conditions, settings, *, given, keep):
        tokens = kept(prior, layout, seeds, conditions, settings, given=given, keep=keep)
        seen.append((layout, given, keep, tokens))
        return tokens

    monkeypatch.setattr(diagnose, "sample", watch)
    monkeypatch.setattr(diagnose, "RESAMPLED", 3)
    monkeypatch.setattr(diagnose, "SAMPLES", 2)
    diagnose.diagnose(folder / "run", overfit_seconds=0, device="cpu")
    assert len(seen) == 2
    for stage, (layout, given, keep, tokens) in enumerate(seen, start=1):
        own = torch.zeros(layout.starts[-1], dtype=torch.bool)
        own[layout.part(stage)] = True
        assert (keep == ~own).all()
        assert torch.equal(tokens[:, ~own], given[:, ~own])


def test_slices_are_spread_over_patients_and_along_each(folder):
    records = PreparedData.open(folder / "data").split("validation").records
    found = diagnose.spread(list(records), 4)
    patients = [record.patient for record in found]
    assert sorted(patients.count(one) for one in set(patients)) == [2, 2]
    own = [record.position for record in found if record.patient == patients[0]]
    all_of = [record.position for record in records if record.patient == patients[0]]
    assert own == [min(all_of), max(all_of)]
    assert len(diagnose.spread(list(records), 1)) == 1


def test_a_prior_of_another_tokenizer_is_refused(folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    other = recipe().model_copy(update={"training": recipe().training.model_copy(update={"seed": 1})})
    train_tokenizer(folder / "data", other, tmp_path / "other", device="cpu", progress=False)
    shutil.copy(tmp_path / "other" / "model.safetensors", run / "model.safetensors")
    with pytest.raises(ConfigError, match="another tokenizer"):
        diagnose.diagnose(run, data=folder / "data", overfit_seconds=0, device="cpu")


def test_validation_slices_of_another_size_are_refused(folder, monkeypatch):
    kept = PreparedData.split

    def split(self, name, **more):
        found = kept(self, name, **more)
        if name == "validation":
            found.records = tuple(replace(one, rows=8) for one in found.records)
        return found

    monkeypatch.setattr(PreparedData, "split", split)
    with pytest.raises(DataError, match=r"'validation' holds no slice of 32×64"):
        diagnose.diagnose(folder / "bare", overfit_seconds=0, device="cpu")


def test_a_mistake_is_one_line(folder, capsys):
    assert cli.main(["diagnose", str(folder / "bare"), "--data", "nowhere"]) == 1
    error = capsys.readouterr().err
    assert "nowhere" in error
    assert len(error.splitlines()) == 1
    with pytest.raises(ConfigError, match="-1 seconds to overfit"):
        diagnose.diagnose(folder / "bare", overfit_seconds=-1)


def test_unknown_mask_tokens_are_not_among_the_costs(folder, monkeypatch):
    tokens = rows(4)
    tokens[1:, LAYOUT.part(0)] = SIZES[0]  # one slice has a mask
    held = TokenSet((32, 16), LAYOUT, tokens[:, None].int(), Conditions.unknown(4), torch.arange(4))
    nats = torch.where(tokens < SIZES[0], 2.0, 0.0)
    monkeypatch.setattr(diagnose, "likelihood", lambda *_, **__: Likelihood(nats, torch.zeros(4)))
    split = diagnose._Split(SliceSet(folder, ()), held)
    loaded = load_prior(folder / "run")
    found = {one.stage: one for one in diagnose._costs(split, split, loaded, 0)}
    assert found["mask_0"].prior == 2.0
    held.tokens[:, :, LAYOUT.part(0)] = SIZES[0]
    assert [one.stage for one in diagnose._costs(split, split, None, 0)] == ["image_1", "image_0"]
