"""SIGTERM and SIGUSR1: the training saves, says so, and ends with a status that a script can read."""

import multiprocessing
import os
import re
import signal
import threading
import warnings
from contextlib import contextmanager

import pytest
from helpers.processes import run_processes
from helpers.settings import SMALL
from helpers.training import prepared_folder, tiny, train
from safetensors.torch import load_file

from slicebook.cli import main
from slicebook.cli.main import INTERRUPTED
from slicebook.errors import StoppedBySignalError
from slicebook.io.tensors import STATE_NAME, load_state
from slicebook.models.checkpoint import MODEL_NAME
from slicebook.models.sequence import JointTokenizer
from slicebook.signals import NAMES, raised_signals
from slicebook.training.tokenizer import TokenizerObjective


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("data") / "prepared")


@contextmanager
def signalled(name, step, owner=TokenizerObjective, method="training_step"):
    """Send this process a signal in the n-th call of a method; yield the numbers of the calls."""
    whole = getattr(owner, method)
    calls: list[int] = []

    def call(*given, **named):
        calls.append(len(calls))
        if len(calls) - 1 == step:
            os.kill(os.getpid(), getattr(signal, name))
        return whole(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, call)
        yield calls


def step_of(run):
    return load_state(run / STATE_NAME).progress["progress"]["step"]


def assert_same_model(run, other):
    first, second = load_file(run / MODEL_NAME), load_file(other / MODEL_NAME)
    assert [name for name in first if not first[name].equal(second[name])] == []


@pytest.mark.fault("SIGTERM or SIGUSR1", "the state is saved, and the same command goes on")
@pytest.mark.parametrize("name", NAMES)
def test_a_training_saves_at_a_signal_and_resumes_there(name, data, tmp_path):
    train(data, tiny(), tmp_path / "whole")
    message = rf"run: stopped by {name} after step 5; the state is saved; repeat the command to continue"
    with signalled(name, 4), pytest.raises(StoppedBySignalError, match=message):
        train(data, tiny(), tmp_path / "run")
    assert step_of(tmp_path / "run") == 5
    assert train(data, tiny(), tmp_path / "run").steps == 6
    assert_same_model(tmp_path / "run", tmp_path / "whole")


def test_a_signal_in_a_validation_does_not_wait_for_its_end(data, tmp_path):
    recipe = tiny("training.batch_size=1")
    train(data, recipe, tmp_path / "whole")
    with signalled("SIGUSR1", 1, method="validation_step") as calls, pytest.raises(StoppedBySignalError):
        train(data, recipe, tmp_path / "run")
    assert len(calls) == 2  # of four
    train(data, recipe, tmp_path / "run")
    assert_same_model(tmp_path / "run", tmp_path / "whole")


def test_after_a_training_signals_are_handled_as_before(data, tmp_path):
    before = [signal.getsignal(getattr(signal, name)) for name in NAMES]
    with signalled("SIGTERM", 1), pytest.raises(StoppedBySignalError):
        train(data, tiny(), tmp_path / "run")
    with raised_signals():
        assert [signal.getsignal(getattr(signal, name)) for name in NAMES] != before
    assert [signal.getsignal(getattr(signal, name)) for name in NAMES] == before


def test_a_training_in_a_thread_handles_no_signals(data, tmp_path):
    thread = threading.Thread(target=train, args=(data, tiny("training.epochs=1"), tmp_path / "run"))
    thread.start()
    thread.join()
    assert step_of(tmp_path / "run") == 3


def test_a_signal_to_all_processes_leaves_those_that_load_data_to_the_training(data, tmp_path):
    """SLURM sends it to every process: without this, one that loads data would end first."""
    whole = TokenizerObjective.training_step

    def step(self, batch, number, fraction):
        if number == 1:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGTERM)
                child.join(0.5)
                assert child.is_alive()
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, batch, number, fraction)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork beside threads
        patch.setattr(TokenizerObjective, "training_step", step)
        with pytest.raises(StoppedBySignalError, match="after step 2"):
            train(data, tiny(), tmp_path / "run", workers=2)
    assert step_of(tmp_path / "run") == 2
    assert not multiprocessing.active_children()


# --- The command


def command(data, run):
    settings = [setting for setting in SMALL if setting.startswith(("tokenizer", "training"))]
    return [
        "train",
        "tokenizer",
        str(data),
        *settings,
        "--out",
        str(run),
        "--device",
        "cpu",
        "--precision=32-true",
    ]


@pytest.mark.fault("SIGTERM or SIGUSR1", "one line, exit status 75")
def test_the_command_ends_with_a_status_of_its_own_and_one_line(data, tmp_path, capsys):
    with signalled("SIGUSR1", 2):
        assert main.main(command(data, tmp_path / "run")) == INTERRUPTED == 75
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("slicebook:")]
    assert re.search(r"run: stopped by SIGUSR1 after step 3; the state is saved; repeat the command", line)
    assert main.main(command(data, tmp_path / "run")) == 0


def test_a_signal_before_the_first_step_ends_the_command_with_the_same_status(trained, tmp_path, capsys):
    arguments = ["train", "prior", str(trained.run), "--no-masks", "--out", str(tmp_path / "prior")]
    with signalled("SIGTERM", 1, JointTokenizer, "encode"):  # while slices are encoded
        assert main.main(arguments) == INTERRUPTED
    assert "slicebook: stopped by SIGTERM; repeat the command to continue" in capsys.readouterr().err


# --- Several processes


def _train(data, out, signalled_rank):
    rank = int(os.environ["RANK"])
    try:
        with signalled("SIGUSR1", 0 if rank == signalled_rank else -1):
            train(data, tiny("training.batch_size=2"), out)
    except StoppedBySignalError as error:
        (out.parent / f"rank-{rank}").write_text(str(error))


def train_in_two_processes(data, out, signalled_rank=-1):
    run_processes(2, out.parent / f"ranks-{out.name}", _train, data, out, signalled_rank)


def test_a_signal_to_one_process_stops_all_after_the_same_step(data, tmp_path):
    train_in_two_processes(data, tmp_path / "run", signalled_rank=1)
    messages = [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)]
    assert "stopped by a signal to another process after step 2" in messages[0]
    assert "stopped by SIGUSR1 after step 2" in messages[1]
    assert step_of(tmp_path / "run") == 2
    train_in_two_processes(data, tmp_path / "run")
    train_in_two_processes(data, tmp_path / "whole")
    assert_same_model(tmp_path / "run", tmp_path / "whole")
