"""Devices, precisions and this process's place among others."""

import os
import time

import pytest
import torch

from slicebook import devices
from slicebook.devices import choose_device, choose_precision, launch
from slicebook.errors import ConfigError


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def alone(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)


def test_auto_takes_the_cpu_where_there_is_no_gpu(without_gpu):
    assert choose_device() == choose_device("cpu") == torch.device("cpu")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == torch.device("cuda")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_here_is_refused_with_the_way_out(name, without_gpu):
    with pytest.raises(ConfigError, match=f"device {name}: .* use --device cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:7", ""])
def test_a_device_that_is_not_known_is_refused_with_those_that_are(name):
    with pytest.raises(ConfigError, match="wanted one of auto, cpu, cuda, mps"):
        choose_device(name)


def test_the_precision_of_a_cpu_is_measured_not_assumed(alone):
    assert choose_precision("auto", torch.device("cpu")) is None
    assert launch("cpu", "auto").undecided
    assert not launch("cpu", "bf16-mixed").undecided


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [
        ((10, 5), "bf16-mixed"),
        ((10, 9.9), "32-true"),  # a tie goes to the exact one
        ((10, 20), "32-true"),
        ((10, 5000), "32-true"),
    ],
)
def test_the_faster_precision_is_measured_on_the_step_itself(milliseconds, chosen, monkeypatch):
    now, steps = [0.0], []

    def step():
        in_bf16 = torch.is_autocast_enabled("cpu")
        steps.append(in_bf16)
        now[0] += milliseconds[in_bf16] / 1000

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    name, seconds = devices.fastest_precision(step, torch.device("cpu"))
    assert name == chosen
    assert seconds == pytest.approx({"32-true": 0.01, "bf16-mixed": milliseconds[1] / 1000})
    assert sum(steps) == len(steps) / 2  # both by turns
    assert now[0] < 6


def test_rank_0_decides_for_all(monkeypatch):
    verdict = {"32-true": 2.0, "bf16-mixed": 1.0}
    name, _ = devices.fastest_precision(lambda: None, torch.device("cpu"), broadcast=lambda _: verdict)
    assert name == "bf16-mixed"


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_computes_in_bf16_only_where_it_multiplies_it_natively(native, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_precision("auto", torch.device("cuda")) == chosen


def test_a_precision_that_was_asked_for_is_taken():
    assert choose_precision("32-true", torch.device("cuda")) == "32-true"


def test_one_process_is_launched_on_one_device(alone):
    fabric = launch("cpu", "32-true")
    assert (fabric.world_size, fabric.global_rank, fabric.device) == (1, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    "name", ["7-true", "bf16-true", "64-true", "16-true", "16-mixed", "transformer-engine"]
)
def test_a_precision_that_does_not_work_is_refused_with_those_that_do(name, alone):
    with pytest.raises(
        ConfigError, match=f"precision {name} does not work on device cpu; wanted auto .*32-true, bf16"
    ):
        launch("cpu", name)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_gpu_has_a_list_of_its_own(device):
    assert choose_precision("32-true", torch.device(device)) == "32-true"
    with pytest.raises(ConfigError, match=f"does not work on device {device}"):
        choose_precision("bf16-true", torch.device(device))


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, (1, 1)),
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, (4, 2)),
        ({"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "3"}, (2, 3)),
        ({"SLURM_NNODES": "3"}, (1, 3)),
    ],
)
def test_processes_are_counted_as_torchrun_and_slurm_say(environment, processes, alone, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert devices._processes() == processes


@pytest.mark.parametrize(
    ("threads", "cores", "variable", "wanted"),
    [
        (4, 4, None, [3]),
        (1, 1, None, [1]),
        (8, 4, None, [3]),  # torch counts the cores of the machine, this process may use fewer
        (2, 4, None, []),  # torch.set_num_threads(2), before or after slicebook is imported
        (4, 4, "4", []),
    ],
)
def test_one_core_is_left_free_unless_fewer_threads_are_chosen(threads, cores, variable, wanted, monkeypatch):
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    devices.choose_device("cpu")
    assert chosen == wanted
