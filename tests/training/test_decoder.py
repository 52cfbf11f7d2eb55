"""The generation decoder: its losses, what it leaves unchanged, and how its training resumes."""

import csv
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.training import OPTIONS
from lightning_fabric import Fabric
from torch import nn

from slicebook.config import DecoderTrainingConfig, TokenizerConfig
from slicebook.data.dataset import PreparedData
from slicebook.data.loader import Batch, SliceBatches
from slicebook.errors import CheckpointError, ConfigError
from slicebook.inference.reconstruct import reconstruct
from slicebook.io.tensors import hash_tensors
from slicebook.models.checkpoint import MODEL_NAME, load_prior, load_tokenizer, save_tokenizer
from slicebook.models.sampling import sample
from slicebook.models.tokenizer import Tokenizer
from slicebook.recipes import load_recipe, override
from slicebook.training import decoder as decoding
from slicebook.training.decoder import KIND, DecoderObjective, Discriminator, draw_samples, train_decoder
from slicebook.training.generator import train_generator
from slicebook.training.progress import Display


@pytest.fixture
def own(trained):
    """The trained tokenizer, its data and its recipe."""
    loaded = load_tokenizer(trained.run)
    return loaded, PreparedData.open(trained.data), loaded.info.recipe


def samples_of(tokenizer, count=6):
    """Return tokens at random, for the sizes of the slices."""
    draw = torch.Generator().manual_seed(1)
    return {
        size: [
            torch.randint(codes, (count, *grid), generator=draw)
            for grid, codes in zip(tokenizer.grids(size), tokenizer.config.codebook_sizes, strict=True)
        ]
        for size in ((32, 64), (36, 64))
    }


def objective(own, *settings):
    loaded, data, recipe = own
    torch.manual_seed(0)
    chosen = override(recipe, ["decoder.training.augment=null", *settings])
    fabric = Fabric(accelerator="cpu", devices=1)
    made = DecoderObjective(loaded, samples_of(loaded.tokenizer), chosen, data, fabric)
    made.module.train()
    return made


def batch(own, count=4):
    slices = own[1].split("train")
    return Batch(torch.stack([slices[index] for index in range(count)]), torch.arange(count))


def gradients(own, *settings, fraction=0.5, change=None):
    """Return the gradients of a step, and the objective."""
    made = objective(own, *settings)
    if change:
        change(made)
    made.training_step(batch(own), 0, fraction)["loss"].backward()
    return {name: p.grad for name, p in made.adversaries.named_parameters() if p.grad is not None}, made


# --- What is trained


@pytest.mark.parametrize("architecture", ["ladder", "vqvae2"])
def test_no_token_hangs_on_the_last_decoder_and_every_pixel_does(architecture):
    torch.manual_seed(0)
    config = TokenizerConfig(
        architecture=architecture, scaling_rates=(4, 2), codebook_sizes=(16, 16), code_dim=4, width=16
    )
    tokenizer, images = Tokenizer(config).eval(), torch.rand(2, 1, 32, 32)
    tokens = tokenizer.encode(images)
    before = tokenizer.decode(tokens, (32, 32))
    with torch.no_grad():
        for parameter in tokenizer.pixel_decoder():
            parameter.add_(torch.randn_like(parameter))
    assert all(old.equal(new) for old, new in zip(tokens, tokenizer.encode(images), strict=True))
    assert (tokenizer.decode(tokens, (32, 32)) != before).all()


def test_the_last_decoder_and_the_discriminator_learn_and_nothing_else(own):
    changed, made = gradients(own)
    theirs = {id(p) for p in made.adversaries.learner.pixel_decoder()}
    theirs |= {id(p) for p in made.adversaries.discriminator.parameters()}
    parameters = dict(made.adversaries.named_parameters())
    assert {id(parameters[name]) for name in changed} == theirs
    assert all(gradient.abs().max() > 0 for name, gradient in changed.items() if name.endswith("weight"))


def test_the_decoder_loss_has_no_gradient_in_the_discriminator(own):
    """The decoder must not make the discriminator easier to fool."""
    weak, strong = (gradients(own, f"decoder.training.adversarial_weight={w}")[0] for w in (0, 100))
    for name, gradient in weak.items():
        same = torch.allclose(gradient, strong[name], rtol=1e-4, atol=1e-7)
        assert same == name.startswith("discriminator"), name


def at_pixels(own, *settings, change=None):
    """Return gradients at the pixels, reconstructions first: reconstruction, adversarial, and their sum."""
    hooked: list[Any] = []

    def watched(made):
        whole = made.adversaries.learner.decode_unchecked

        def render(*given):
            drawn = whole(*given)
            drawn.register_hook(hooked.append)
            return drawn

        made.adversaries.learner.decode_unchecked = render
        if change:
            change(made)

    gradients(own, *settings, change=watched)
    return hooked


def test_gradient_norms_start_in_the_ratio_of_adversarial_weight(own):
    reconstruction_grad, adversarial_grad, total = at_pixels(own, "decoder.training.adversarial_weight=0.5")
    _, _, reconstruction = at_pixels(own, "decoder.training.adversarial_weight=0")
    assert torch.allclose(reconstruction, reconstruction_grad, atol=1e-9)
    assert float((total - reconstruction_grad)[:4].norm() / reconstruction_grad.norm()) == pytest.approx(
        0.5, rel=1e-4
    )
    assert torch.allclose(
        (total - reconstruction_grad)[4:] / adversarial_grad[4:],
        ((total - reconstruction_grad)[0] / adversarial_grad[0]).mean(),
        rtol=1e-3,
    )


def test_samples_that_agree_at_low_resolution_have_only_the_adversarial_gradient(own):
    reconstruction_grad, adversarial_grad, _ = at_pixels(own)
    assert len(reconstruction_grad) == len(adversarial_grad) == 8
    assert (reconstruction_grad[4:] == 0).all()
    assert (adversarial_grad != 0).any(dim=(1, 2, 3)).all()


@pytest.mark.parametrize("weight", [0.0, 4.0])
def test_samples_are_compared_with_the_tokenizers_decoder_at_low_resolution(own, weight):
    """A constant offset gives each pixel the same gradient."""

    def brighter(made):
        made.lowres_targets = {
            size: lowres_targets - 0.25 for size, lowres_targets in made.lowres_targets.items()
        }

    reconstruction_grad, *_ = at_pixels(own, f"decoder.training.lowres_weight={weight}", change=brighter)
    held = reconstruction_grad[4:]
    assert held == pytest.approx(torch.full_like(held, weight / held.numel()), rel=1e-3, abs=1e-12)


def test_an_outline_is_the_average_over_a_cell_of_the_finest_grid(own):
    made, draw = objective(own), torch.Generator().manual_seed(0)
    drawn = torch.rand(1, 1, 36, 64, generator=draw)
    averages = made.adversaries.lowres(drawn)
    assert averages.shape == (1, 1, 5, 8)  # 36 rows are four and a half cells of 8
    assert float(averages[0, 0, 1, 2]) == pytest.approx(float(drawn[0, 0, 8:16, 16:24].mean()))
    assert float(averages[0, 0, 4, 0]) == pytest.approx(float(drawn[0, 0, 32:, :8].mean()))


def test_outlines_are_those_of_the_faithful_decoder(own):
    loaded = own[0]
    made = objective(own)
    for size, grids in made.samples.items():
        wanted = made.adversaries.lowres(loaded.tokenizer.decode_unchecked(grids, size))
        assert torch.allclose(made.lowres_targets[size], wanted, atol=1e-6)


def test_the_discriminator_learns_that_samples_are_fake(own):
    """Its gradient depends on the samples."""

    def others(made):
        made.samples = {
            size: [1 - grid.clamp(max=1) for grid in grids] for size, grids in made.samples.items()
        }

    plain, changed = gradients(own)[0], gradients(own, change=others)[0]
    assert any(
        not torch.allclose(plain[name], changed[name]) for name in plain if name.startswith("discriminator")
    )


def test_the_adaptive_weight_does_not_depend_on_the_scale_of_the_logits(own):
    plain, scaled = gradients(own)[0], gradients(own, change=lambda made: louder(made, 50))[0]
    for name in plain:
        if not name.startswith("discriminator"):
            assert torch.allclose(plain[name], scaled[name], rtol=1e-3, atol=1e-6)


def louder(made, times):
    with torch.no_grad():
        made.adversaries.discriminator.body[-1].weight.mul_(times)


def test_a_discriminator_with_vanishing_gradients_is_not_amplified(own):
    """The adaptive weight is measured during its warm-up and then fixed."""

    def weight_of(quieter):
        def change(made):
            made.training_step(batch(own), 0, 0.0)
            louder(made, quieter)

        reconstruction_grad, _, total = at_pixels(own, change=change)[-3:]
        return float((total - reconstruction_grad).norm())

    assert weight_of(0.01) == pytest.approx(0.01 * weight_of(1), rel=0.05)


def test_the_balance_follows_while_the_discriminator_learns_alone(own):
    made = objective(own)
    weights = []
    for step in range(60):
        made.training_step(batch(own), step, 0.0)
        weights.append(float(made.adversaries.adaptive_weight))
        if step == 0:
            louder(made, 0.01)
    assert weights[0] > 0
    assert weights[-1] == pytest.approx(100 * weights[0], rel=0.5)
    made.training_step(batch(own), 60, 0.5)
    assert float(made.adversaries.adaptive_weight) == weights[-1]


def test_the_discriminator_learns_alone_at_first(own):
    alone, dropped_levels = (
        gradients(own, fraction=0.19)[0],
        gradients(own, "decoder.training.adversarial_weight=0")[0],
    )
    assert all(gradient.equal(dropped_levels[name]) for name, gradient in alone.items())
    used = gradients(own, fraction=0.3)[0]
    assert any(not gradient.equal(dropped_levels[name]) for name, gradient in used.items())


def test_a_discriminator_sees_the_strength_of_an_edge():
    torch.manual_seed(0)
    discriminator, images = Discriminator(8), torch.randn(2, 1, 33, 32)
    assert torch.allclose(discriminator(2 * images), 2 * discriminator(images), rtol=1e-4, atol=1e-6)


def test_a_discriminator_learns_to_tell_soft_slices_from_real_ones():
    torch.manual_seed(0)
    discriminator = Discriminator(8)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3)
    for _ in range(40):
        real = torch.rand(8, 1, 32, 32)
        soft = nn.functional.avg_pool2d(real, 3, stride=1, padding=1)
        loss = (1 - discriminator(real)).relu().mean() + (1 + discriminator(soft)).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5  # 2 when nothing is known


def test_the_receptive_field_is_30_pixels():
    discriminator = Discriminator(8)
    image = torch.zeros(1, 1, 96, 96, requires_grad=True)
    verdicts = discriminator(image)
    verdicts[0, 0, verdicts.shape[2] // 2, verdicts.shape[3] // 2].backward()
    rows, columns = image.grad[0, 0].nonzero().unbind(1)
    assert int(rows.max() - rows.min()) + 1 == int(columns.max() - columns.min()) + 1 == 30


def test_sharpness_is_1_where_neighbours_differ_as_in_real_slices(own):
    images = torch.rand(2, 1, 32, 32)
    assert float(decoding._roughness(images) / decoding._roughness(2 * images)) == pytest.approx(0.5)
    soft = nn.functional.avg_pool2d(images, 3, stride=1)
    assert float(decoding._roughness(soft)) < 0.5 * float(decoding._roughness(images))


def test_a_step_draws_its_mirrors_from_seed_and_step_alone(own):
    def score(step, *settings):
        torch.rand(7)  # what was drawn before makes no difference
        made = objective(own, "decoder.training.augment={shift: 0.3}", *settings)
        return float(made.training_step(batch(own), step, 0.0)["ssim"])

    assert score(3) == score(3)
    assert len({score(3), score(4), score(3, "decoder.training.seed=7")}) == 3


# --- A run


def train(own, out, *settings, **options):
    loaded, data, recipe = own
    prior = load_prior(loaded.path.parent)
    changed = replace(OPTIONS, **options)
    return train_decoder(loaded, prior, data, override(recipe, settings), out, changed)


def test_the_decoder_keeps_all_tokens_and_changes_images(trained, own):
    before, after = own[0].tokenizer, load_tokenizer(trained.run / "prior" / "decoder", kind=KIND).tokenizer
    images = batch(own, 6).images
    assert all(a.equal(b) for a, b in zip(before.encode(images), after.encode(images), strict=True))
    last = {id(p) for p in after.pixel_decoder()}
    changed = {
        name
        for name, parameter in after.named_parameters()
        if not parameter.equal(before.get_parameter(name))
    }
    assert changed == {name for name, parameter in after.named_parameters() if id(parameter) in last}


def test_slices_are_loaded_by_workers(own, tmp_path, monkeypatch):
    counts: list[int] = []

    def batches(*arguments, workers, **settings):
        counts.append(workers)
        return SliceBatches(*arguments, **settings)

    monkeypatch.setattr(decoding, "SliceBatches", batches)
    train(own, tmp_path / "decoder", "decoder.training.epochs=1", workers=3)
    assert counts == [3, 3]  # for training and for validation


@pytest.mark.parametrize("architecture", ["ladder", "vqvae2"])
def test_tokens_mean_the_same_to_tokenizers_that_share_all_but_the_last_decoder(architecture):
    config = TokenizerConfig(architecture=architecture, scaling_rates=(4, 2), codebook_sizes=(8, 8), width=16)
    tokenizer = Tokenizer(config)
    before, whole = hash_tensors(tokenizer.token_state()), tokenizer.state_dict()
    last = {name for name in whole if name not in tokenizer.token_state()}
    assert 0 < len(last) < len(whole)
    for name in whole:
        with torch.no_grad():
            whole[name].add_(1)
        assert (hash_tensors(tokenizer.token_state()) == before) == (name in last), name
        before = hash_tensors(tokenizer.token_state())


def test_the_tokenizer_that_is_given_stays_as_it_was(own, tmp_path):
    before = hash_tensors(own[0].tokenizer.state_dict())
    train(own, tmp_path / "decoder")
    assert hash_tensors(own[0].tokenizer.state_dict()) == before
    assert all(parameter.requires_grad for parameter in own[0].tokenizer.parameters())


def test_the_latest_average_is_saved(trained, own):
    with (trained.run / "prior" / "decoder" / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    info = load_tokenizer(trained.run / "prior" / "decoder", kind=KIND).info
    assert info.provenance.epoch == int(last["epoch"]) == 2
    assert set(info.provenance.validation) >= {"validation_ssim", "validation_sharpness"}
    assert float(last["validation_sharpness"]) > 0


def test_an_interrupted_training_resumes_bit_for_bit(own, tmp_path, monkeypatch):
    settings = ("decoder.training.epochs=4", "decoder.training.validate_every=2")
    wanted = train(own, tmp_path / "whole", *settings)
    whole = DecoderObjective.training_step

    def stopped(self, batch, step, fraction):
        if step == 14:
            raise KeyboardInterrupt
        return whole(self, batch, step, fraction)

    monkeypatch.setattr(DecoderObjective, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(own, tmp_path / "parts", *settings)
    assert load_tokenizer(tmp_path / "parts", kind=KIND).info.provenance.epoch == 2
    monkeypatch.setattr(DecoderObjective, "training_step", whole)
    assert train(own, tmp_path / "parts", *settings).info.weights_sha256 == wanted.info.weights_sha256
    monkeypatch.setattr(DecoderObjective, "training_step", lambda *_: pytest.fail("trained on"))
    assert train(own, tmp_path / "parts", *settings).info.weights_sha256 == wanted.info.weights_sha256


def test_the_founding_architecture_is_trained_too(own, tmp_path, monkeypatch):
    """Its decoder has batch norm: the average's weights would not fit the learner's latest statistics."""
    before, data, recipe = own
    config = recipe.tokenizer.model_copy(update={"architecture": "vqvae2"})
    chosen = recipe.model_copy(update={"tokenizer": config})
    torch.manual_seed(0)
    tokenizer = Tokenizer(config)
    for _ in range(20):
        tokenizer(batch(own, 6).images)
    tokenizer.eval()
    save_tokenizer(tmp_path / "run" / MODEL_NAME, tokenizer, chosen, own[0].info.provenance)
    monkeypatch.setattr(decoding, "draw_samples", lambda *_, **__: samples_of(tokenizer))
    prior = load_prior(before.path.parent)
    made = train_decoder(
        load_tokenizer(tmp_path / "run"), prior, data, chosen, tmp_path / "decoder", options=OPTIONS
    )
    images = batch(own, 6).images
    assert all(
        a.equal(b) for a, b in zip(tokenizer.encode(images), made.tokenizer.encode(images), strict=True)
    )
    before, after = (model.network.pixel_decoder.state_dict() for model in (tokenizer, made.tokenizer))
    means = [name for name in before if name.endswith("running_mean")]
    assert means
    assert all(before[name].equal(after[name]) for name in means)
    assert not all(before[name].equal(after[name]) for name in before)


def test_a_prior_uses_the_trained_decoder(trained):
    loaded, drawn = load_prior(trained.run), load_tokenizer(trained.run / "prior" / "decoder", kind=KIND)
    assert hash_tensors(loaded.tokenizer.images.state_dict()) == hash_tensors(drawn.tokenizer.state_dict())
    assert loaded.info.decoder_provenance == drawn.info.provenance


def test_decoder_null_uses_the_tokenizers_decoder(trained, own, tmp_path):
    train_generator(
        trained.run, ["decoder=null", "prior.training.epochs=1"], out=tmp_path, masks=False, options=OPTIONS
    )
    loaded = load_prior(tmp_path)
    assert hash_tensors(loaded.tokenizer.images.state_dict()) == hash_tensors(own[0].tokenizer.state_dict())
    assert loaded.info.decoder_provenance is None
    assert not (tmp_path / "decoder").exists()


def test_a_decoder_is_trained_on_training_patients_alone(own, tmp_path, monkeypatch):
    seen = []
    whole = DecoderObjective.training_step

    def watched(self, batch, step, fraction):
        seen.extend(batch.images)
        return whole(self, batch, step, fraction)

    monkeypatch.setattr(DecoderObjective, "training_step", watched)
    train(own, tmp_path / "decoder", "decoder.training.epochs=1")
    slices = own[1].split("train")
    known = {hash_tensors({"": slices[index]}) for index in range(len(slices))}
    assert {hash_tensors({"": image}) for image in seen} == known


def draw(own, path, count=32):
    loaded, data, _ = own
    display = Display(path.parent, shown=False)
    return draw_samples(load_prior(loaded.path.parent), data.split("train"), count, path, display=display)


def test_each_slice_size_has_its_share_of_samples_and_at_least_a_batch(own, tmp_path):
    kinds = load_prior(own[0].path.parent).info.slices
    assert sorted(kind.slices for kind in kinds) == [6, 18]
    samples = draw(own, tmp_path / "few.safetensors")
    assert set(samples) == {(kind.rows, kind.columns) for kind in kinds}
    for kind in kinds:
        grids = samples[kind.rows, kind.columns]
        share = max(16, round(32 * kind.slices / 24))
        sides = own[0].tokenizer.grids((kind.rows, kind.columns))
        assert [tuple(grid.shape) for grid in grids] == [(share, *side) for side in sides]


def test_samples_are_drawn_under_conditions_of_training_slices(own, tmp_path, monkeypatch):
    asked: list[Any] = []

    def watched(prior, layout, seeds, conditions):
        asked.extend(zip(seeds, conditions.position.tolist(), conditions.group.tolist(), strict=True))
        return sample(prior, layout, seeds, conditions)

    monkeypatch.setattr(decoding, "sample", watched)
    draw(own, tmp_path / "samples.safetensors")
    records = own[1].split("train").records
    known = {(round(r.position, 6), int(r.group) if r.group else -1) for r in records}
    assert len({(position, group) for _, position, group in asked}) > len(known) / 2
    assert {(round(position, 6), group) for _, position, group in asked} <= known
    assert min(seed for seed, _, _ in asked) == 2**62


def test_samples_are_generated_once_per_prior_and_count(own, tmp_path, monkeypatch):
    path = tmp_path / "samples.safetensors"
    first = draw(own, path)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "sample", lambda *_: pytest.fail("drawn again"))
        again = draw(own, path)
    assert all(a.equal(b) for size in first for a, b in zip(first[size], again[size], strict=True))
    path.write_bytes(path.read_bytes()[:-9])
    mended = draw(own, path)
    assert all(a.equal(b) for size in first for a, b in zip(first[size], mended[size], strict=True))
    assert sum(len(grids[0]) for grids in draw(own, path, 72).values()) == 72


def test_added_noise_is_measured_on_the_new_decoder(trained, own, tmp_path):
    shutil.copytree(trained.run, tmp_path / "run")
    settings = ["decoder.training.epochs=1", "decoder.training.learning_rate=0.01"]
    shutil.rmtree(tmp_path / "run" / "prior" / "decoder")
    train_generator(tmp_path / "run", settings, options=OPTIONS)
    rough = load_prior(tmp_path / "run").info.noise_model
    train_generator(tmp_path / "run", ["decoder=null"], options=OPTIONS)
    plain = load_prior(tmp_path / "run").info.noise_model
    assert rough.spread == plain.spread
    assert rough.texture != plain.texture


def test_a_finished_prior_gets_another_decoder_and_stays(trained, tmp_path):
    shutil.copytree(trained.run, tmp_path / "run")
    run, before = tmp_path / "run", load_prior(trained.run)
    shutil.rmtree(run / "prior" / "decoder")
    train_generator(
        run, ["decoder.training.epochs=1", "decoder.training.adversarial_weight=2"], options=OPTIONS
    )
    after = load_prior(run)
    assert hash_tensors(after.prior.state_dict()) == hash_tensors(before.prior.state_dict())
    assert hash_tensors(after.tokenizer.masks.state_dict()) == hash_tensors(
        before.tokenizer.masks.state_dict()
    )
    new = load_tokenizer(run / "prior" / "decoder", kind=KIND)
    assert hash_tensors(after.tokenizer.images.state_dict()) == hash_tensors(new.tokenizer.state_dict())
    assert after.info.decoder_provenance == new.info.provenance
    assert after.info.recipe.decoder.training.adversarial_weight == 2
    assert after.info.provenance == before.info.provenance
    train_generator(run, ["decoder=null"], options=OPTIONS)
    faithful = load_tokenizer(run).tokenizer
    assert hash_tensors(load_prior(run).tokenizer.images.state_dict()) == hash_tensors(faithful.state_dict())


def test_only_the_flip_is_on_by_default(own):
    settings = override(own[2], ["decoder.training.augment={flip_probability: 0.3}"]).decoder.training.augment
    fresh = load_recipe(
        "generate", ["decoder.training.augment.flip_probability=0.3"]
    ).decoder.training.augment
    for augmentation in (settings, fresh):
        assert augmentation.flip_probability == 0.3
        assert (
            augmentation.rotate_degrees,
            augmentation.scale,
            augmentation.shift,
            augmentation.gamma,
            augmentation.intensity_scale,
        ) == (
            0,
            0,
            0,
            0,
            0,
        )
    assert load_recipe("generate", ["decoder.training.augment=null"]).decoder.training.augment is None


# --- What is refused


def test_reconstruction_refuses_a_generation_decoder(trained, tmp_path):
    with pytest.raises(CheckpointError, match="holds a generation decoder, wanted a tokenizer"):
        reconstruct(trained.run / "prior" / "decoder", trained.raw, tmp_path / "out", device="cpu")


def test_patience_is_refused_for_decoders():
    with pytest.raises(ConfigError, match=r"decoder\.training\.patience"):
        load_recipe("generate", ["decoder.training.patience=2"])


def test_other_settings_do_not_resume_a_training(own, trained):
    with pytest.raises(
        ConfigError, match=r"training\.adversarial_weight: 0\.5 then, 0\.7 now.*use another --out"
    ):
        train(own, trained.run / "prior" / "decoder", "decoder.training.adversarial_weight=0.7")


def test_the_decoder_of_another_tokenizer_is_refused(own, trained, tmp_path):
    shutil.copytree(trained.run / "prior" / "decoder", tmp_path / "decoder")
    loaded, data, recipe = own
    other = replace(loaded, info=loaded.info.model_copy(update={"weights_sha256": "0" * 64}))
    with pytest.raises(
        ConfigError, match="tokens of another tokenizer, or of another prior; use another --out"
    ):
        train_decoder(other, load_prior(trained.run), data, recipe, tmp_path / "decoder", options=OPTIONS)


def test_the_decoder_of_another_prior_is_refused(own, trained, tmp_path):
    shutil.copytree(trained.run / "prior" / "decoder", tmp_path / "decoder")
    loaded, data, recipe = own
    prior = load_prior(trained.run)
    with torch.no_grad():
        next(prior.prior.parameters()).add_(1)
    with pytest.raises(ConfigError, match=r"another prior; use another --out, or --restart"):
        train_decoder(loaded, prior, data, recipe, tmp_path / "decoder", options=OPTIONS)


def test_no_settings_are_refused(own, tmp_path):
    with pytest.raises(ConfigError, match="decoder is null, wanted settings"):
        train(own, tmp_path / "decoder", "decoder=null")
    assert not (tmp_path / "decoder").exists()


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match=r"decoder\.training\.adversarial_weight"):
        load_recipe("generate", ["decoder.training.adversarial_weight=-1"])
    assert DecoderTrainingConfig().adversarial_weight > 0
