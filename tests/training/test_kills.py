"""A training that is killed again and again, also while it saves, ends like one that is not: bit for bit."""

import csv
import itertools
import os
import signal
import time
from functools import partial

import numpy as np
import pytest
from helpers.kills import ended_by, forked, kill_within
from helpers.training import prepared_folder, tiny, train
from safetensors.torch import save_file

from slicebook.io import tensors
from slicebook.io.tensors import STATE_NAME, load_state, read_tensors
from slicebook.models.checkpoint import MODEL_NAME
from slicebook.training.resume import PREVIOUS_NAME, read_state
from slicebook.training.tokenizer import TokenizerObjective
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
    "before a step": lambda n: kill_within(TokenizerObjective, "training_step", before=True, count=n),
    "between gradients and update": lambda n: kill_within(Trainer, "_clip", before=False, count=n),
    "before a save": lambda n: kill_within(Trainer, "_save_state", before=True, count=n),
    "in half a file": kill_in_half_a_file,
    "before a file is synchronised": lambda n: kill_within(os, "fsync", before=True, count=n),
    "before a rename": lambda n: kill_within(os, "replace", before=True, count=n),
    "after a rename": lambda n: kill_within(os, "replace", before=False, count=n),
}
"""Where a process kills itself, given the number of the call."""


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


def start(data, run, arm):
    """Train in a forked process; return its number."""

    def work():
        arm()
        train(data, RECIPE, run)

    return forked(work)


def outcome(run):
    """Return the tensors of model and state, and the metrics without those that depend on the time."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [
            {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]
    return read_tensors(run / MODEL_NAME)[0], load_state(run / STATE_NAME).tensors, rows


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
        process = start(data, run, partial(MOMENTS[moment], count) if by_itself else slow_down)
        if not by_itself:
            kill_after_a_save(process, run, delay)
        assert ended_by(process) == signal.SIGKILL, f"kill {kill}, {moment} {count}: ended by itself"
        state = read_state(run) if run.exists() else None  # no warning: neither file is ever damaged
        reached.append(state.progress["progress"]["step"] if state else 0)
        when = f"{moment}, number {count}" if by_itself else f"{delay:.3f} s after a save"
        print(f"kill {kill + 1}: {when}: step {reached[-1]} is kept")
    assert reached == sorted(reached)  # no step is lost that was kept
    assert 10 < reached[-1] < 108
    train(data, RECIPE, run)
    (model, state, rows), (whole_model, whole_state, whole_rows) = outcome(run), outcome(tmp_path / "whole")
    assert model.keys() == whole_model.keys()
    assert state.keys() == whole_state.keys()
    assert [name for name in model if not model[name].equal(whole_model[name])] == []
    assert [name for name in state if not state[name].equal(whole_state[name])] == []
    assert rows == whole_rows
    left = {item.name for item in run.iterdir()}  # no half-written file among them
    assert left == {item.name for item in (tmp_path / "whole").iterdir()}
    assert PREVIOUS_NAME in left
