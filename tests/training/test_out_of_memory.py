"""Too little memory is one line: what was asked for, and a batch that fits; the training goes on with it."""

import os
import re
import shutil
import sys
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.training import OPTIONS, prepared_folder, tiny, train

from slicebook.cli import main
from slicebook.errors import ConfigError, DataError, OutOfMemoryError
from slicebook.io.tensors import STATE_NAME, load_state
from slicebook.memory import asked_bytes, explained
from slicebook.models.checkpoint import load_tokenizer
from slicebook.models.prior import Prior
from slicebook.training.decoder import DecoderObjective
from slicebook.training.generator import train_decoder, train_masks, train_prior
from slicebook.training.prior import PriorObjective
from slicebook.training.tokenizer import LabelObjective, TokenizerObjective

resource = pytest.importorskip("resource", reason="Windows limits no address space")
CUDA = (
    "CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has a total capacity of 79.25 GiB of which "
    "12.00 MiB is free."
)


def with_memory(mebibytes, line, log):
    """Run a command in a forked process that can take so much more memory; return its status and stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads; none holds a lock
        process = os.fork()
    if not process:
        sys.stderr = log.open("w", buffering=1)
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + mebibytes * 2**20,) * 2)
        os._exit(main.main(line.split()))
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), log.read_text()


@pytest.mark.fault(
    "out of memory", "refused: says what was asked for and which batch was tried and fits; goes on with it"
)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what a process takes")
def test_a_batch_that_does_not_fit_is_one_line_with_one_that_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepared_folder(tmp_path / "data", slices=8, shapes=((256, 256),), patients=(2, 1, 1))
    line = (
        "train tokenizer data --out run --device cpu --precision 32-true training.epochs=1 "
        "tokenizer.scaling_rates=[4] tokenizer.codebook_sizes=[8] tokenizer.width=32 "
        "tokenizer.quantizer.kmeans_slices=2"
    )
    status, error = with_memory(400, f"{line} training.batch_size=16", tmp_path / "log")
    assert status == 1
    message = re.fullmatch(
        r"slicebook: run: out of memory: [0-9.]+ [MG]iB more were asked for; in step 1, the batch has 16 "
        r"slices; "
        r"(\d+) were tried and fit: repeat the command with (training\.batch_size=\1)",
        error.splitlines()[-1],
    )
    assert message, error
    assert "Traceback" not in error
    status, error = with_memory(400, f"{line} {message[2]}", tmp_path / "log")
    assert status == 0, error
    assert load_tokenizer(tmp_path / "run").info.recipe.training.batch_size == int(message[1])


def out_of_memory_beyond(monkeypatch, objective, count, after=0):
    """Let the step of an objective fail as CUDA does, at more slices than `count`, after some steps."""
    whole, steps = objective.training_step, iter(range(10**9))

    def step(self, batch, *given):
        if len(batch) > count and next(steps) >= after:
            raise torch.OutOfMemoryError(CUDA)
        return whole(self, batch, *given)

    monkeypatch.setattr(objective, "training_step", step)


def test_a_training_goes_on_with_a_smaller_batch_from_the_start_of_its_epoch(tmp_path, monkeypatch):
    data, run = prepared_folder(tmp_path / "data"), tmp_path / "run"
    recipe = tiny("training.epochs=4", "training.save_minutes=1e-9")
    with monkeypatch.context() as patch:
        out_of_memory_beyond(patch, TokenizerObjective, 2, after=4)
        with pytest.raises(
            OutOfMemoryError, match=r"in step 5, .* 4 slices; 2 were .* training\.batch_size=2"
        ):
            train(data, recipe, run)
    kept = load_state(run / STATE_NAME)
    assert kept.progress["progress"]["step"] == 4  # one epoch and one step of three
    train(data, tiny("training.epochs=4", "training.save_minutes=1e-9", "training.batch_size=2"), run)
    done = load_state(run / STATE_NAME).progress
    assert done["progress"]["epoch"] == 4
    assert done["progress"]["step"] == 24  # six an epoch, as if all were of the smaller batch
    assert [row["step"] for row in done["progress"]["history"]] == [3, 12, 18, 24]
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["batch_size"] == 2
    for size in (4, 1):  # neither a larger batch, nor another one once it is finished
        with pytest.raises(ConfigError, match=rf"batch_size: 2 then, {size} now"):
            train(data, tiny("training.epochs=4", f"training.batch_size={size}"), run)


@pytest.mark.parametrize("part", ["masks", "prior", "decoder"])
def test_every_training_names_its_own_setting(part, trained, tmp_path, monkeypatch):
    objective = {"masks": LabelObjective, "prior": PriorObjective, "decoder": DecoderObjective}[part]
    group = {"masks": "labels"}.get(part, part)
    shutil.copytree(trained.run / "prior", tmp_path / "prior")
    shutil.rmtree(tmp_path / "prior" / part, ignore_errors=True)
    out_of_memory_beyond(monkeypatch, objective, 1)
    call = {"masks": train_masks, "prior": train_prior, "decoder": train_decoder}[part]
    options = replace(OPTIONS, restart=part == "prior")
    with pytest.raises(OutOfMemoryError, match=rf"1 were tried and fit: .* {group}\.training\.batch_size=1$"):
        call(trained.run, out=tmp_path / "prior", options=options)


def test_a_model_too_large_for_one_slice_is_told_so(tmp_path, monkeypatch):
    out_of_memory_beyond(monkeypatch, TokenizerObjective, 0)
    with pytest.raises(
        OutOfMemoryError, match=r"20\.5 MiB more .* not even one fits; make the model smaller"
    ):
        train(prepared_folder(tmp_path / "data"), tiny(), tmp_path / "run")


def test_sampling_without_memory_says_that_its_groups_have_one_size(trained, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Prior, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError(CUDA)))
    line = ["generate", str(trained.run), "-n", "2", "-o", str(tmp_path / "new"), "--device", "cpu"]
    assert main.main(line) == 1
    error = capfd.readouterr().err
    assert error.startswith("slicebook: sampling: out of memory: 20.5 MiB more were asked for; 16 slices are")
    assert error.count("\n") == 1


def test_any_command_without_memory_is_one_line(monkeypatch, capfd):
    def fail(*_, **__):
        np.empty(2**46)

    monkeypatch.setattr("slicebook.data.check.check", fail)
    assert main.main(["check", "somewhere"]) == 1
    error = capfd.readouterr().err
    assert error.startswith(
        "slicebook: this command: out of memory: 512.0 TiB more were asked for; end other"
    )
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError(CUDA), 21495808),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1000 bytes. Error"
            ),
            1000,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1024 bytes."), 1024),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 1 GB). Tried to allocate 1.5 GB on"),
            3 * 2**29,
        ),
        (MemoryError("Unable to allocate 8.00 GiB for an array with shape (1073741824,)"), 2**33),
        (MemoryError(), None),
        (RuntimeError("std::bad_alloc"), None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), None),
    ],
)
def test_every_library_says_it_in_its_own_way(error, asked):
    assert asked_bytes(error) == asked
    with (
        pytest.raises(OutOfMemoryError, match=r"^here: out of memory: .*; do this$"),
        explained("here", lambda: "do this"),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), DataError("often because memory is full"), OSError()]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, explained("here", lambda: "do this"):
        raise error
    assert caught.value is error


def test_what_failed_is_free_before_advice_is_asked_for():
    held = []

    def fail():
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match=r"True$"), explained("here", lambda: f"{held[0]() is None}"):
        fail()
