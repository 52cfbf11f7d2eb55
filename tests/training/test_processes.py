"""Several processes train as one does, at sizes that divide by nothing; when one ends, all end."""

import copy
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from helpers.processes import (
    as_rank,
    end_of,
    free_port,
    gradients_of,
    recorded,
    rows_of,
    run_processes,
    start_of,
)
from helpers.training import OPTIONS, prepared_folder, tiny, train
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from slicebook.config import QuantizerConfig
from slicebook.distributed import Part, Watch, computing
from slicebook.errors import ProcessLostError
from slicebook.models.networks.batch_norm import BatchNorm2d
from slicebook.models.quantizer import Quantizer
from slicebook.training.generator import train_decoder, train_masks, train_prior
from slicebook.training.resume import read_state
from slicebook.training.tokenizer import TokenizerObjective

RESET = ("tokenizer.quantizer.reset_every=3", "tokenizer.quantizer.reset_below=0.95")
VARIED = ("training.loss.level_dropout=0.5", "training.augment.contrast.probability=0.5")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Of two shapes: 10 slices and 5, in batches of 4, 3 and 2."""
    shapes = ((32, 32), (32, 32), (16, 32))
    return prepared_folder(tmp_path_factory.mktemp("data") / "prepared", slices=5, shapes=shapes)


def _tokenizer(data, trained, out, architecture="ladder"):
    settings = [f"tokenizer.architecture={architecture}", "training.epochs=2", *RESET, *VARIED]
    train(data, tiny(*settings), out)


def _masks(data, trained, out):
    settings = ["labels.training.epochs=2", "labels.training.batch_size=5", "labels.training.augment={}"]
    train_masks(trained.run, settings, out=out, options=OPTIONS)


def _prior(data, trained, out):
    train_prior(trained.run, ["prior.training.batch_size=5"], out=out, options=OPTIONS)


def _decoder(data, trained, out):
    settings = ["decoder.training.batch_size=5", "decoder.training.augment={}"]
    train_decoder(trained.run, settings, out=out, options=OPTIONS)


def _copied(trained, name, out):
    """Put into a new folder what a training needs of the parts before it."""
    if name == "prior":
        shutil.copytree(trained.run / "prior" / "masks", out / "masks")
    if name == "decoder":
        shutil.copytree(trained.run / "prior", out, ignore=shutil.ignore_patterns("decoder"))


class Kind(NamedTuple):
    """One kind of training, in how many processes, and how much its scores may differ from those of one.

    Sums of float32 over processes round otherwise than over one batch, and Adam divides small gradients by
    themselves. A bias before a batch norm has none but rounding: it drifts, without an effect.
    """

    train: Callable[..., Any]
    processes: int
    tolerance: float
    folder: str = "."


KINDS = {
    "tokenizer": Kind(_tokenizer, 3, 1e-4),
    "vqvae2": Kind(partial(_tokenizer, architecture="vqvae2"), 2, 2e-2),
    "masks": Kind(_masks, 2, 1e-4, "masks"),
    "prior": Kind(_prior, 2, 1e-4),
    "decoder": Kind(_decoder, 2, 1e-4, "decoder"),
}


@pytest.mark.parametrize("name", KINDS)
def test_processes_train_as_one_does(name, data, trained, tmp_path):
    kind = KINDS[name]
    for out in ("alone", "together"):
        _copied(trained, name, tmp_path / out)
    with recorded(tmp_path / "one"):
        kind.train(data, trained, tmp_path / "alone")
    run_processes(kind.processes, tmp_path, kind.train, data, trained, tmp_path / "together")
    first = end_of(tmp_path / "0")
    for rank in range(1, kind.processes):  # codebooks, running statistics and weights
        other = end_of(tmp_path / str(rank))
        assert [key for key in first if not first[key].equal(other[key])] == []
    # Before the first step: weights, and codes by k-means of the same slices.
    before, alone_before = start_of(tmp_path / "0"), start_of(tmp_path / "one")
    assert [key for key in before if not before[key].allclose(alone_before[key], rtol=1e-6, atol=0)] == []
    codebooks = [key for key in before if "ema_" in key]
    assert [key for key in codebooks if not before[key].equal(alone_before[key])] == []
    gradients = gradients_of(tmp_path / "0")
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients_of(tmp_path / "one").items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-3, atol=1e-5 * largest)
    rows, alone = (rows_of(tmp_path / out / kind.folder) for out in ("together", "alone"))
    assert len(rows) == len(alone) >= 1
    for row, alone_row in zip(rows, alone, strict=True):
        assert row == pytest.approx(alone_row, rel=kind.tolerance, abs=kind.tolerance)
    after = end_of(tmp_path / "one")
    for key in codebooks:
        assert first[key].allclose(after[key], rtol=kind.tolerance, atol=kind.tolerance)
        assert not first[key].equal(before[key])


def test_a_training_goes_on_with_another_number_of_processes(data, tmp_path, monkeypatch):
    recipe = tiny("training.epochs=3", "training.save_minutes=1e-9", *RESET, *VARIED)
    train(data, recipe, tmp_path / "whole")
    whole = TokenizerObjective.training_step

    def stopped(self, batch, step, fraction):
        if step == 7:
            raise KeyboardInterrupt
        return whole(self, batch, step, fraction)

    monkeypatch.setattr(TokenizerObjective, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(data, recipe, tmp_path / "run")
    monkeypatch.undo()
    run_processes(2, tmp_path, train, data, recipe, tmp_path / "run")
    assert rows_of(tmp_path / "run") == [
        pytest.approx(row, rel=1e-4, abs=1e-4) for row in rows_of(tmp_path / "whole")
    ]


def test_more_processes_than_slices_in_a_batch_are_refused(data, tmp_path):
    wanted = "batches of 1 slices for 2 processes, wanted at least one"
    with pytest.raises(ProcessRaisedException, match=wanted):
        run_processes(2, tmp_path, train, data, tiny("training.batch_size=1"), tmp_path / "run")


# --- What depends on a whole batch

COUNTS = ([5], [3, 2], [5, 0])
"""Slices of each process, together five; the process without any computes one that does not count."""


def _compute_part(folder, counts, module, step):
    rank = torch.distributed.get_rank() if len(counts) > 1 else 0
    start, count = sum(counts[:rank]), counts[rank]
    part = Part(start if count else 0, count, 5, len(counts))
    with computing(part):
        tensors = step(copy.deepcopy(module), part)
    name = f"{'-'.join(map(str, counts))}.{rank}.safetensors"
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / name)


def _in_group(folder, counts, module, step):
    torch.distributed.init_process_group("gloo")
    _compute_part(folder, counts, module, step)
    torch.distributed.barrier()


def computed(folder, module, step):
    """What each process has of a step on its part of a batch: of one, then of two, twice."""
    results = []
    for counts in COUNTS:
        if len(counts) == 1:
            _compute_part(folder, counts, module, step)
        else:
            run_processes(2, folder, _in_group, folder, counts, module, step)
        name = "-".join(map(str, counts))
        results.append([load_file(folder / f"{name}.{rank}.safetensors") for rank in range(len(counts))])
    (alone,), *shared = results
    return alone, shared


def _normalise(module, part):
    """Two steps of batch norm; of the second, the gradients that reach its slices and its weights."""
    module.train()
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 40
    own = x[part.rows].clone().requires_grad_()
    module(own)
    out = module(own)
    loss = (out.sin() * out).flatten(1).sum(1)
    (loss.sum() * (part.count > 0)).backward()
    gradients = {"input": own.grad} | {name: p.grad for name, p in module.named_parameters()}
    return {"out": out} | gradients | dict(module.named_buffers())


def test_batch_norm_takes_its_statistics_from_all_processes(tmp_path):
    module = BatchNorm2d(3)
    nn.init.uniform_(module.weight)
    alone, shared = computed(tmp_path, module, _normalise)
    by_torch = nn.BatchNorm2d(3)
    by_torch.load_state_dict(BatchNorm2d(3).state_dict() | {"weight": module.weight.detach()})
    torch.testing.assert_close(alone["out"], _normalise(by_torch, Part.whole(5))["out"])
    for counts, ranks in zip(COUNTS[1:], shared, strict=True):
        for name in ("out", "input"):
            parts = [rank[name][:count] for rank, count in zip(ranks, counts, strict=True)]
            torch.testing.assert_close(torch.cat(parts), alone[name], rtol=1e-4, atol=1e-5)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(ranks[0][name], alone[name], rtol=1e-5, atol=0)
            assert ranks[1][name].equal(ranks[0][name])
        for name in ("weight", "bias"):
            torch.testing.assert_close(ranks[0][name] + ranks[1][name], alone[name], rtol=1e-4, atol=1e-4)


def test_a_single_value_has_no_variance(tmp_path):
    """PyTorch refuses it: one slice of a 1×1 grid."""
    module = BatchNorm2d(2).train()
    assert module(torch.full((1, 2, 1, 1), 7.0)).eq(0).all()
    assert module.running_mean is not None
    assert module.running_mean.tolist() == pytest.approx([0.7, 0.7])


def _learn_codes(module, part):
    """Two updates and a reset of nearly all codes, from ten vectors, two of each slice, of exact sums."""
    vectors = torch.randint(-8, 8, (10, 3), generator=torch.Generator().manual_seed(0)).float()
    own = vectors.view(5, 2, 3)[part.rows].reshape(-1, 3)
    torch.manual_seed(3)
    module.train()
    module(own)
    module(own, reset_dead_codes=True)
    return dict(module.named_buffers())


def test_codebooks_are_those_of_one_process_bit_for_bit(tmp_path):
    """Where the sums are exact: of small integers, with a decay of a half."""
    torch.manual_seed(0)
    module = Quantizer(16, 3, QuantizerConfig(decay=0.5, reset_below=0.99))
    module.ema_embed_sum.round_()
    alone, shared = computed(tmp_path, module, _learn_codes)
    assert not alone["ema_embed_sum"].equal(module.ema_embed_sum)
    for ranks in shared:
        for name, values in alone.items():
            assert ranks[0][name].equal(values), name
            assert ranks[1][name].equal(values), name


# --- When a process ends


def fork(said, function, *arguments):
    """Start a process that calls a function; it ends with status 0, or with 1 and its error in a file."""
    process = os.fork()
    if process:
        return process
    sys.stderr = said.open("w")
    try:
        function(*arguments)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def status_of(process, seconds=120):
    """Wait for a process, and return how it ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    pytest.fail(f"did not end within {seconds} seconds")


def _train_until(rank, port, data, recipe, out, step):
    as_rank(rank, 2, port)
    whole = TokenizerObjective.training_step

    def training_step(self, batch, number, fraction):
        if (rank, number) == (1, step):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, batch, number, fraction)

    pytest.MonkeyPatch().setattr(TokenizerObjective, "training_step", training_step)
    train(data, recipe, out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_is_killed_takes_the_others_down_and_the_training_resumes(data, tmp_path):
    recipe = tiny("training.epochs=3", "training.save_minutes=1e-9")
    port, out = free_port(), tmp_path / "run"
    processes = [
        fork(tmp_path / f"said-{rank}", _train_until, rank, port, data, recipe, out, 7) for rank in range(2)
    ]
    assert os.WTERMSIG(status_of(processes[1])) == signal.SIGKILL
    assert os.WEXITSTATUS(status_of(processes[0])) == 1
    message = (tmp_path / "said-0").read_text()
    assert f"ProcessLostError: {out}: another process of this training has ended" in message
    state = read_state(out)
    assert state is not None
    assert state.progress["progress"]["step"] == 7
    for run in (out, tmp_path / "whole"):
        run_processes(2, tmp_path / f"ranks-{run.name}", train, data, recipe, run)
    resumed, whole = end_of(tmp_path / "ranks-run" / "0"), end_of(tmp_path / "ranks-whole" / "0")
    assert [name for name in whole if not whole[name].equal(resumed[name])] == []


def _wait_in_watch(rank, port, end):
    as_rank(rank, 2, port)
    torch.distributed.init_process_group("gloo")
    with Watch("runs/x", interval=0.2, patience=(5, 0.5)):
        if rank == 1:
            end()
        time.sleep(1000)  # as one that waits for its GPU


def _fail():
    raise ValueError("no space left")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("how", ["killed", "stopped", "failed"])
def test_a_process_that_waits_for_ever_is_ended_when_another_does_not_answer(how, tmp_path):
    end = {
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "failed": _fail,
    }[how]
    port = free_port()
    processes = [fork(tmp_path / f"said-{rank}", _wait_in_watch, rank, port, end) for rank in range(2)]
    assert os.WEXITSTATUS(status_of(processes[0])) == 1
    assert "slicebook: runs/x: another process" in (tmp_path / "said-0").read_text()
    os.kill(processes[1], signal.SIGKILL) if how == "stopped" else None
    status_of(processes[1])


def _fail_without_the_others(rank, port):
    as_rank(rank, 2, port)
    torch.distributed.init_process_group("gloo")
    with Watch("runs/x", interval=0.2):
        if rank == 0:
            torch.distributed.barrier()  # which never comes
        raise ValueError("no space left")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_error_of_one_process_is_its_own_and_the_others_say_that_they_lost_it(tmp_path):
    port = free_port()
    processes = [fork(tmp_path / f"said-{rank}", _fail_without_the_others, rank, port) for rank in range(2)]
    assert [os.WEXITSTATUS(status_of(process)) for process in processes] == [1, 1]
    assert (tmp_path / "said-1").read_text() == "ValueError: no space left\n"
    assert (tmp_path / "said-0").read_text().startswith("ProcessLostError: runs/x: another process")
    assert issubclass(ProcessLostError, RuntimeError)
