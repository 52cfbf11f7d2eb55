"""The training of a prior: its step, its files, how it resumes, and what it refuses."""

import csv
import math
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.prior import COUNT, LAYOUT, SIZES, STAGES, rows, tiny, untrained
from helpers.settings import SMALL
from helpers.training import OPTIONS, prepared_folder
from lightning_fabric import Fabric

from slicebook.config import PriorTrainingConfig
from slicebook.data.dataset import PreparedData
from slicebook.data.prepare import prepare
from slicebook.data.splits import Split
from slicebook.distributed import Part
from slicebook.errors import CheckpointError, ConfigError, DataError
from slicebook.io.tensors import STATE_NAME, hash_tensors, load_state, save_state
from slicebook.models.checkpoint import (
    MODEL_NAME,
    load_decoder,
    load_prior,
    load_tokenizer,
    save_tokenizer,
)
from slicebook.models.conditions import Conditions
from slicebook.models.flow import spread_times
from slicebook.models.prior import ABSENT, KNOWN, UNKNOWN, Prior, likelihood
from slicebook.models.sampling import sample
from slicebook.models.sequence import JointTokenizer, TokenGrid, sequence_layout
from slicebook.recipes import load_recipe
from slicebook.training import generator
from slicebook.training import prior as prior_training
from slicebook.training.generator import train_decoder, train_generator, train_masks, train_prior
from slicebook.training.prior import (
    GIVEN_MASKS,
    GIVEN_SURROUNDINGS,
    REGION_SIDES,
    PriorObjective,
    _by_stage,
    _draw_regions,
    draw_states,
    drop_conditions,
)
from slicebook.training.resume import PREVIOUS_NAME, Progress
from slicebook.training.run import SUBFOLDERS
from slicebook.training.token_cache import TOKENS_NAME
from slicebook.training.token_dataset import TokenBatch, encode_slices
from slicebook.training.tokenizer import train_tokenizer

MASK = LAYOUT.slice_of(0)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


# --- Known and absent tokens


def test_a_fifth_of_the_slices_know_their_mask_and_a_fifth_their_surroundings():
    states = draw_states(LAYOUT, rows(5000), 0.0, draw())
    mask, image = states[:, MASK] == KNOWN, states[:, 2:] == KNOWN
    absent = states[:, MASK] == ABSENT
    of_mask = mask.all(1) & ~image.any(1)
    inside = image.any(1)
    nothing = ~mask.any(1) & ~image.any(1)
    # Where a region covers all the image, or all but mask tokens, it counts among the others.
    assert float(of_mask.float().mean()) == pytest.approx(GIVEN_MASKS, abs=0.03)
    assert float(inside.float().mean()) == pytest.approx(GIVEN_SURROUNDINGS, abs=0.03)
    assert float(nothing.float().mean()) == pytest.approx(1 - GIVEN_MASKS - GIVEN_SURROUNDINGS, abs=0.03)
    assert (image[inside].sum(1) < 10).float().mean() > 0.95
    # Inpainting knows no mask: half of these slices are trained without it, and only these.
    assert float(absent[inside].all(1).float().mean()) == pytest.approx(0.5, abs=0.06)
    assert not absent[of_mask].any()


def test_the_tokens_of_dropped_masks_are_absent_and_the_others_as_before():
    tokens = rows(3000)
    before, after = (draw_states(LAYOUT, tokens, share, draw()) for share in (0.0, 0.3))
    dropped = after[:, MASK] == ABSENT
    assert (dropped == dropped[:, :1]).all()
    share = 0.3 * (1 - GIVEN_SURROUNDINGS) + 0.5 * GIVEN_SURROUNDINGS
    assert float(dropped[:, 0].float().mean()) == pytest.approx(share, abs=0.03)
    assert after[~dropped[:, 0]].equal(before[~dropped[:, 0]])
    assert after[:, 2:].equal(before[:, 2:])


def test_tokens_that_a_slice_does_not_have_are_absent_whatever_is_drawn():
    tokens = rows(500)
    tokens[:, MASK] = SIZES[0]
    states = draw_states(LAYOUT, tokens, 0.3, draw())
    assert states[:, MASK].eq(ABSENT).all()
    assert set(states[:, 2:].unique().tolist()) == {UNKNOWN, KNOWN}


def test_regions_are_rectangles_that_touch_fine_tokens_and_hold_the_centres_of_coarse_ones():
    layout = sequence_layout((TokenGrid("image", 1, 5, 3, 8, 4), TokenGrid("image", 0, 10, 6, 4, 5)))
    coarse, fine = _draw_regions(layout, Part.whole(200), draw())
    centre, side = torch.rand(2, 200, 2, generator=draw())
    side = REGION_SIDES[0] + (REGION_SIDES[1] - REGION_SIDES[0]) * side
    low, high = centre - side / 2, centre + side / 2
    for number in range(200):
        (top, left), (bottom, right) = low[number].tolist(), high[number].tolist()
        for row in range(10):
            for column in range(6):
                touched = top < (row + 1) / 10 and row / 10 < bottom
                touched &= left < (column + 1) / 6 and column / 6 < right
                assert bool(fine[number, row, column]) == touched
        for row in range(5):
            for column in range(3):
                held = top < (row + 0.5) / 5 < bottom and left < (column + 0.5) / 3 < right
                assert bool(coarse[number, row, column]) == held


def test_condition_dropout_drops_all_conditions_of_a_slice():
    known = Conditions(torch.rand(2000), torch.ones(2000, dtype=torch.int64))
    conditions = drop_conditions(known, 0.3, draw())
    hidden = conditions.position.isnan()
    assert float(hidden.float().mean()) == pytest.approx(0.3, abs=0.04)
    assert (conditions.group == torch.where(hidden, -1, 1)).all()
    assert conditions.position[~hidden].equal(known.position[~hidden])


# --- A step


def objective(save_model=None, prior=None, **settings):
    plain = {"condition_dropout": 0.0, "mask_dropout": 0.0, **settings}
    fabric = Fabric(accelerator="cpu", devices=1)
    return PriorObjective(
        prior or tiny(), PriorTrainingConfig(**plain), fabric, save_model or (lambda *_: None)
    )


def batch(count=4):
    conditions = Conditions(torch.linspace(0, 1, count), torch.full((count,), -1))
    return TokenBatch(LAYOUT, rows(count), conditions, torch.arange(count))


def test_a_step_depends_on_seed_and_step_alone():
    def scores(step, **settings):
        torch.rand(7)  # what was drawn before makes no difference
        made = objective(condition_dropout=0.5, mask_dropout=0.5, **settings)
        made.module.train()
        return float(made.training_step(batch(), step, 0.0)["loss"].detach())

    assert scores(3) == scores(3)
    assert len({scores(3), scores(4), scores(3, seed=7)}) == 3


def test_the_loss_counts_every_grid_alike():
    made = objective()
    scores = made.training_step(batch(), 0, 0.0)
    nats = [float(scores[f"nats_{stage.name}"]) for stage in STAGES]
    assert float(scores["loss"].detach()) == pytest.approx(sum(nats) / 3, rel=1e-5)


def test_nats_of_a_grid_are_the_mean_over_its_unknown_tokens():
    """Known and absent tokens are not learned."""
    losses, unknown = torch.rand(2, COUNT), torch.zeros(2, COUNT, dtype=torch.bool)
    unknown[0, 4:7] = unknown[1, 5] = unknown[1, 2] = True
    nats = _by_stage(LAYOUT, losses, unknown)
    assert float(nats["nats_mask_0"]) == 0
    assert float(nats["nats_image_1"]) == pytest.approx(float(losses[1, 2]))
    wanted = (losses[0, 4:7].sum() + losses[1, 5]) / 4
    assert float(nats["nats_image_0"]) == pytest.approx(float(wanted))


def test_absent_masks_are_not_learned():
    made, tokens_batch = objective(), batch()
    tokens_batch.tokens[:, MASK] = SIZES[0]
    scores = made.training_step(tokens_batch, 0, 0.0)
    assert float(scores["nats_mask_0"]) == 0
    assert float(scores["nats_image_1"]) > 0.3


@pytest.mark.parametrize("setting", ["condition_dropout", "mask_dropout"])
def test_a_step_applies_dropout(setting):
    def loss(**settings):
        return float(objective(**settings).training_step(batch(), 0, 0.0)["loss"].detach())

    assert loss(**{setting: 0.9}) != pytest.approx(loss(), abs=1e-6)


@pytest.fixture
def passes(monkeypatch):
    """Collect what a prior is asked: samples, times, clean codes, states and conditions."""
    asked, whole = [], Prior.forward

    def forward(self, layout, samples, times, clean, states, conditions):
        asked.append((self, samples, times, clean, states, conditions))
        return whole(self, layout, samples, times, clean, states, conditions)

    monkeypatch.setattr(Prior, "forward", forward)
    return asked


def test_the_samples_of_a_step_are_codes_with_noise_of_their_time(passes):
    objective().training_step(batch(200), 0, 0.0)
    ((_, samples, times, clean, *_),) = passes
    assert len(times.unique()) == 200
    for x, data in zip(samples, clean, strict=True):
        t = times.view(-1, 1, 1, 1)
        noise = (x - t * data) / (1 - t)
        assert float(noise.mean()) == pytest.approx(0, abs=0.1)
        assert float(noise.std()) == pytest.approx(1, abs=0.1)


def test_the_moving_average_follows_slowly_and_forgets_the_initial_weights():
    made = objective(ema=0.5)
    before = [parameter.clone() for parameter in made.pair.average.parameters()]
    with torch.no_grad():
        for parameter in made.pair.learner.parameters():
            parameter.add_(1.0)
    made.training_step(batch(), 0, 0.0)  # keeps (1 + 0) / (10 + 0) of the start
    for old, new in zip(before, made.pair.average.parameters(), strict=True):
        assert torch.allclose(new, old + 0.9, atol=1e-5)
    made.training_step(batch(), 100, 0.0)  # 101/110 is more than 0.5
    for old, new in zip(before, made.pair.average.parameters(), strict=True):
        assert torch.allclose(new, old + 0.95, atol=1e-5)


def test_only_the_learner_has_a_gradient():
    made = objective()
    made.training_step(batch(), 0, 0.0)["loss"].backward()
    assert any(parameter.grad is not None for parameter in made.pair.learner.parameters())
    assert all(parameter.grad is None for parameter in made.pair.average.parameters())


@torch.no_grad()
def test_validation_scores_the_moving_average_at_even_times_with_nothing_known_or_dropped(passes):
    made = objective(condition_dropout=1.0, mask_dropout=1.0, seed=5)
    for parameter in made.pair.learner.parameters():
        parameter.mul_(2)
    tokens_batch = batch()
    scores = made.validation_step(tokens_batch)
    ((prior, _, times, _, states, conditions),) = passes
    assert prior is made.pair.average
    assert times.equal(spread_times(tokens_batch.indices))
    assert states.eq(UNKNOWN).all()
    assert conditions.position.equal(tokens_batch.conditions.position)
    nats = [float(scores[f"nats_{stage.name}"]) for stage in STAGES]
    assert float(scores["log_score"]) == pytest.approx(-sum(nats) / 3, rel=1e-5)
    assert made.monitor == "log_score"
    assert {name: float(value) for name, value in made.validation_step(tokens_batch).items()} == {
        name: float(value) for name, value in scores.items()
    }


# --- Many steps


def copied(masks):
    """Sequences whose image copies the codes of the mask, all its tokens alike."""
    return masks[:, None].expand(-1, COUNT).clone()


@pytest.fixture(scope="module")
def learned():
    """A prior that was trained on three slices: the image is of the mask's code everywhere."""
    made = objective(prior=untrained(), mask_dropout=0.2, ema=0.9)
    tokens = copied(torch.arange(24) % 3)
    tokens_batch = TokenBatch(LAYOUT, tokens, Conditions.unknown(24), torch.arange(24))
    with torch.no_grad():
        before = float(made.validation_step(tokens_batch)["log_score"])
    optimiser = torch.optim.AdamW(made.pair.learner.parameters(), lr=4e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior_training, "GIVEN_MASKS", 0.5)  # for a training as short as this
        for step in range(160):
            optimiser.zero_grad()
            made.training_step(tokens_batch, step, 0.0)["loss"].backward()
            optimiser.step()
    with torch.no_grad():
        after = float(made.validation_step(tokens_batch)["log_score"])
    return made.pair.average.eval(), before, after


def test_the_log_score_rises_from_that_of_random_codes(learned):
    _, before, after = learned
    assert before == pytest.approx(-sum(math.log(size) for size in SIZES) / 3, abs=0.5)
    assert after > -0.6


def test_samples_are_the_learned_slices_and_all_of_them(learned):
    tokens = sample(learned[0], LAYOUT, range(32), Conditions.unknown(32))
    alike = (tokens == tokens[:, :1]).all(1)
    assert float(alike.float().mean()) > 0.8
    assert set(tokens[alike, 0].tolist()) == {0, 1, 2}


def test_an_image_follows_its_given_mask(learned):
    wanted = copied(torch.arange(16) % 3)
    known = torch.zeros(16, COUNT, dtype=torch.bool)
    known[:, MASK] = True
    tokens = sample(
        learned[0], LAYOUT, range(16), Conditions.unknown(16), known_tokens=wanted, known_mask=known
    )
    assert float((tokens == wanted).float().mean()) > 0.6  # .44 by chance


def test_a_region_follows_its_surroundings_also_without_a_mask(learned):
    wanted = copied(torch.arange(16) % 3)
    wanted[:, MASK] = SIZES[0]
    known = torch.ones(16, COUNT, dtype=torch.bool)
    known[:, 6:8] = False
    tokens = sample(
        learned[0], LAYOUT, range(16), Conditions.unknown(16), known_tokens=wanted, known_mask=known
    )
    assert float((tokens == wanted).all(1).float().mean()) > 0.8


def test_learned_slices_are_likelier_than_others(learned):
    good, other = copied(torch.arange(3)), rows(3, seed=4)
    nats = [
        likelihood(learned[0], LAYOUT, tokens, Conditions.unknown(3)).nats.sum(1) for tokens in (good, other)
    ]
    assert nats[0].max() < nats[1].min()


# --- What is saved


def test_the_averaged_weights_are_saved(tmp_path):
    kept = []
    made = objective(lambda *arguments: kept.append(arguments))
    made.save(tmp_path / "model", Progress(), {"log_score": 1.0})
    ((path, prior, _, scores),) = kept
    assert (path, scores) == (tmp_path / "model", {"log_score": 1.0})
    assert prior is made.pair.average


# --- A run


@pytest.fixture
def again(trained, tmp_path):
    """A copy of the trained run, to be written to."""
    shutil.copytree(trained.run, tmp_path / "run")
    return tmp_path / "run"


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def begun(run):
    """Take a finished prior back to where only its tokens and masks' tokenizer are there."""
    for name in (MODEL_NAME, STATE_NAME, PREVIOUS_NAME, "metrics.csv", "curves.png"):
        (run / "prior" / name).unlink()
    shutil.rmtree(run / "prior" / "decoder")


def test_a_removed_prior_is_not_retrained_beside_its_decoder(again, monkeypatch):
    for name in (MODEL_NAME, STATE_NAME, PREVIOUS_NAME):
        (again / "prior" / name).unlink()
    monkeypatch.setattr(PriorObjective, "training_step", lambda *_: pytest.fail("trained"))
    with pytest.raises(ConfigError, match="prior: exists and is not a training that can be resumed"):
        train_prior(again, options=OPTIONS)


def test_the_model_on_disk_is_the_average(trained):
    state, prior = load_state(trained.run / "prior" / STATE_NAME), load_prior(trained.run).prior
    last = int(rows_of(trained.run / "prior")[-1]["epoch"])
    assert load_prior(trained.run).info.provenance.epoch == last
    for name, tensor in prior.state_dict().items():
        assert tensor.equal(state.tensors[f"model.average.{name}"])
    assert any(
        not tensor.equal(state.tensors[f"model.learner.{name}"])
        for name, tensor in prior.state_dict().items()
    )


def test_training_raises_the_log_score(trained):
    scores = [float(row["validation_log_score"]) for row in rows_of(trained.run / "prior")]
    assert len(scores) > 1
    assert scores == sorted(scores)


def test_a_prior_knows_the_slices_it_was_trained_on(trained):
    info, records = load_prior(trained.run).info, PreparedData.open(trained.data).split("train").records
    counts = [kind.slices for kind in info.slices]
    assert sum(counts) == len(records)
    assert counts == sorted(counts, reverse=True)
    for kind in info.slices:
        same = [r for r in records if (r.rows, r.columns) == (kind.rows, kind.columns)]
        assert kind.slices == len(same)
        assert min(r.row_mm for r in same) <= kind.row_mm <= max(r.row_mm for r in same)
        assert min(r.low for r in same) <= kind.low < kind.high <= max(r.high for r in same)


def test_a_prior_knows_the_classes_of_its_slices(trained):
    loaded = load_prior(trained.run)
    assert loaded.info.classes == ("0", "1", "2", "3")
    assert loaded.prior.conditions.group.num_embeddings == 5  # and one for unknown


def test_a_prior_has_its_provenance_and_its_tokenizers(trained):
    info, tokenizer = load_prior(trained.run).info, load_tokenizer(trained.run).info
    assert info.tokenizer_provenance == tokenizer.provenance
    assert info.provenance.split_hash == PreparedData.open(trained.data).split_hash
    assert (info.provenance.train_patients, info.provenance.train_slices) == (4, 24)
    assert info.provenance.validation["validation_log_score"] < 0


def test_a_prior_holds_the_tokenizers_and_the_decoder_it_was_trained_with(trained):
    whole, tokenizer = load_prior(trained.run), load_tokenizer(trained.run)
    masks = load_tokenizer(trained.run / "prior" / "masks", kind="label tokenizer").tokenizer
    decoder = load_decoder(trained.run / "prior" / "decoder", tokenizer).decoder
    for actual, own in (
        (whole.tokenizer.images, tokenizer.tokenizer),
        (whole.tokenizer.masks, masks),
        (whole.decoder, decoder),
    ):
        assert hash_tensors(actual.state_dict()) == hash_tensors(own.state_dict())


def test_a_finished_training_does_nothing(again, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in (again / "prior").rglob("*.safetensors")}
    monkeypatch.setattr(PriorObjective, "training_step", lambda *_: pytest.fail("trained on"))
    first = rows_of(again / "prior")
    summary = train_prior(again, options=OPTIONS)
    assert (summary.epochs, summary.steps) == (4, 28)
    assert rows_of(again / "prior") == first
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_interrupted_training_resumes_bit_for_bit(again, trained, monkeypatch):
    begun(again)
    whole = PriorObjective.training_step

    def stopped(self, batch, step, fraction):
        if step == 15:
            raise KeyboardInterrupt
        return whole(self, batch, step, fraction)

    monkeypatch.setattr(PriorObjective, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_generator(again, options=OPTIONS)
    assert load_prior(again).info.provenance.epoch == 2
    monkeypatch.setattr(PriorObjective, "training_step", whole)
    assert train_generator(again, options=OPTIONS).prior.epochs == 4
    actual, wanted = load_prior(again), load_prior(trained.run)
    assert actual.info.weights_sha256 == wanted.info.weights_sha256


def test_cached_tokens_are_read(again, trained, monkeypatch):
    begun(again)
    whole = JointTokenizer.encode

    def watched(self, *given):
        assert self.masks is None, "encoded again"  # without masks only the code usage is measured
        return whole(self, *given)

    monkeypatch.setattr(JointTokenizer, "encode", watched)
    train_prior(again, ["prior.training.epochs=1"], options=OPTIONS)


def tokens_of(run):
    return load_state(run / "prior" / TOKENS_NAME)


def test_tokens_hold_all_views_of_training_slices_and_one_of_validation_slices(trained):
    tokens, data = tokens_of(trained.run).tensors, PreparedData.open(trained.data)
    joint_tokenizer = load_prior(trained.run).tokenizer
    augment = load_prior(trained.run).info.recipe.prior.training.augment
    split_views: tuple[tuple[Split, int], ...] = (("train", 3), ("validation", 1))
    for name, views in split_views:
        sets = encode_slices(joint_tokenizer, data.split(name), views=views, augment=augment, seed=42)
        for index, token_set in enumerate(sets):
            assert tokens[f"{name}.{index}"].shape[1] == views
            assert tokens[f"{name}.{index}"].equal(token_set.tokens)


@pytest.mark.parametrize("fault", ["cut", "flipped", "gone"])
def test_damaged_cached_tokens_are_encoded_again(fault, again, trained):
    begun(again)
    path, wanted = again / "prior" / TOKENS_NAME, tokens_of(trained.run)
    content = path.read_bytes()
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"" if fault == "cut" else bytes([content[-1] ^ 1])))
    train_prior(again, ["prior.training.epochs=1"], options=OPTIONS)
    assert hash_tensors(tokens_of(again).tensors) == hash_tensors(wanted.tensors)


def test_cached_tokens_of_other_settings_are_encoded_again(again):
    begun(again)
    train_prior(again, ["prior.training.epochs=1", "prior.training.num_views=2"], options=OPTIONS)
    assert {len(t[0]) for name, t in tokens_of(again).tensors.items() if name.startswith("train")} == {2}


def test_cached_tokens_of_other_augmentation_are_encoded_again(again, trained):
    begun(again)
    train_prior(again, ["prior.training.epochs=1", "prior.training.augment.shift=0.3"], options=OPTIONS)
    before, after = (tokens_of(run).tensors["train.0"] for run in (trained.run, again))
    assert before[:, 0].equal(after[:, 0])
    assert not before.equal(after)


def test_without_masks_a_prior_models_slices_only(again):
    train_prior(again, ["prior.training.epochs=1"], out=again / "plain", masks=False, options=OPTIONS)
    loaded = load_prior(again / "plain")
    assert loaded.tokenizer.masks is None
    assert loaded.info.masks is None
    assert not (again / "plain" / "masks").exists()


def test_data_without_masks_need_no_option(tmp_path):
    data = prepared_folder(tmp_path / "data")
    train_tokenizer(data, load_recipe("compact", SMALL), tmp_path / "run", options=OPTIONS)
    train_prior(tmp_path / "run", ["prior.training.epochs=1"], options=OPTIONS)
    assert load_prior(tmp_path / "run").tokenizer.masks is None


# --- What is refused


def test_masks_are_not_added_to_a_prior_started_without_them(again, monkeypatch):
    train_prior(again, ["prior.training.epochs=1"], out=again / "plain", masks=False, options=OPTIONS)
    monkeypatch.setattr(generator, "train_labels", lambda *_, **__: pytest.fail("trained masks"))
    with pytest.raises(ConfigError, match="plain: was started without masks, and would be resumed with them"):
        train_generator(again, ["prior.training.epochs=1"], out=again / "plain", options=OPTIONS)
    assert not (again / "plain" / "masks").exists()


def test_masks_are_not_left_out_of_a_prior_started_with_them(again):
    with pytest.raises(ConfigError, match="prior: was started with masks, and would be resumed without them"):
        train_prior(again, masks=False, options=OPTIONS)


def test_data_with_other_classes_do_not_resume_a_prior(again, trained, tmp_path, monkeypatch):
    prepare(trained.raw, tmp_path / "plain")
    monkeypatch.setattr(generator, "train_labels", lambda *_, **__: pytest.fail("trained masks"))
    with pytest.raises(ConfigError, match="was started with classes 0, 1, 2, 3, and the data have none"):
        train_generator(again, data=tmp_path / "plain", options=OPTIONS)


@pytest.mark.parametrize("setting", ["training.epochs=3", "tokenizer.width=32", "name=x", "priors.blocks=1"])
def test_settings_of_the_tokenizer_are_refused(setting, trained, tmp_path):
    with pytest.raises(ConfigError, match="wanted settings of labels or prior or decoder, such as decoder"):
        train_generator(trained.run, [setting], out=tmp_path / "new", options=OPTIONS)
    assert not (tmp_path / "new").exists()


def test_other_settings_do_not_resume_a_training(trained):
    with pytest.raises(ConfigError, match=r"prior\.blocks: 1 then, 2 now.*use another --out"):
        train_prior(trained.run, ["prior.blocks=2"], options=OPTIONS)


def test_the_tokens_of_another_tokenizer_are_refused(again):
    loaded = load_tokenizer(again)
    with torch.no_grad():
        next(loaded.tokenizer.parameters()).add_(0.1)
    save_tokenizer(again / MODEL_NAME, loaded.tokenizer, loaded.info.recipe, loaded.info.provenance)
    with pytest.raises(ConfigError, match="tokens of another tokenizer, or of another prior; use another"):
        train_prior(again, options=OPTIONS)


def test_data_that_was_moved_is_asked_for_and_taken(again, trained, tmp_path):
    state = load_state(again / STATE_NAME)
    nowhere = str(tmp_path / "nowhere")
    save_state(again / STATE_NAME, type(state)(state.tensors, state.progress | {"data": nowhere}))
    with pytest.raises(DataError, match="nowhere"):
        train_prior(again, options=OPTIONS)
    assert train_prior(again, data=trained.data, options=OPTIONS).epochs == 4


def test_a_tokenizer_alone_does_not_know_its_data(again):
    for name in (STATE_NAME, PREVIOUS_NAME):
        (again / name).unlink()
    with pytest.raises(ConfigError, match="has no record of its training data; give --data DATA"):
        train_prior(again, options=OPTIONS)


def test_data_of_another_split_are_refused(trained, tmp_path):
    other = prepared_folder(tmp_path / "other", seed=3)
    with pytest.raises(ConfigError, match=r"another split.*a test patient might be learned; give --data"):
        train_prior(trained.run, data=other, out=tmp_path / "new", options=OPTIONS)
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_that_uses_few_codes_is_refused(again, tmp_path):
    loaded = load_tokenizer(again)
    far = loaded.tokenizer.codebook(0)
    with torch.no_grad():
        far.ema_embed_sum[3:] = 1e3 * far.ema_cluster_size[3:, None]
    assert len(loaded.tokenizer.encode(torch.rand(8, 1, 32, 64))[0].unique()) <= 3
    save_tokenizer(again / MODEL_NAME, loaded.tokenizer, loaded.info.recipe, loaded.info.provenance)
    with pytest.raises(
        ConfigError, match=r"level 0 uses (6|12|19)% of its 16 codes.*wanted 25%.*codebook_sizes\[0\]"
    ):
        train_prior(again, out=tmp_path / "new", masks=False, options=OPTIONS)


def test_without_a_tokenizer_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(CheckpointError, match="slicebook train tokenizer"):
        train_prior(tmp_path, options=OPTIONS)


# --- The parts one by one


def files_of(run):
    """Each file of a run itself, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in run.iterdir() if path.is_file()}


def test_the_parts_in_turn_equal_the_generator(again, trained):
    shutil.rmtree(again / "prior")
    train_masks(again, options=OPTIONS)
    train_prior(again, options=OPTIONS)
    summary = train_decoder(again, options=OPTIONS)
    assert summary.run == again / "prior" / "decoder"
    assert load_prior(again).info.weights_sha256 == load_prior(trained.run).info.weights_sha256
    assert load_prior(again).info.recipe == load_prior(trained.run).info.recipe


@pytest.mark.parametrize(
    ("part", "setting"),
    [(train_masks, "prior.blocks=1"), (train_prior, "decoder.blocks=1"), (train_decoder, "labels.x=1")],
)
def test_a_part_takes_its_own_settings_only(part, setting, trained, tmp_path):
    with pytest.raises(
        ConfigError, match=f"{setting}: is not a setting of this training; wanted settings of"
    ):
        part(trained.run, [setting], out=tmp_path / "new", options=OPTIONS)


def test_a_prior_over_masks_needs_them_trained(trained, tmp_path):
    out = tmp_path / "new"
    command = f"slicebook train masks {trained.run} --out {out}; or give --no-masks"
    with pytest.raises(ConfigError, match=f"masks: holds no finished mask tokenizer; train it .*: {command}"):
        train_prior(trained.run, out=out, options=OPTIONS)
    assert not out.exists()


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_decoder_needs_a_finished_prior(unfinished, again):
    state = load_state(again / "prior" / STATE_NAME)
    for name in (STATE_NAME, PREVIOUS_NAME):
        (again / "prior" / name).unlink()
    if unfinished:
        reached = state.progress["progress"] | {"finished": False}
        save_state(
            again / "prior" / STATE_NAME, type(state)(state.tensors, state.progress | {"progress": reached})
        )
    with pytest.raises(ConfigError, match=f"holds no finished prior; .*slicebook train prior {again}$"):
        train_decoder(again, options=OPTIONS)


def test_a_seed_is_that_of_the_part(again, tmp_path):
    train_prior(
        again,
        ["prior.training.epochs=1"],
        out=tmp_path / "new",
        masks=False,
        options=replace(OPTIONS, seed=9),
    )
    recipe = load_prior(tmp_path / "new").info.recipe
    assert (recipe.prior.training.seed, recipe.labels.training.seed, recipe.training.seed) == (9, 42, 42)


def test_a_restart_trains_a_part_anew_and_leaves_the_others(again):
    settings = ["prior.training.epochs=1", "prior.training.num_views=1"]
    before = {name: files_of(again / "prior" / name) for name in ("masks", "decoder")}
    with pytest.raises(ConfigError, match="or --restart"):
        train_prior(again, settings, options=OPTIONS)
    assert train_prior(again, settings, options=replace(OPTIONS, restart=True)).epochs == 1
    assert {name: files_of(again / "prior" / name) for name in before} == before
    assert load_prior(again).info.decoder_provenance is None
    train_decoder(again, options=OPTIONS)  # finished: it only goes into the file of the new prior
    assert {name: files_of(again / "prior" / name) for name in before} == before
    assert load_prior(again).info.decoder_provenance.epoch > 1
    train_decoder(again, ["decoder.training.epochs=1"], options=replace(OPTIONS, restart=True))
    assert load_prior(again).info.decoder_provenance.epoch == 1


def test_a_restarted_tokenizer_leaves_its_prior(again, trained):
    before = files_of(again / "prior")
    recipe = load_recipe("compact", [*SMALL, "training.epochs=1"])
    assert train_tokenizer(trained.data, recipe, again, options=replace(OPTIONS, restart=True)).epochs == 1
    assert files_of(again / "prior") == before


@pytest.mark.parametrize("strange", ["notes.txt", "report/", "masks"])
def test_a_restart_deletes_nothing_beside_what_no_training_wrote(strange, again):
    prior = again / "prior"
    if strange in SUBFOLDERS:
        shutil.rmtree(prior / strange)
    if strange.endswith("/"):
        (prior / strange).mkdir()
    else:
        (prior / strange).write_text("mine")
    before = files_of(prior)
    with pytest.raises(ConfigError, match=f"{strange.strip('/')}: was not written by a training, so nothing"):
        train_prior(again, masks=False, options=replace(OPTIONS, restart=True))
    assert files_of(prior) == before


def test_a_restart_that_will_be_refused_deletes_nothing(again):
    before = files_of(again / "prior")
    shutil.rmtree(again / "prior" / "masks")
    with pytest.raises(ConfigError, match="holds no finished mask tokenizer"):
        train_prior(again, options=replace(OPTIONS, restart=True))
    assert files_of(again / "prior") == before


def test_the_generator_checks_its_last_part_before_it_trains_the_first(again, monkeypatch):
    shutil.rmtree(again / "prior" / "masks")
    begun_prior = again / "prior"
    for name in (MODEL_NAME, STATE_NAME, PREVIOUS_NAME, "metrics.csv", "curves.png"):
        (begun_prior / name).unlink()
    monkeypatch.setattr(generator, "train_labels", lambda *_, **__: pytest.fail("trained masks"))
    with pytest.raises(ConfigError, match=r"decoder: was started with other settings \(decoder\.blocks"):
        train_generator(again, ["decoder.blocks=9"], options=OPTIONS)


def test_a_restarted_generator_trains_every_part(again):
    before = {name: files_of(again / "prior" / name)[STATE_NAME] for name in (".", "masks", "decoder")}
    settings = [f"{group}.training.epochs=1" for group in ("labels", "prior", "decoder")]
    summary = train_generator(again, settings, options=replace(OPTIONS, restart=True))
    assert (summary.masks.epochs, summary.prior.epochs, summary.decoder.epochs) == (1, 1, 1)
    assert all(files_of(again / "prior" / name)[STATE_NAME] != before[name] for name in before)
