"""Devices, precisions and this process's place among others."""

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


@pytest.mark.parametrize(
    ("known", "chosen"),
    [({}, "32-true"), ({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": True}, "bf16-mixed")],
)
def test_a_cpu_computes_in_bf16_only_where_it_multiplies_it_natively(known, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert choose_precision("auto", torch.device("cpu")) == chosen


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_computes_in_bf16_only_where_it_multiplies_it_natively(native, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_precision("auto", torch.device("cuda")) == chosen


def test_a_precision_that_was_asked_for_is_taken():
    assert choose_precision("32-true", torch.device("cuda")) == "32-true"


def test_one_process_is_launched_on_one_device(alone):
    fabric = launch("cpu", "32-true")
    assert (fabric.world_size, fabric.global_rank, fabric.device) == (1, 0, torch.device("cpu"))


def test_a_precision_that_is_not_known_is_refused(alone):
    with pytest.raises(ConfigError, match="device cpu, precision 7-true"):
        launch("cpu", "7-true")


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
