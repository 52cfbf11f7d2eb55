"""A training that is killed again and again, also while it saves, ends like one that is not: bit for bit."""

import csv
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from helpers.kills import ended_by, forked, kill_within
from helpers.training import OPTIONS, prepared_folder, tiny, train
from safetensors.torch import save_file

from slicebook.io import tensors
from slicebook.io.tensors import STATE_NAME, load_state, read_tensors
from slicebook.models.checkpoint import MODEL_NAME
from slicebook.training.decoder import DecoderObjective
from slicebook.training.generator import train_decoder, train_generator, train_masks, train_prior
from slicebook.training.prior import PriorObjective
from slicebook.training.resume import PREVIOUS_NAME, read_state
from slicebook.training.tokenizer import LabelObjective, TokenizerObjective
from slicebook.training.trainer import Trainer

KILLS = 20
RECIPE = tiny("training.epochs=36", "training.validate_every=12", "training.save_minutes=1e-9")
"""108 steps of three an epoch, a state after each of them."""


def kill_in_half_a_file(count):
    """Kill this process when the n-th file of tensors is half written."""
    calls = itertools.count(1)

    def half(flat, path, **named):
        save_file(flat, path, **named)
        if next(calls) == count:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    pytest.MonkeyPatch().setattr(tensors, "save_file", half)


MOMENTS = {
    "before a step": lambda of, n: kill_within(of, "training_step", before=True, count=n),
    "between gradients and update": lambda _, n: kill_within(Trainer, "_clip", before=False, count=n),
    "before a save": lambda _, n: kill_within(Trainer, "_save_state", before=True, count=n),
    "in half a file": lambda _, n: kill_in_half_a_file(n),
    "before a file is synchronised": lambda _, n: kill_within(os, "fsync", before=True, count=n),
    "before a rename": lambda _, n: kill_within(os, "replace", before=True, count=n),
    "after a rename": lambda _, n: kill_within(os, "replace", before=False, count=n),
}
"""Where a process kills itself, given the class of the objective and the number of the call."""


def slow_down():
    """Let each step take 0.03 s more, so that another process can kill this one in time."""
    whole = TokenizerObjective.training_step

    def step(*given):
        time.sleep(0.03)
        return whole(*given)

    pytest.MonkeyPatch().setattr(TokenizerObjective, "training_step", step)


def kill_after_a_save(process, run, seconds):
    """Kill a process some time after it has saved its next state."""

    def saved():
        return (run / STATE_NAME).stat().st_mtime_ns if (run / STATE_NAME).exists() else 0

    before = saved()
    while saved() == before:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)


def start(call, arm):
    """Train in a forked process; return its number."""

    def work():
        arm()
        call()

    return forked(work)


def is_killed(process):
    """Wait for a process, and return whether it was killed."""
    return ended_by(process) == signal.SIGKILL


def steps_kept(run):
    state = read_state(run) if run.exists() else None  # no warning: neither file is ever damaged
    return state.progress["progress"]["step"] if state else 0


def outcome(run):
    """Return the tensors of model and state, and the metrics without those that depend on the time."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [
            {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]
    return read_tensors(run / MODEL_NAME)[0], load_state(run / STATE_NAME).tensors, rows


def assert_same(run, whole):
    """Assert that two trainings ended with the same bits and the same files."""
    (model, state, rows), (whole_model, whole_state, whole_rows) = outcome(run), outcome(whole)
    assert model.keys() == whole_model.keys()
    assert state.keys() == whole_state.keys()
    assert [name for name in model if not model[name].equal(whole_model[name])] == []
    assert [name for name in state if not state[name].equal(whole_state[name])] == []
    assert rows == whole_rows
    left = {item.name for item in run.iterdir()}  # no half-written file among them
    assert left == {item.name for item in whole.iterdir()} | {PREVIOUS_NAME}


@pytest.mark.fault(
    "SIGKILL at 20 random moments", "the same weights, bit for bit; no step is lost that was kept"
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
def test_a_training_killed_at_20_random_moments_ends_like_one_that_is_not(tmp_path):
    data, run = prepared_folder(tmp_path / "data"), tmp_path / "killed"
    train(data, RECIPE, tmp_path / "whole")
    draw = np.random.default_rng(17)
    moments = iter(draw.permutation([*MOMENTS] * 3).tolist())  # each of the seven twice or three times
    reached = [0]
    for kill in range(KILLS):
        count, delay = int(draw.integers(1, 5)), draw.uniform(0, 0.1)
        by_itself = kill % 4 < 3  # the others at a moment of the clock
        moment = next(moments) if by_itself else "clock"
        arm = partial(MOMENTS[moment], TokenizerObjective, count) if by_itself else slow_down
        process = start(partial(train, data, RECIPE, run), arm)
        if not by_itself:
            kill_after_a_save(process, run, delay)
        assert is_killed(process), f"kill {kill}, {moment} {count}: ended by itself"
        reached.append(steps_kept(run))
        when = f"{moment}, number {count}" if by_itself else f"{delay:.3f} s after a save"
        print(f"kill {kill + 1}: {when}: step {reached[-1]} is kept")
    assert reached == sorted(reached)  # no step is lost that was kept
    assert 10 < reached[-1] < 108
    train(data, RECIPE, run)
    assert_same(run, tmp_path / "whole")


PARTS = {"masks": LabelObjective, "prior": PriorObjective, "decoder": DecoderObjective}
TRAININGS: dict[str, tuple[Callable[..., object], list[str], list[str]]] = {
    "masks": (train_masks, ["prior"], ["masks"]),
    "prior": (train_prior, ["prior/*.*", "prior/decoder"], ["prior"]),
    "decoder": (train_decoder, ["prior/decoder"], ["decoder"]),
    "generator": (train_generator, ["prior"], ["masks", "prior", "decoder"]),
}
"""By command: its function, what it starts without, and the parts that it trains."""


@pytest.mark.fault("SIGKILL of each training of a generator", "the same weights, bit for bit")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.parametrize("name", TRAININGS)
def test_each_training_of_a_generator_killed_four_times_ends_like_one_that_is_not(name, trained, tmp_path):
    call, removed, parts = TRAININGS[name]
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    for item in (item for pattern in removed for item in run.glob(pattern)):
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    settings = [f"{group}.training.save_minutes=1e-9" for group in ("labels", "prior", "decoder")]
    settings = settings if name == "generator" else settings[list(PARTS).index(name) :][:1]
    go = partial(call, run, settings, options=OPTIONS)
    draw = np.random.default_rng(len(name))
    # The steps of a part come last: where all are trained, a kill is in each of them.
    moments = [*draw.permutation(list(MOMENTS)[1:])[: 4 - len(parts)], *["before a step"] * len(parts)]
    places = {"masks": run / "prior/masks", "prior": run / "prior", "decoder": run / "prior/decoder"}
    reached = [[0] * len(parts)]
    for kill, moment in enumerate(moments):
        part, count = parts[max(0, kill - 4 + len(parts))], int(draw.integers(2, 5))
        process = start(go, partial(MOMENTS[moment], PARTS[part], count))
        assert is_killed(process), f"kill {kill}, {moment} {count}: ended by itself"
        reached.append([steps_kept(places[part]) for part in parts])
        print(f"{name}, kill {kill + 1}: {moment}, number {count}: {reached[-1]} is kept")
    assert reached == sorted(reached)
    assert reached[-1][-1] in range(1, 12)  # within the 12 or 24 steps of the last part
    go()
    if name == "prior":
        train_decoder(run, options=OPTIONS)  # the file of the other prior has its decoder too
    for part in parts:
        assert_same(places[part], trained.run / places[part].relative_to(run))
