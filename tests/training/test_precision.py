"""Precisions that all trainings work in, and no float64 where a device may lack it."""

from dataclasses import replace

import pytest
import torch
from helpers.settings import SMALL
from helpers.training import OPTIONS, prepared_folder, tiny, train
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slicebook import devices
from slicebook.config import TrainingConfig
from slicebook.devices import PRECISIONS
from slicebook.io.tensors import STATE_NAME, load_state
from slicebook.models.checkpoint import MODEL_NAME, load_prior
from slicebook.models.conditions import Conditions
from slicebook.models.sampling import SamplingSettings, sample
from slicebook.recipes import load_recipe
from slicebook.training import trainer
from slicebook.training.generator import train_generator
from slicebook.training.tokenizer import train_tokenizer
from slicebook.training.trainer import Trainer

ONE_EPOCH = [*SMALL, *(f"{part}training.epochs=1" for part in ("", "labels.", "decoder.", "prior."))]
HARMLESS = ["ignore:level .* of its .* codes"]


class NoFloat64(TorchDispatchMode):
    """Refuses what an Apple GPU refuses: a tensor of float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.float64, torch.complex128):
                raise AssertionError(f"{func} made a tensor of {tensor.dtype}")
        return made


def train_all(trained, out, **how):
    """Train a tokenizer, and over it masks, prior and decoder, for an epoch each."""
    train_tokenizer(trained.data, load_recipe("compact", ONE_EPOCH), out, options=replace(OPTIONS, **how))
    train_generator(out, options=replace(OPTIONS, **how))


@pytest.fixture
def unrefused(monkeypatch):
    """Trained so shortly, a tokenizer uses few codes."""
    monkeypatch.setattr("slicebook.training.generator.refuse_unused_codes", lambda *_: None)


@pytest.mark.filterwarnings(*HARMLESS)
@pytest.mark.parametrize("precision", PRECISIONS["cpu"])
def test_every_training_works_in_every_precision_that_is_offered(precision, trained, unrefused, tmp_path):
    train_all(trained, tmp_path / "run", precision=precision)
    for run in ("run", "run/prior", "run/prior/masks", "run/prior/decoder"):
        assert load_state(tmp_path / run / STATE_NAME).progress["precision"] == precision


@pytest.mark.filterwarnings(*HARMLESS)
def test_no_training_step_makes_a_tensor_of_float64(trained, unrefused, tmp_path, monkeypatch):
    whole, trainings = Trainer.__call__, []

    def guarded(self, *given):
        trainings.append(type(self.objective).__name__)
        with NoFloat64():
            return whole(self, *given)

    monkeypatch.setattr(Trainer, "__call__", guarded)
    train_all(trained, tmp_path / "run")
    assert trainings == ["TokenizerObjective", "LabelObjective", "PriorObjective", "DecoderObjective"]


def test_sampling_makes_no_tensor_of_float64(trained):
    loaded = load_prior(trained.run)
    layout = loaded.tokenizer.layout((32, 64))
    with NoFloat64():
        tokens = sample(loaded.prior, layout, [1], Conditions.unknown(1), SamplingSettings(guidance=1.0))
        loaded.tokenizer.decode(tokens, (32, 64))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("data") / "prepared")


@pytest.mark.parametrize("faster", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("architecture", ["ladder", "vqvae2"])
def test_auto_trains_as_the_precision_that_it_measures(
    faster, architecture, data, tmp_path, monkeypatch, capsys
):
    measure = devices.fastest_precision

    def decided(step, device, **how):
        measure(step, device, **how)
        return faster, {"32-true": 0.25, "bf16-mixed": 0.125}

    monkeypatch.setattr(trainer, "fastest_precision", decided)
    recipe = tiny(f"tokenizer.architecture={architecture}", "training.epochs=1")
    train(data, recipe, tmp_path / "auto", precision="auto", progress=True)
    train(data, recipe, tmp_path / "named", precision=faster)
    measured, named = (load_file(tmp_path / name / MODEL_NAME) for name in ("auto", "named"))
    assert all(measured[name].equal(named[name]) for name in named)
    line = f"precision {faster}: a training step takes 250 ms in 32-true, 125 ms in bf16-mixed"
    assert line in capsys.readouterr().err


def test_a_resumed_training_keeps_its_measured_precision(data, tmp_path, monkeypatch):
    verdicts = iter(["bf16-mixed"])
    monkeypatch.setattr(trainer, "fastest_precision", lambda *_, **__: (next(verdicts), {}))
    whole = Trainer._epoch

    def interrupted(self, *given):
        if self.progress.epoch == 1:
            raise KeyboardInterrupt
        return whole(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, tiny(), tmp_path / "run", precision="auto")
    train(data, tiny(), tmp_path / "run", precision="auto")  # a second measurement would find no verdict
    assert load_state(tmp_path / "run" / STATE_NAME).progress["precision"] == "bf16-mixed"


def test_gradients_are_clipped_after_their_scale_is_taken_away():
    """As 16-mixed needs; a CPU stands for the GPU here."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    layer = nn.Linear(1, 1, bias=False)
    fit = Trainer.__new__(Trainer)
    module, fit.optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
    fit.scaling, fit.config = fabric.strategy.precision, TrainingConfig(grad_clip_norm=1.0)
    before = layer.weight.detach().clone()
    fabric.backward(module(torch.full((1, 1), 0.25)).sum())
    fit._clip()
    fit.optimizer.step()
    # A gradient of 0.25 is below the limit; times 1,024 it would be cut to 1 and be as good as lost.
    assert float(before - layer.weight.detach()) == pytest.approx(0.25, rel=1e-3)
