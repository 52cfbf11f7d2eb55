"""Trainings in several processes, as torchrun starts them, and what each of them had at the end."""

import csv
import os
import socket
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import start_processes

from slicebook.training.trainer import Trainer


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def as_rank(rank, processes, port):
    """Make this process one of a group, as torchrun does."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }


def _run(rank, processes, port, folder, function, arguments):
    as_rank(rank, processes, port)
    with recorded(folder / str(rank)):
        function(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_processes(processes, folder, function, *arguments):
    """Call a function in several forked processes of one group; each records its tensors in `folder`/RANK."""
    with warnings.catch_warnings():
        # A fork imports nothing anew. Python 3.12 warns of one beside threads; no thread here holds a lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        start_processes(
            _run,
            (processes, free_port(), Path(folder), function, arguments),
            nprocs=processes,
            start_method="fork",
        )


class recorded:  # noqa: N801 (used as a function)
    """Record the tensors of the trainings in this process, before the first and after the last step.

    And the gradients of the first step.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.patch = pytest.MonkeyPatch()

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        whole, folder = Trainer._train, self.folder

        def train(trainer, *given):
            save(trainer.unwrapped, folder / "start.safetensors")
            whole(trainer, *given)
            save(trainer.unwrapped, folder / "end.safetensors")

        exchange = Trainer._exchange

        def first_gradients(trainer, *given):
            path = folder / "gradients.safetensors"
            if not path.exists():
                parameters = trainer.unwrapped.named_parameters()
                save_file({name: p.grad.contiguous() for name, p in parameters if p.grad is not None}, path)
            return exchange(trainer, *given)

        self.patch.setattr(Trainer, "_train", train)
        self.patch.setattr(Trainer, "_exchange", first_gradients)

    def __exit__(self, *_):
        self.patch.undo()


def save(module, path):
    """Write weights and all buffers."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)


def gradients_of(folder):
    return load_file(Path(folder) / "gradients.safetensors")


def start_of(folder):
    return load_file(Path(folder) / "start.safetensors")


def end_of(folder):
    return load_file(Path(folder) / "end.safetensors")


def rows_of(run):
    """The metrics of a run, without those that depend on the time."""
    with (Path(run) / "metrics.csv").open(newline="") as file:
        return [
            {
                name: float(value)
                for name, value in row.items()
                if name not in ("seconds", "images_per_second")
            }
            for row in csv.DictReader(file)
        ]
